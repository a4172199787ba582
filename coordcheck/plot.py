"""Figures of slopes and records that were computed elsewhere: nothing is fitted here.

Colours are those of ``viridis`` (depth) and ``PuOr`` (deviation from the expected slope), which people with any
common colour blindness can tell apart; verdicts are also marked by a sign and a word.
"""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from coordcheck.audit_result import FAULTS as AUDIT_FAULTS
from coordcheck.slopes import cell_columns, sizes
from coordcheck.storage import write_atomically
from coordcheck.verdict import FAILURES, Finding, worst_first

if TYPE_CHECKING:
    from coordcheck.audit_result import Audit
    from coordcheck.result import CoordCheck

VERDICT_COLOURS = {"pass": "#00705a", "fail": "#b3200e", "inconclusive": "#8a6d00", "error": "#555555"}
MARKS = {"explodes": "▲", "vanishes": "▼", "dead": "∅", "nonfinite": "✕", "inconclusive": "?", "pass": ""}
ORIGIN = "►"
MEANINGS = f"▲ explodes   ▼ vanishes   ∅ dead   ✕ nonfinite   ? inconclusive   {ORIGIN} a fault starts here"
MAX_PANELS = 4
LABELLED = 3
MAX_DEVIATION = 1.0
SMALL = 7
HUGE = 1e100


def save_figure(figure: Figure, path: Path, config: Mapping[str, Any]) -> None:
    """Writes a PNG atomically, with the configuration as JSON in its metadata ("Description")."""
    description = json.dumps(config, default=str)
    write_atomically(
        path,
        lambda temporary: figure.savefig(
            temporary, dpi=130, metadata={"Software": "coordcheck", "Description": description}
        ),
    )


def report_figure(check: "CoordCheck") -> Figure:
    """Curves of size against width on the left, slopes of every module and step on the right."""
    kinds = list(dict.fromkeys(check.slopes["kind"]))
    modules = check.slopes["module"].nunique()
    height = max(3.4 * len(kinds) + 1.2, 0.165 * modules + 2.2)
    figure = Figure(figsize=(19, height), layout="constrained")
    draw_title(figure, check)
    left, right = cast(Sequence[SubFigure], figure.subfigures(1, 2, width_ratios=[1.45, 1]))
    draw_curves(left, check.records, check.slopes, kinds)
    draw_heat_maps(right, check.slopes, kinds, [finding for finding in check.findings if finding.fault])
    return figure


def draw_title(figure: Figure, check: "CoordCheck") -> None:
    """The verdict, and what was checked."""
    figure.suptitle(
        f"{check.verdict.upper()}   {describe_cell(check)}",
        fontsize=14,
        fontweight="bold",
        color=VERDICT_COLOURS[check.verdict],
    )


def describe_cell(check: "CoordCheck") -> str:
    """The cell, its widths and seeds, on one line."""
    first = check.records.iloc[0]
    cell = [str(first[name]) for name in cell_columns(check.records)]
    widths = sorted(check.records["width"].unique())
    return " · ".join(
        [
            *cell,
            f"widths {widths[0]}–{widths[-1]} ({len(widths)})",
            f"{check.records['seed'].nunique()} seeds",
        ]
    )


def depth_colours(modules: Sequence[str]) -> dict[str, tuple[float, float, float, float]]:
    """A colour for each module in forward order, dark at the input and bright at the output."""
    scale = mpl.colormaps["viridis"](np.linspace(0.0, 0.92, max(len(modules), 1)))
    return {module: tuple(scale[i]) for i, module in enumerate(modules)}


