"""A panel of curves: size against width, one line per module."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.ticker import FixedLocator, NullLocator

from coordcheck.judge.verdict import FAILURES, worst_first
from coordcheck.records.schema import sizes
from coordcheck.report.figures.style import MARKS, SMALL, plain

LABELLED = 3
HUGE = 1e100


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


def label_worst(axes: Axes, slopes: pd.DataFrame, ends: Mapping[str, float]) -> None:
    """Writes the slopes of the worst curves beside their ends: those at fault, else the one nearest to its limit."""
    ranked = worst_first(slopes[slopes["module"].isin(list(ends)) & slopes["slope"].notna()])
    at_fault = ranked[ranked["verdict"].isin(FAILURES)].drop_duplicates("slope").head(LABELLED)
    chosen = at_fault if len(at_fault) else ranked.head(1)
    labels = {
        ends[row["module"]]: f"{MARKS[row['verdict']]} {plain(row['module'])} {row['slope']:+.2f}".strip()
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
        axes.plot(
            [], [], color=colours[module], marker="o", markersize=3, label=f" {plain(module)}".strip() or "(no name)"
        )
    axes.legend(loc="center left", fontsize=SMALL + 1, frameon=False, title="one line per module,\ncoloured by depth:")
    axes.text(
        0.02,
        0.02,
        "line: geometric mean over seeds\nband: smallest to largest seed\nlabel: slope, the exponent of width",
        transform=axes.transAxes,
        fontsize=SMALL + 1,
        va="bottom",
    )
