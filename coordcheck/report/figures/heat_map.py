"""The slope of every module at every step: a number, a colour for its distance from what was expected, and a mark."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm, to_rgba
from matplotlib.figure import SubFigure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from coordcheck.judge.judgement import Judgement
from coordcheck.judge.verdict import FAILURES, worst_first
from coordcheck.records.schema import LOSS_MODULE
from coordcheck.report.figures.rows import Row, rows_of, worst_of_rows
from coordcheck.report.figures.style import MARKS, SMALL, VERDICT_COLOURS, background, ink, plain, text_width

ORIGIN = "►"
MEANINGS = (
    f"▲ explodes   ▼ vanishes   ∅ dead   ✕ nonfinite   ? inconclusive   {ORIGIN} a fault starts here\n"
    "white: as expected   grey 0: zero, as it must be   hatched: not recorded"
)
MAX_DEVIATION, FAR = 1.0, 0.65  # of a slope from its range: where colours end, and from where on they are dark
MOST_COLUMNS = 36
CELL, CELL_HEIGHT = 0.44, 0.165  # inches
ZERO, BROKEN = "#c8c8c8", "#1f1f1f"  # cells without a slope: exactly zero as it must be; dead or not finite
TOP, BOTTOM = 0.95, 1.5  # inches above and below


class HeatMaps:
    """The right half of a check's picture: a heat map for each kind, rows of modules, columns of steps.

    The modules where faults start are marked beside their names, and the curves that show them framed. Where there are
    alignment exponents, they are the last column. The loss stands below the modules, on its own.
    """

    def __init__(self, check: Judgement, kinds: Sequence[str], colours: Mapping[str, tuple[float, ...]]):
        self.check, self.kinds, self.colours = check, kinds, colours
        self.origins = [finding for finding in check.findings if finding.fault]
        self.starts = {finding.module for finding in self.origins}
        self.worst = worst_first(check.slopes)
        modules = list(check.slopes.sort_values("order", kind="stable")["module"].unique())
        self.rows = rows_of([module for module in modules if module != LOSS_MODULE], self.starts)
        self.shown = worst_of_rows(self.worst, self.rows)
        if LOSS_MODULE in modules:
            self.rows += [Row((), "")] * bool(self.rows) + [Row((LOSS_MODULE,), LOSS_MODULE)]
        self.labels = [self._label(row) for row in self.rows]
        self.steps = {kind: self._steps_of(kind) for kind in kinds}

    def size(self) -> tuple[float, float]:
        """Width and height that these need, inches."""
        columns = sum(map(len, self.steps.values())) + bool(len(self.check.alignments))
        return self._margin() + CELL * columns + 0.3 * len(self.kinds), CELL_HEIGHT * len(self.rows) + TOP + BOTTOM

    def draw(self, figure: SubFigure, width: float, height: float) -> None:
        """Draws all of them on a part of a figure of that size in inches."""
        ratios = [len(steps) for steps in self.steps.values()] + [1] * bool(len(self.check.alignments))
        panels = figure.subplots(1, len(ratios), squeeze=False, width_ratios=ratios)[0]
        for axes in panels[1:]:
            axes.set_yticks([])
        images = [
            draw_heat_map(axes, self._of(kind), self.rows, self.steps[kind])
            for axes, kind in zip(panels, self.kinds, strict=False)
        ]
        if len(self.check.alignments):
            draw_alignments(panels[-1], self.check.alignments, self.rows)
        for axes, kind in zip(panels, self.kinds, strict=False):
            self._frame_origins(axes, kind)
        self._name_rows(panels[0])
        margin = min(self._margin(), 0.6 * width)
        figure.subplots_adjust(margin / width, BOTTOM / height, 1 - 0.15 / width, 1 - TOP / height, 0.04)
        place = figure.add_axes((margin / width, 0.86 / height, 1 - (margin + 0.4) / width, 0.16 / height))
        bar = figure.colorbar(images[0], cax=place, orientation="horizontal")
        bar.set_label(f"distance of the slope from the expected range\n{MEANINGS}", fontsize=SMALL + 1)
        bar.ax.tick_params(labelsize=SMALL)

    def _of(self, kind: str) -> pd.DataFrame:
        return self.worst[self.worst["kind"] == kind]

    def _margin(self) -> float:
        return text_width(self.labels) + 0.3

    def _steps_of(self, kind: str) -> list[int]:
        """All steps, or where they are many the first, the last, evenly spaced ones, and those where faults show."""
        steps = sorted(int(step) for step in self.check.slopes[self.check.slopes["kind"] == kind]["step"].unique())
        room = max(MOST_COLUMNS // len(self.kinds), 2)
        if len(steps) <= room:
            return steps
        shown = {steps[i] for i in np.linspace(0, len(steps) - 1, room).round().astype(int)}
        return sorted(
            shown | {finding.step for finding in self.origins if finding.kind == kind and finding.step is not None}
        )

    def _label(self, row: Row) -> str:
        """The name of a row; of several modules the one with the worst curve too, if that is at fault."""
        label = f"{ORIGIN} " * bool(self.starts & {*row.modules}) + plain(row.label())
        if len(row.modules) < 2:
            return label
        worst = self.worst[self.worst["module"].isin(row.modules)].iloc[0]
        if worst["verdict"] not in FAILURES:
            return label
        return f"{label}: {MARKS[worst['verdict']]} {plain(worst['module'].removeprefix(f'{row.name}.'))}"

    def _name_rows(self, axes: Axes) -> None:
        """The names beside the rows, in the colours of their lines; red and bold where a fault starts."""
        axes.set_yticks(range(len(self.rows)), self.labels, fontsize=SMALL)
        for tick, row in zip(axes.get_yticklabels(), self.rows, strict=True):
            if self.starts & {*row.modules}:
                tick.set(color=ink(VERDICT_COLOURS["fail"]), fontweight="bold")
            elif row.modules and row.modules[0] in self.colours:
                tick.set(color=ink(self.colours[row.modules[0]]))

    def _frame_origins(self, axes: Axes, kind: str) -> None:
        """Frames the curves of one kind's heat map that show where faults start."""
        row_of = {module: i for i, row in enumerate(self.rows) for module in row.modules}
        for finding in self.origins:
            if finding.kind == kind and finding.step in self.steps[kind] and finding.module in row_of:
                corner = self.steps[kind].index(finding.step) - 0.5, row_of[finding.module] - 0.5
                axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=1.4))