def draw_curves(figure: SubFigure, records: pd.DataFrame, slopes: pd.DataFrame, kinds: Sequence[str]) -> None:
    """A panel for each kind and step: size against width, one line per module, the worst slopes beside them."""
    colours = depth_colours(list(slopes.sort_values("order")["module"].unique()))
    steps = pick_steps(sorted(slopes["step"].unique()))
    panels = figure.subplots(len(kinds), len(steps), sharex=True, sharey="row", squeeze=False)
    explained = False
    for row, kind in enumerate(kinds):
        drawn = []
        for axes, step in zip(panels[row], steps, strict=True):
            of_panel = slopes[(slopes["kind"] == kind) & (slopes["step"] == step)]
            if len(of_panel):
                draw_panel(axes, records[(records["kind"] == kind) & (records["step"] == step)], of_panel, colours)
                axes.set_title(f"{kind}, step {step}", fontsize=10)
                axes.set_xlabel("width" if row == len(kinds) - 1 else "")
                drawn.append(axes)
            elif explained:
                axes.axis("off")
            else:
                draw_legend(axes, colours)
                explained = True
        make_headroom(drawn[0], 0.18)
        drawn[0].set_ylabel("mean |entry| (l1)")
        drawn[0].tick_params(labelleft=True)


def pick_steps(steps: Sequence[int]) -> list[int]:
    """At most four steps for the panels: the first, the last and evenly spaced ones between."""
    if len(steps) <= MAX_PANELS:
        return list(steps)
    return [steps[i] for i in np.linspace(0, len(steps) - 1, MAX_PANELS).round().astype(int)]


def draw_panel(
    axes: Axes, curves: pd.DataFrame, slopes: pd.DataFrame, colours: Mapping[str, tuple[float, ...]]
) -> None:
    """Lines over widths, with the names and slopes of the worst."""
    lines = draw_lines(axes, curves, colours)
    label_worst(axes, slopes, {module: float(line["middle"].iloc[-1]) for module, line in lines.items()})


def draw_lines(axes: Axes, curves: pd.DataFrame, colours: Mapping[str, tuple[float, ...]]) -> dict[str, pd.DataFrame]:
    """Lines over widths with their spread over seeds; those of modules that are zero or not finite are left out.

    Returns:
        For each module that has a line ``low``, ``middle`` and ``high`` by width.
    """
    table = curves.assign(size=sizes(curves))
    table = table[np.isfinite(table["size"]) & (table["size"] > 0)]
    table["log"] = np.log(table["size"])
    by_width = table.groupby(["module", "width"], sort=False).agg(
        low=("size", "min"), middle=("log", "mean"), high=("size", "max")
    )
    by_width["middle"] = np.exp(by_width["middle"])
    lines = {str(module): line.droplevel(0).sort_index() for module, line in by_width.groupby("module", sort=False)}
    widths = sorted(curves["width"].unique())
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator([float(width) for width in widths]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=SMALL)
    axes.grid(alpha=0.25, linewidth=0.5)
    if lines:
        _add_lines(axes, lines, colours)
    else:
        axes.set(xlim=(widths[0], widths[-1]), ylim=(0.1, 10.0))
    return lines


def _add_lines(axes: Axes, lines: Mapping[str, pd.DataFrame], colours: Mapping[str, tuple[float, ...]]) -> None:
    """All lines as one collection each of bands, lines and dots: an artist per line takes seconds in a large model."""
    used = [colours[module] for module in lines]
    curves = [(line.index.to_numpy(dtype=float), line.to_numpy()) for line in lines.values()]
    bands = [np.c_[np.r_[at, at[::-1]], np.r_[size[:, 0], size[::-1, 2]]] for at, size in curves]
    middles = [np.c_[at, size[:, 1]] for at, size in curves]
    axes.add_collection(PolyCollection(bands, facecolors=used, alpha=0.12, linewidths=0))
    axes.add_collection(LineCollection(middles, colors=used, linewidths=1.1, zorder=2))
    dots = [colour for colour, middle in zip(used, middles, strict=True) for _ in middle]
    at, size = np.concatenate(middles).T
    axes.scatter(at, size, c=dots, s=10, linewidths=0, zorder=2)


