"""The picture of a history: the slopes that moved most over its entries."""

import numpy as np
from matplotlib.figure import Figure

from coordcheck.judge.baseline import KEYS
from coordcheck.judge.history import History
from coordcheck.report.figures.style import SMALL, depth_colours, plain

SHOWN = 10  # modules
SIZE = (11.0, 5.0)  # inches
LONGEST = 34  # characters of a name


def history_figure(history: History) -> Figure:
    """A line for each of the modules that moved most, their curve that did, with the 95 % interval at each entry."""
    entries = [*dict.fromkeys(history.slopes["entry"])]
    at = {name: i for i, name in enumerate(entries)}
    figure = Figure(figsize=SIZE)
    axes = figure.subplots()
    figure.subplots_adjust(0.07, 0.26, 0.66, 0.9)
    curves = [(key, rows) for key, rows in history.moving(SHOWN).groupby(KEYS, sort=False)]
    names = [f"{plain(module, LONGEST)}, {kind}, step {step}" for (module, kind, step), _ in curves]
    for name, (_, rows), colour in zip(names, curves, depth_colours(names).values(), strict=True):
        x = rows["entry"].map(at).to_numpy()
        half = (rows["high"] - rows["slope"]).where(np.isfinite(rows["high"]), 0.0).to_numpy()
        axes.errorbar(
            x, rows["slope"], half, fmt="o-", color=colour, markersize=4, linewidth=1.2, capsize=2, label=name
        )
    axes.set_xticks([*at.values()], [plain(name, LONGEST) for name in entries], rotation=30, ha="right", fontsize=SMALL)
    axes.set_xlim(-0.5, len(entries) - 0.5)
    axes.tick_params(labelsize=SMALL)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.set_ylabel("slope: exponent of width", fontsize=SMALL + 1)
    curves_in_all = len(history.slopes[KEYS].drop_duplicates())
    title = f"{len(entries)} entries, {curves_in_all} curves; of {len(curves)} modules the curve that moved most"
    axes.set_title(title, fontsize=SMALL + 3, loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=SMALL, frameon=False)
    return figure
