"""The picture of a sweep: a grid of cells."""

import textwrap
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from coordcheck.judge.finding import Finding
from coordcheck.judge.judgement import Judgement
from coordcheck.report.figures.curves import draw_lines, make_headroom
from coordcheck.report.figures.style import SMALL, VERDICT_COLOURS, depth_colours, plain

LONGEST = 400  # characters of a label


def summary_figure(checks: Mapping[str, Judgement], grid: Sequence[Sequence[str | None]]) -> Figure:
    """A grid of cells: sizes of one kind and step against width, the verdict, and where a fault starts.

    Args:
        checks: By label.
        grid: Labels in rows and columns; None leaves a place empty.
    """
    rows, columns = len(grid), max(len(row) for row in grid)
    figure = Figure(figsize=(max(4.1 * columns, 7), 3.5 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for r in range(rows):
        for c in range(columns):
            label = grid[r][c] if c < len(grid[r]) else None
            if label is None:
                panels[r, c].axis("off")
            else:
                draw_summary_panel(panels[r, c], label, checks[label])
                panels[r, c].set_xlabel("width" if r == rows - 1 else "")
        panels[r, 0].set_ylabel("mean |entry| (l1)")
    make_headroom(panels[0, 0], 0.33)
    tally = pd.Series([check.verdict for check in checks.values()]).value_counts()
    counted = ", ".join(f"{count} {name}" for name, count in tally.items())
    figure.suptitle(
        f"{counted}\nsizes against width: outputs and their changes are good where they are flat\n"
        "one line per module, dark input to bright output; thick and red: where a fault starts",
        fontsize=11,
    )
    return figure


def draw_summary_panel(axes: Axes, label: str, check: Judgement) -> None:
    """One cell of the summary: the kind and step where its first fault shows, else the activations of the last step."""
    fault = next((finding for finding in check.findings if finding.fault), None)
    kind, step = shown(check.slopes, fault)
    slopes = check.slopes[(check.slopes["step"] == step) & (check.slopes["kind"] == kind)]
    curves = check.records[(check.records["step"] == step) & (check.records["kind"] == kind)]
    lines = draw_lines(axes, curves, depth_colours(list(check.slopes.sort_values("order")["module"].unique())))
    if fault is not None:
        mark_fault(axes, fault, lines)
    label_extremes(axes, slopes)
    title = f"{textwrap.fill(plain(label, LONGEST), 42)}\n{check.verdict.upper()}, {kind}, step {step}"
    axes.set_title(title, fontsize=9, color=VERDICT_COLOURS[check.verdict], fontweight="bold")


def shown(slopes: pd.DataFrame, fault: Finding | None) -> tuple[str, int]:
    """The kind and step of the curve that shows a fault; without one, activations at the last step."""
    if fault is not None and fault.kind is not None and fault.step is not None:
        return fault.kind, fault.step
    activations = slopes[slopes["kind"] == "activation"]
    drawn = activations if len(activations) else slopes[slopes["kind"] == slopes["kind"].iloc[0]]
    return str(drawn["kind"].iloc[0]), int(drawn["step"].max())


def mark_fault(axes: Axes, fault: Finding, lines: Mapping[str, pd.DataFrame]) -> None:
    """Names where a fault starts and of what class it is, and makes its line stand out."""
    if fault.module in lines:
        colour = VERDICT_COLOURS["fail"]
        axes.plot(lines[fault.module]["middle"], color=colour, linewidth=3.2, marker="o", markersize=6, zorder=4)
    axes.text(
        0.03,
        0.97,
        f"fault starts at {plain(fault.parameter or fault.module)}\n{fault.fault}: {fault.shown_by}",
        transform=axes.transAxes,
        va="top",
        fontsize=SMALL + 1,
        fontweight="bold",
        color=VERDICT_COLOURS["fail"],
    )


def label_extremes(axes: Axes, slopes: pd.DataFrame) -> None:
    """Names the modules with the highest and the lowest slope, and their verdicts, below where a fault is named."""
    known = slopes.dropna(subset="slope").sort_values("order", kind="stable")
    if not len(known):
        return
    ends = {"highest": known.iloc[int(known["slope"].argmax())], "lowest": known.iloc[int(known["slope"].argmin())]}
    axes.annotate(
        "\n".join(
            f"{end} slope: {plain(row['module'])} {row['slope']:+.2f}, {row['verdict']}" for end, row in ends.items()
        ),
        (0.03, 0.97),
        xycoords="axes fraction",
        xytext=(0, -26),
        textcoords="offset points",
        va="top",
        fontsize=SMALL,
    )