def label_worst(axes: Axes, slopes: pd.DataFrame, ends: Mapping[str, float]) -> None:
    """Writes the slopes of the worst curves beside their ends: those at fault, else the one nearest to its limit."""
    ranked = worst_first(slopes[slopes["module"].isin(list(ends)) & slopes["slope"].notna()])
    at_fault = ranked[ranked["verdict"].isin(FAILURES)].drop_duplicates("slope").head(LABELLED)
    chosen = at_fault if len(at_fault) else ranked.head(1)
    labels = {
        ends[row["module"]]: f"{MARKS[row['verdict']]} {row['module']} {row['slope']:+.2f}".strip()
        for _, row in chosen.iterrows()
    }
    axes.text(
        0.03,
        0.97,
        "\n".join(labels[end] for end in sorted(labels, reverse=True)),
        transform=axes.transAxes,
        va="top",
        fontsize=SMALL,
        fontweight="bold" if len(at_fault) else "normal",
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
    )


def make_headroom(axes: Axes, share: float) -> None:
    """Adds `share` of its height above what a logarithmic panel shows, for text; panels that share y move along."""
    low, high = (float(end) for end in axes.get_ylim())
    # a panel of zeros or of a diverged run has nothing to make room above
    if 0 < low < high < HUGE:
        axes.set_ylim(low, high * (high / low) ** share)


def draw_legend(axes: Axes, colours: Mapping[str, tuple[float, ...]]) -> None:
    """Fills the panel of a kind that has no step 0 with what lines and colours mean."""
    axes.axis("off")
    modules = list(colours)
    picked = [modules[i] for i in np.unique(np.linspace(0, len(modules) - 1, 6).round().astype(int))]
    for module in picked:
        axes.plot([], [], color=colours[module], marker="o", markersize=3, label=module)
    axes.legend(loc="center left", fontsize=SMALL + 1, frameon=False, title="one line per module,\ncoloured by depth:")
    axes.text(
        0.02,
        0.02,
        "line: geometric mean over seeds\nband: smallest to largest seed\nlabel: slope, the exponent of width",
        transform=axes.transAxes,
        fontsize=SMALL + 1,
        va="bottom",
    )


def draw_heat_maps(figure: SubFigure, slopes: pd.DataFrame, kinds: Sequence[str], origins: Sequence[Finding]) -> None:
    """Module x step: the slope as a number, its distance from the expected range as a colour, verdicts as marks.

    The modules where faults start are marked beside their names, and the curves that show them framed.
    """
    modules = list(slopes.sort_values("order", kind="stable")["module"].unique())
    steps = [slopes[slopes["kind"] == kind]["step"].nunique() for kind in kinds]
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False, width_ratios=steps)[0]
    images = [
        draw_heat_map(axes, slopes[slopes["kind"] == kind], modules) for axes, kind in zip(panels, kinds, strict=True)
    ]
    starts = {finding.module for finding in origins}
    panels[0].set_yticks(range(len(modules)), [f"{ORIGIN} {m}" if m in starts else m for m in modules], fontsize=SMALL)
    for tick, module in zip(panels[0].get_yticklabels(), modules, strict=True):
        if module in starts:
            tick.set(color=VERDICT_COLOURS["fail"], fontweight="bold")
    for axes, kind in zip(panels, kinds, strict=True):
        frame_origins(axes, slopes[slopes["kind"] == kind], modules, [f for f in origins if f.kind == kind])
    bar = figure.colorbar(images[0], ax=list(panels), location="bottom", shrink=0.8, pad=0.01, aspect=40)
    bar.set_label(f"distance from the expected range\n{MEANINGS}", fontsize=SMALL + 1)
    bar.ax.tick_params(labelsize=SMALL)


