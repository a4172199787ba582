"""The picture of a check: curves on the left, the slope of every module and step on the right."""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from coordcheck.judge.judgement import Judgement
from coordcheck.records.schema import LOSS_MODULE, WEIGHTS
from coordcheck.report.figures.curves import draw_legend, draw_lines, draw_loss, label_worst, make_headroom
from coordcheck.report.figures.heat_map import HeatMaps
from coordcheck.report.figures.style import VERDICT_COLOURS, depth_colours, ink, plain

MAX_PANELS = 4
LONGEST_TITLE = 250  # characters
WIDE, NARROW = 11.25, 7.75  # inches, of the left and of the right half
ROW = 3.4  # inches


def report_figure(check: Judgement) -> Figure:
    """Curves of size against width on the left, slopes of every module and step on the right."""
    kinds = list(dict.fromkeys(check.slopes["kind"]))
    modules = list(check.slopes.sort_values("order", kind="stable")["module"].unique())
    colours = depth_colours([module for module in modules if module != LOSS_MODULE])
    heat_maps = HeatMaps(check, kinds, colours)
    needed, height = heat_maps.size()
    narrow, height = max(NARROW, needed), max(ROW * (len(kinds) + _rows_below(check)) + 1.2, height)
    # places are computed here, once: a layout engine draws the whole figure to measure it, three times over
    figure = Figure(figsize=(WIDE + narrow, height))
    draw_title(figure, check)
    left, right = cast(Sequence[SubFigure], figure.subfigures(1, 2, width_ratios=[WIDE, narrow]))
    draw_curves(left, check, heat_maps.shown, kinds, colours)
    left.subplots_adjust(0.7 / WIDE, 0.55 / height, 1 - 0.15 / WIDE, 1 - 0.8 / height, 0.06, 0.25)
    heat_maps.draw(right, narrow, height)
    return figure


def draw_title(figure: Figure, check: Judgement) -> None:
    """The verdict, and what was checked."""
    figure.suptitle(
        f"{check.verdict.upper()}   {plain(check.cell(), LONGEST_TITLE)}",
        fontsize=14,
        fontweight="bold",
        color=ink(VERDICT_COLOURS[check.verdict]),
        y=1 - 0.15 / figure.get_figheight(),
        va="top",
    )


def draw_curves(
    figure: SubFigure,
    check: Judgement,
    shown: pd.DataFrame,
    kinds: Sequence[str],
    colours: Mapping[str, tuple[float, ...]],
) -> None:
    """A panel for each kind and step: size against width, one line per module, the worst slopes beside them.

    Kinds without a step 0 leave places free, where the legend and the loss go; without such a place they have a row.

    Args:
        figure: Where to.
        check: Whose records.
        shown: The curves that have a line.
        kinds: From top to bottom.
        colours: Of all modules.
    """
    steps = pick_steps(sorted(check.slopes["step"].unique()))
    grid = figure.add_gridspec(len(kinds) + _rows_below(check), len(steps))
    free, first = [], None
    for row, kind in enumerate(kinds):
        drawn: list[Axes] = []
        for column, step in enumerate(steps):
            of_panel = shown[(shown["kind"] == kind) & (shown["step"] == step)]
            if not len(of_panel):
                free.append(grid[row, column])
                continue
            axes = figure.add_subplot(grid[row, column], sharex=first, sharey=drawn[0] if drawn else None)
            first = first or axes
            recorded = (check.records["kind"] == kind) & (check.records["step"] == step)
            draw_panel(axes, check.records[recorded], of_panel, colours)
            axes.set_title(f"{kind}, step {step}", fontsize=10, y=1.0)
            axes.set_xlabel(check.axis if row == len(kinds) - 1 else "")
            axes.tick_params(labelbottom=row == len(kinds) - 1, labelleft=not drawn)
            drawn.append(axes)
        if drawn:
            make_headroom(drawn[0], 0.18)
            drawn[0].set_ylabel("spectral norm" if kind in WEIGHTS else "mean |entry| (l1)")
    free += [grid[len(kinds), column] for column in range(len(steps) * _rows_below(check))]
    if colours and free:
        whole = shown["module"].nunique() >= len(colours)
        draw_legend(figure.add_subplot(free.pop(0)), colours, whole, check.axis)
    if LOSS_MODULE in set(check.slopes["module"]) and free:
        beside = free.pop(0).subgridspec(1, 2, width_ratios=(4, 1))  # room for what its neighbour's scale says
        draw_loss(figure.add_subplot(beside[0]), check.records[check.records["module"] == LOSS_MODULE], check.axis)


def _rows_below(check: Judgement) -> int:
    """1 where legend and loss need a row of their own, else 0."""
    steps = pick_steps(sorted(check.slopes["step"].unique()))
    own = check.slopes[(check.slopes["module"] != LOSS_MODULE) & check.slopes["step"].isin(steps)]
    free = len(steps) * check.slopes["kind"].nunique() - len(own[["kind", "step"]].drop_duplicates())
    wanted = bool(len(own)) + (LOSS_MODULE in set(check.slopes["module"]))
    return int(free < wanted)


def pick_steps(steps: Sequence[int]) -> list[int]:
    """At most four steps for the panels: the first, the last and evenly spaced ones between."""
    if len(steps) <= MAX_PANELS:
        return list(steps)
    return [steps[i] for i in np.linspace(0, len(steps) - 1, MAX_PANELS).round().astype(int)]


def draw_panel(
    axes: Axes, curves: pd.DataFrame, slopes: pd.DataFrame, colours: Mapping[str, tuple[float, ...]]
) -> None:
    """Lines over widths of the modules in `slopes`, with the names and slopes of the worst."""
    lines = draw_lines(axes, curves[curves["module"].isin(set(slopes["module"]))], colours)
    ends = {module: float(line["middle"].iloc[-1]) for module, line in lines.items()}
    label_worst(axes, slopes, ends, colours)
