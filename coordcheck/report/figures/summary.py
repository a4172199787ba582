"""The picture of a sweep: a grid of cells."""

import textwrap
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from coordcheck.judge.finding import Finding
from coordcheck.judge.judgement import Judgement
from coordcheck.judge.verdict import worst_first
from coordcheck.records.schema import LOSS_MODULE
from coordcheck.report.figures.curves import LINE_HEIGHT, draw_lines, make_headroom
from coordcheck.report.figures.rows import rows_of, worst_of_rows
from coordcheck.report.figures.style import SMALL, VERDICT_COLOURS, depth_colours, ink, plain

LONGEST, LINE = 400, 42  # characters of a label, and of a line of it
LONGEST_NAME = 38  # characters of a name that fit into a panel
PANEL = 4.1, 3.0  # inches
LEAST, HEADING, TITLE_LINE = 7.0, 0.75, 0.17  # inches of all panels, of what stands above them, and of a title's line


def summary_figure(checks: Mapping[str, Judgement], grid: Sequence[Sequence[str | None]]) -> Figure:
    """A grid of cells: sizes of one kind and step against width, the verdict, and where a fault starts.

    Args:
        checks: By label.
        grid: Labels in rows and columns; None leaves a place empty.
    """
    rows, columns = len(grid), max(len(row) for row in grid)
    width, titles = max(PANEL[0] * columns, LEAST) + 0.8, TITLE_LINE * (2.5 + max(map(_lines, checks)))
    height = (PANEL[1] + titles) * rows + HEADING + 0.5
    # places are computed: a layout engine gives up where labels are longer than panels
    figure = Figure(figsize=(width, height))
    edges = 0.7 / width, 0.5 / height, 1 - 0.1 / width, 1 - (HEADING + titles) / height
    figure.subplots_adjust(*edges, wspace=0.06, hspace=titles / PANEL[1])
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for r in range(rows):
        for c in range(columns):
            label = grid[r][c] if c < len(grid[r]) else None
            if label is None:
                panels[r, c].axis("off")
            else:
                draw_summary_panel(panels[r, c], label, checks[label])
                panels[r, c].set_xlabel(checks[label].axis if r == rows - 1 else "")
        panels[r, 0].set_ylabel("mean |entry| (l1)")
    make_headroom(panels[0, 0], 0.33)
    tally = pd.Series([check.verdict for check in checks.values()]).value_counts()
    axes = dict.fromkeys(check.axis for check in checks.values())
    counted = ", ".join(f"{count} {name}" for name, count in tally.items())
    figure.suptitle(
        f"{counted}\nsizes against {' and '.join(axes)}: outputs and their changes are good where they are flat\n"
        "one line per module, dark input to bright output; thick and red: where a fault starts",
        fontsize=11,
        y=1 - 0.1 / height,
        va="top",
    )
    return figure


def _lines(label: str) -> int:
    """How many lines a label takes."""
    return len(textwrap.wrap(plain(label, LONGEST), LINE))


def draw_summary_panel(axes: Axes, label: str, check: Judgement) -> None:
    """One cell of the summary: the kind and step where its first fault shows, else the activations of the last step."""
    fault = next((finding for finding in check.findings if finding.fault), None)
    kind, step = shown(check.slopes, fault)
    own = check.slopes[check.slopes["module"] != LOSS_MODULE].sort_values("order", kind="stable")
    slopes = own[(own["step"] == step) & (own["kind"] == kind)]
    curves = check.records[(check.records["step"] == step) & (check.records["kind"] == kind)]
    modules = list(own["module"].unique())
    rows = rows_of(modules, set() if fault is None else {fault.module})
    drawn = set(worst_of_rows(worst_first(slopes), rows)["module"])
    lines = draw_lines(axes, curves[curves["module"].isin(drawn)], depth_colours(modules))
    if fault is not None:
        mark_fault(axes, fault, lines)
    label_extremes(axes, slopes, depth_colours(modules), 0 if fault is None else 26)
    title = f"{textwrap.fill(plain(label, LONGEST), LINE)}\n{check.verdict.upper()}, {kind}, step {step}"
    axes.set_title(title, fontsize=9, color=ink(VERDICT_COLOURS[check.verdict]), fontweight="bold")


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
        colour = ink(VERDICT_COLOURS["fail"])
        axes.plot(lines[fault.module]["middle"], color=colour, linewidth=3.2, marker="o", markersize=6, zorder=4)
    axes.text(
        0.03,
        0.97,
        f"fault starts at {plain(fault.parameter or fault.module, LONGEST_NAME)}\n{fault.fault}: {fault.shown_by}",
        transform=axes.transAxes,
        va="top",
        fontsize=SMALL + 1,
        fontweight="bold",
        color=ink(VERDICT_COLOURS["fail"]),
    )


def label_extremes(axes: Axes, slopes: pd.DataFrame, colours: Mapping[str, tuple[float, ...]], below: float) -> None:
    """Names the modules with the highest and the lowest slope, and their verdicts, `below` points from the top."""
    known = slopes.dropna(subset="slope").sort_values("order", kind="stable")
    if not len(known):
        return
    ends = {"highest": known.iloc[int(known["slope"].argmax())], "lowest": known.iloc[int(known["slope"].argmin())]}
    for number, (end, row) in enumerate(ends.items()):
        axes.annotate(
            f"{end} slope: {plain(row['module'], LONGEST_NAME)} {row['slope']:+.2f}, {row['verdict']}",
            (0.03, 0.97),
            xycoords="axes fraction",
            xytext=(0, -below - number * LINE_HEIGHT * SMALL),
            textcoords="offset points",
            va="top",
            fontsize=SMALL,
            color=ink(colours[row["module"]]),
        )