def draw_heat_map(axes: Axes, slopes: pd.DataFrame, modules: Sequence[str]) -> AxesImage:
    """One kind's heat map."""
    axes.set_title(f"slope of\n{slopes['kind'].iloc[0]}", fontsize=10)
    steps = sorted(slopes["step"].unique())
    beyond = slopes["slope"] - slopes["slope"].clip(slopes["expected_low"], slopes["expected_high"])
    grid = slopes.assign(beyond=beyond).pivot(index="module", columns="step", values="beyond")
    grid = grid.reindex(index=list(modules), columns=steps)
    image = axes.imshow(
        grid.to_numpy(dtype=float),
        cmap="PuOr_r",
        norm=TwoSlopeNorm(0.0, -MAX_DEVIATION, MAX_DEVIATION),
        aspect="auto",
        interpolation="nearest",
    )
    axes.set_facecolor("#e6e6e6")
    axes.set_xticks(range(len(steps)), [f"{step}" for step in steps], fontsize=SMALL)
    axes.set_xlabel("step", fontsize=SMALL + 1)
    axes.tick_params(length=0)
    row_of = {module: i for i, module in enumerate(modules)}
    for _, row in slopes.iterrows():
        at = steps.index(row["step"]), row_of[row["module"]]
        value = "0" if row["n_zero"] == row["n_runs"] else "" if np.isnan(row["slope"]) else f"{row['slope']:+.2f}"
        dark = abs(row["slope"] - np.clip(row["slope"], row["expected_low"], row["expected_high"])) > 0.65
        axes.text(
            *at,
            f"{MARKS[row['verdict']]} {value}".strip(),
            ha="center",
            va="center",
            fontsize=SMALL - 1,
            fontweight="bold" if row["verdict"] in FAILURES else "normal",
            color="white" if dark else "black",
            in_layout=False,
        )
    return image


def frame_origins(axes: Axes, slopes: pd.DataFrame, modules: Sequence[str], origins: Sequence[Finding]) -> None:
    """Frames the curves of one kind's heat map that show where faults start."""
    steps = sorted(slopes["step"].unique())
    for finding in origins:
        corner = steps.index(finding.step) - 0.5, modules.index(finding.module) - 0.5
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=1.4))


