"""A panel of curves: size against width, one line per module."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from coordcheck.judge.verdict import FAILURES, worst_first
from coordcheck.records.schema import sizes
from coordcheck.report.figures.style import MARKS, SMALL, background, depth_colours, ink, plain

LABELLED = 3
IN_LEGEND, IN_CORNER, IN_PANEL = 6, 34, 28  # names in a legend; characters of a name that fit there, and in a panel
HUGE = 1e100
LINE_HEIGHT = 1.35  # distance of lines of text, in sizes of the font


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
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")  # a formula takes a hundred times as long to draw
    axes.yaxis.set_minor_locator(NullLocator())
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


def label_worst(
    axes: Axes, slopes: pd.DataFrame, ends: Mapping[str, float], colours: Mapping[str, tuple[float, ...]]
) -> None:
    """Writes the slopes of the worst curves, highest line first: those at fault, else the one nearest to its limit.

    Args:
        axes: Of a panel.
        slopes: Of its curves.
        ends: Where each module's line ends.
        colours: Of the lines, which are those of their labels.
    """
    ranked = worst_first(slopes[slopes["module"].isin(list(ends)) & slopes["slope"].notna()])
    at_fault = ranked[ranked["verdict"].isin(FAILURES)].drop_duplicates("slope").head(LABELLED)
    chosen = at_fault if len(at_fault) else ranked.head(1)
    highest_first = sorted(chosen.to_dict("records"), key=lambda row: ends[row["module"]], reverse=True)
    for number, row in enumerate(highest_first):
        axes.annotate(
            f"{MARKS[row['verdict']]} {plain(row['module'], IN_PANEL)} {row['slope']:+.2f}".strip(),
            (0.03, 0.97),
            xycoords="axes fraction",
            xytext=(0, -number * LINE_HEIGHT * SMALL),
            textcoords="offset points",
            va="top",
            fontsize=SMALL,
            fontweight="bold" if len(at_fault) else "normal",
            color=ink(colours[row["module"]]),
            bbox={"boxstyle": "round,pad=0.15", "facecolor": background(), "edgecolor": "none", "alpha": 0.75},
        )


def make_headroom(axes: Axes, share: float) -> None:
    """Adds `share` of its height above what a logarithmic panel shows, for text; panels that share y move along."""
    low, high = (float(end) for end in axes.get_ylim())
    # a panel of zeros or of a diverged run has nothing to make room above
    if 0 < low < high < HUGE:
        axes.set_ylim(low, high * (high / low) ** share)


def draw_legend(axes: Axes, colours: Mapping[str, tuple[float, ...]], whole: bool = True, axis: str = "width") -> None:
    """Fills a panel with what lines and colours mean; not `whole` where some modules have no line."""
    axes.axis("off")
    modules = list(colours)
    picked = [modules[i] for i in np.unique(np.linspace(0, len(modules) - 1, IN_LEGEND).round().astype(int))]
    _legend_of(axes, {plain(module, IN_CORNER).strip() or "(no name)": colours[module] for module in picked})
    lines = "one line per module" if whole else "the worst of each row on the right"
    axes.get_legend().set_title(f"{lines},\nfrom input to output:")  # type: ignore[union-attr]
    axes.text(
        0.02,
        0.02,
        f"line: geometric mean over seeds\nband: smallest to largest seed\nlabel: slope, the exponent of {axis}",
        transform=axes.transAxes,
        fontsize=SMALL + 1,
        va="bottom",
    )


def _legend_of(axes: Axes, colours: Mapping[str, tuple[float, ...]], place: str = "center left") -> None:
    """Names in the colours of their lines."""
    lines = [Line2D([], [], color=to_rgba(colour), marker="o", markersize=3) for colour in colours.values()]  # type: ignore[arg-type]
    names = [f" {name}" if name.startswith("_") else name for name in colours]  # without it, it would be left out
    legend = axes.legend(lines, names, loc=place, fontsize=SMALL + 1, frameon=False)  # type: ignore[call-overload]
    for text, colour in zip(legend.get_texts(), colours.values(), strict=True):
        text.set_color(ink(colour))


def draw_loss(axes: Axes, records: pd.DataFrame, axis: str = "width") -> None:
    """The loss against width or depth, one line per step."""
    curves = records.assign(module=[f"step {step}" for step in records["step"]])
    colours = depth_colours([f"step {step}" for step in sorted(records["step"].unique())])
    lines = draw_lines(axes, curves, colours)
    if lines:
        axes.set_yscale("linear")
        axes.margins(y=0.1)
        axes.autoscale_view()
    shown = list(colours)[:: max(1, -(-len(colours) // IN_LEGEND))]
    _legend_of(axes, {step: colours[step] for step in shown}, "best")
    box = axes.get_legend().get_frame()  # type: ignore[union-attr]
    box.set(visible=True, facecolor=background(), edgecolor="none", alpha=0.8)
    axes.set_title("loss", fontsize=10, y=1.0)
    axes.set_xlabel(axis)