def draw_heat_map(axes: Axes, slopes: pd.DataFrame, rows: Sequence[Row], steps: Sequence[int]) -> AxesImage:
    """One kind's heat map.

    Args:
        axes: Where to.
        slopes: Of one kind, worst first.
        rows: From top to bottom; of several modules the worst curve is shown.
        steps: From left to right.
    """
    axes.set_title(f"slope of\n{slopes['kind'].iloc[0]}", fontsize=10, y=1.0)
    shown = worst_of_rows(slopes[slopes["step"].isin(steps)], rows)
    beyond = shown["slope"] - shown["slope"].clip(shown["expected_low"], shown["expected_high"])
    distance = np.full((len(rows), len(steps)), np.nan)
    flat = np.zeros((len(rows), len(steps), 4))  # where there is no slope to colour
    for curve in shown.assign(beyond=beyond).to_dict("records"):
        at, zero = (curve["row"], steps.index(curve["step"])), curve["n_zero"] == curve["n_runs"]
        distance[at], colour = curve["beyond"], "black"
        if curve["verdict"] in ("dead", "nonfinite"):
            flat[at], colour = to_rgba(BROKEN), "white"
        elif np.isnan(curve["beyond"]):
            flat[at] = to_rgba(ZERO if zero else "white")
        elif abs(curve["beyond"]) > FAR:
            colour = "white"
        axes.text(
            at[1],
            at[0],
            cell_text(curve["verdict"], curve["slope"], zero),
            ha="center",
            va="center",
            fontsize=SMALL - 1,
            fontweight="bold" if curve["verdict"] in FAILURES else "normal",
            color=colour,
        )
    hatch_what_was_not_recorded(axes, [i for i, row in enumerate(rows) if row.modules], len(steps))
    image = axes.imshow(
        distance,
        cmap="PuOr_r",
        norm=TwoSlopeNorm(0.0, -MAX_DEVIATION, MAX_DEVIATION),
        aspect="auto",
        interpolation="nearest",
        zorder=1,
    )
    axes.imshow(flat, aspect="auto", interpolation="nearest", zorder=1)
    label_steps(axes, steps)
    return image


def cell_text(verdict: str, slope: float, zero: bool) -> str:
    """What a cell says: the mark of its verdict, and the slope or that it is zero."""
    value = "0" if zero else "" if np.isnan(slope) else f"{slope + 0.0:+.2f}"
    return f"{MARKS[verdict]} {value}".strip()


def hatch_what_was_not_recorded(axes: Axes, rows: Sequence[int], columns: int) -> None:
    """The ground of a heat map, which shows through where nothing covers it; gaps between rows stay empty."""
    axes.set_facecolor(background())
    for first, last in _stretches(rows):
        axes.add_patch(
            Rectangle(
                (-0.5, first - 0.5),
                columns,
                last - first + 1,
                facecolor=background(),
                edgecolor="#9a9a9a",
                hatch="////",
                linewidth=0,
                zorder=0,
            )
        )


def _stretches(places: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of neighbouring places, the first and the last of each."""
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and runs[-1][1] == place - 1:
            runs[-1] = runs[-1][0], place
        else:
            runs.append((place, place))
    return runs


def label_steps(axes: Axes, steps: Sequence[int]) -> None:
    """Steps below the columns."""
    axes.set_xticks(range(len(steps)), [f"{step}" for step in steps], fontsize=SMALL)
    axes.set_xlabel("step", fontsize=SMALL + 1)
    axes.tick_params(length=0)


def draw_alignments(axes: Axes, alignments: pd.DataFrame, rows: Sequence[Row]) -> None:
    """The alignment exponent of each layer at the last step; nothing is expected of it, so the colour is its size.

    A row of several layers shows the largest.
    """
    step = int(alignments["step"].max())
    last = alignments[alignments["step"] == step].set_index("module")["alignment"]
    column = np.array([last.reindex(list(row.modules)).max() for row in rows], dtype=float)
    hatch_what_was_not_recorded(axes, [i for i, row in enumerate(rows) if row.modules], 1)
    axes.imshow(column[:, None], cmap="Blues", vmin=0.0, vmax=2.0, aspect="auto", interpolation="nearest", zorder=1)
    axes.set_title("align-\nment", fontsize=10)
    label_steps(axes, [step])
    for place in np.flatnonzero(~np.isnan(column)):
        axes.text(0, int(place), f"{column[place]:.2f}", ha="center", va="center", fontsize=SMALL - 1, color="black")