def summary_figure(checks: Mapping[str, "CoordCheck"], grid: Sequence[Sequence[str | None]]) -> Figure:
    """A grid of cells: activations of the last step against width, the verdict, and where a fault starts.

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
        f"{counted}\nsize of each module's output against width: flat is good\n"
        "one line per module, dark input to bright output; thick and red: where a fault starts",
        fontsize=11,
    )
    return figure


def draw_summary_panel(axes: Axes, label: str, check: "CoordCheck") -> None:
    """One cell of the summary, at the step where its first fault shows, else at the last."""
    fault = next((finding for finding in check.findings if finding.fault), None)
    activations = check.slopes[check.slopes["kind"] == "activation"]
    drawn = activations if len(activations) else check.slopes
    seen = fault is not None and fault.step in set(drawn["step"])
    step = fault.step if fault is not None and seen else drawn["step"].max()
    slopes = drawn[(drawn["step"] == step) & (drawn["kind"] == drawn["kind"].iloc[0])]
    curves = check.records[(check.records["step"] == step) & (check.records["kind"] == slopes["kind"].iloc[0])]
    lines = draw_lines(axes, curves, depth_colours(list(check.slopes.sort_values("order")["module"].unique())))
    if fault is not None:
        mark_fault(axes, fault, lines)
    label_extremes(axes, slopes)
    title = f"{textwrap.fill(label, 42)}\n{check.verdict.upper()}, step {step}"
    axes.set_title(title, fontsize=9, color=VERDICT_COLOURS[check.verdict], fontweight="bold")


def mark_fault(axes: Axes, fault: Finding, lines: Mapping[str, pd.DataFrame]) -> None:
    """Names where a fault starts and of what class it is, and makes its line stand out."""
    if fault.module in lines:
        colour = VERDICT_COLOURS["fail"]
        axes.plot(lines[fault.module]["middle"], color=colour, linewidth=3.2, marker="o", markersize=6, zorder=4)
    slope = "" if np.isnan(fault.slope) else f" {fault.slope:+.2f}"
    where = fault.kind if fault.step is None else f"{fault.kind}, step {fault.step}"
    axes.text(
        0.03,
        0.97,
        f"fault starts at {fault.parameter or fault.module}\n{fault.fault}: {where}{slope}",
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
        "\n".join(f"{end} slope: {row['module']} {row['slope']:+.2f}, {row['verdict']}" for end, row in ends.items()),
        (0.03, 0.97),
        xycoords="axes fraction",
        xytext=(0, -26),
        textcoords="offset points",
        va="top",
        fontsize=SMALL,
    )


def audit_figure(audit: "Audit") -> Figure:
    """Exponents of init std and of the learning rate, one row per parameter in the model's order."""
    rows = audit.parameters
    figure = Figure(figsize=(13, 0.19 * len(rows) + 1.9), layout="constrained")
    figure.suptitle(
        f"{audit.verdict.upper()}   audit against {audit.expect}, widths {', '.join(map(str, audit.widths))}",
        fontsize=13,
        fontweight="bold",
        color=VERDICT_COLOURS[audit.verdict],
    )
    panels = figure.subplots(1, 2, sharey=True)
    draw_exponents(panels[0], rows, "std", ["init"], "init std: exponent of width")
    draw_exponents(
        panels[1], rows, "lr", ["learning_rate", "ungrouped", "regrouped"], "learning rate: exponent of width"
    )
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside lower right", ncols=3, fontsize=SMALL + 1)
    names = [" = ".join(filter(None, pair)) for pair in rows[["parameter", "tied_to"]].to_numpy()]
    labels = [
        f"{'' if said == 'pass' else f'{said}: '}{name} ({role})"
        for name, role, said in zip(names, rows["role"], rows["verdict"], strict=True)
    ]
    panels[0].set_yticks(range(len(rows)), labels, fontsize=SMALL)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    for tick, said in zip(panels[0].get_yticklabels(), rows["verdict"], strict=True):
        if said != "pass":
            tick.set(color=VERDICT_COLOURS["fail" if said in AUDIT_FAULTS else "inconclusive"], fontweight="bold")
    return figure


def draw_exponents(axes: Axes, rows: pd.DataFrame, quantity: str, faults: Sequence[str], title: str) -> None:
    """Dots with their intervals beside the expected values; a fault is a red triangle joined to what was expected."""
    at = np.arange(len(rows))
    measured = rows[f"{quantity}_exponent"].to_numpy(dtype=float)
    expected = rows[f"expected_{quantity}_exponent"].to_numpy(dtype=float)
    wrong = rows["verdict"].isin(faults).to_numpy() & ~np.isnan(measured)
    known = ~np.isnan(measured)
    axes.scatter(
        expected[known], at[known], marker="|", s=130, color="#888888", linewidths=2.2, label="expected", zorder=2
    )
    if quantity == "std":
        axes.hlines(at[known], rows["std_low"][known], rows["std_high"][known], color="#00705a", linewidth=1, alpha=0.5)
    right = known & ~wrong
    axes.scatter(measured[right], at[right], s=16, color=VERDICT_COLOURS["pass"], label="measured", zorder=3)
    axes.hlines(at[wrong], expected[wrong], measured[wrong], color=VERDICT_COLOURS["fail"], linewidth=1.2, zorder=2)
    axes.scatter(
        measured[wrong],
        at[wrong],
        marker="^",
        s=34,
        color=VERDICT_COLOURS["fail"],
        label="measured, at fault",
        zorder=3,
    )
    axes.set_title(title, fontsize=10)
    low, high = (float(end) for end in axes.get_xlim())
    axes.set_xlim(min(low, -1.2), max(high, 0.3))
    axes.grid(axis="x", alpha=0.3, linewidth=0.5)
    axes.tick_params(labelsize=SMALL)
