"""The picture of a check: curves on the left, the slope of every module and step on the right."""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from coordcheck.judge.finding import Finding
from coordcheck.judge.judgement import Judgement
from coordcheck.judge.verdict import FAILURES
from coordcheck.records.schema import WEIGHTS
from coordcheck.report.figures.curves import draw_legend, draw_lines, label_worst, make_headroom
from coordcheck.report.figures.style import MARKS, SMALL, VERDICT_COLOURS, depth_colours, plain, text_width

ORIGIN = "►"
MEANINGS = f"▲ explodes   ▼ vanishes   ∅ dead   ✕ nonfinite   ? inconclusive   {ORIGIN} a fault starts here"
MAX_PANELS = 4
LONGEST_TITLE = 250  # characters
MAX_DEVIATION = 1.0


def report_figure(check: Judgement) -> Figure:
    """Curves of size against width on the left, slopes of every module and step on the right."""
    kinds = list(dict.fromkeys(check.slopes["kind"]))
    modules = check.slopes["module"].nunique()
    height = max(3.4 * len(kinds) + 1.2, 0.165 * modules + 2.2)
    # places are computed here, once: a layout engine draws the whole figure to measure it, three times over
    figure = Figure(figsize=(19, height))
    draw_title(figure, check)
    left, right = cast(Sequence[SubFigure], figure.subfigures(1, 2, width_ratios=[1.45, 1]))
    draw_curves(left, check.records, check.slopes, kinds)
    origins = [finding for finding in check.findings if finding.fault]
    draw_heat_maps(right, check.slopes, kinds, origins, check.alignments)
    wide, narrow = 19 * 1.45 / 2.45, 19 / 2.45
    left.subplots_adjust(0.7 / wide, 0.55 / height, 1 - 0.15 / wide, 1 - 0.8 / height, 0.06, 0.25)
    labels = min(text_width(map(plain, check.slopes["module"].unique())) + 0.35, 0.6 * narrow)
    right.subplots_adjust(labels / narrow, 1.35 / height, 1 - 0.15 / narrow, 1 - 0.95 / height, 0.04)
    return figure


def draw_title(figure: Figure, check: Judgement) -> None:
    """The verdict, and what was checked."""
    figure.suptitle(
        f"{check.verdict.upper()}   {plain(check.cell(), LONGEST_TITLE)}",
        fontsize=14,
        fontweight="bold",
        color=VERDICT_COLOURS[check.verdict],
        y=1 - 0.15 / figure.get_figheight(),
        va="top",
    )


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
                axes.set_title(f"{kind}, step {step}", fontsize=10, y=1.0)
                axes.set_xlabel("width" if row == len(kinds) - 1 else "")
                drawn.append(axes)
            elif explained:
                axes.axis("off")
            else:
                draw_legend(axes, colours)
                explained = True
        make_headroom(drawn[0], 0.18)
        drawn[0].set_ylabel("spectral norm" if kind in WEIGHTS else "mean |entry| (l1)")
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


def draw_heat_maps(
    figure: SubFigure,
    slopes: pd.DataFrame,
    kinds: Sequence[str],
    origins: Sequence[Finding],
    alignments: pd.DataFrame,
) -> None:
    """Module x step: the slope as a number, its distance from the expected range as a colour, verdicts as marks.

    The modules where faults start are marked beside their names, and the curves that show them framed. Where there are
    alignment exponents, they are the last column.
    """
    modules = list(slopes.sort_values("order", kind="stable")["module"].unique())
    steps = [slopes[slopes["kind"] == kind]["step"].nunique() for kind in kinds]
    steps += [1] * bool(len(alignments))
    panels = figure.subplots(1, len(steps), sharey=True, squeeze=False, width_ratios=steps)[0]
    images = [
        draw_heat_map(axes, slopes[slopes["kind"] == kind], modules) for axes, kind in zip(panels, kinds, strict=False)
    ]
    if len(alignments):
        draw_alignments(panels[-1], alignments, modules)
    starts = {finding.module for finding in origins}
    names = [f"{ORIGIN} {plain(m)}" if m in starts else plain(m) for m in modules]
    panels[0].set_yticks(range(len(modules)), names, fontsize=SMALL)
    for tick, module in zip(panels[0].get_yticklabels(), modules, strict=True):
        if module in starts:
            tick.set(color=VERDICT_COLOURS["fail"], fontweight="bold")
    for axes, kind in zip(panels, kinds, strict=False):
        frame_origins(axes, slopes[slopes["kind"] == kind], modules, [f for f in origins if f.kind == kind])
    height = figure.get_figure(root=True).get_figheight()
    place = figure.add_axes((0.25, 0.72 / height, 0.65, 0.16 / height))
    bar = figure.colorbar(images[0], cax=place, orientation="horizontal")
    bar.set_label(f"distance from the expected range\n{MEANINGS}", fontsize=SMALL + 1)
    bar.ax.tick_params(labelsize=SMALL)


def draw_heat_map(axes: Axes, slopes: pd.DataFrame, modules: Sequence[str]) -> AxesImage:
    """One kind's heat map."""
    axes.set_title(f"slope of\n{slopes['kind'].iloc[0]}", fontsize=10, y=1.0)
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
        )
    return image


def draw_alignments(axes: Axes, alignments: pd.DataFrame, modules: Sequence[str]) -> None:
    """The alignment exponent of each layer at the last step; nothing is expected of it, so the colour is its size."""
    last = alignments[alignments["step"] == alignments["step"].max()].set_index("module")["alignment"]
    column = last.reindex(list(modules)).to_numpy(dtype=float)
    axes.imshow(column[:, None], cmap="Blues", vmin=0.0, vmax=2.0, aspect="auto", interpolation="nearest")
    axes.set_title("align-\nment", fontsize=10)
    axes.set_facecolor("#e6e6e6")
    axes.set_xticks([0], [f"{alignments['step'].max()}"], fontsize=SMALL)
    axes.set_xlabel("step", fontsize=SMALL + 1)
    axes.tick_params(length=0)
    for place in np.flatnonzero(~np.isnan(column)):
        axes.text(0, int(place), f"{column[place]:.2f}", ha="center", va="center", fontsize=SMALL - 1, in_layout=False)


def frame_origins(axes: Axes, slopes: pd.DataFrame, modules: Sequence[str], origins: Sequence[Finding]) -> None:
    """Frames the curves of one kind's heat map that show where faults start."""
    steps = sorted(slopes["step"].unique())
    for finding in origins:
        corner = steps.index(finding.step) - 0.5, modules.index(finding.module) - 0.5
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=1.4))
