"""The picture of a comparison: the slope of each changed curve before and after."""

import numpy as np
from matplotlib.figure import Figure

from coordcheck.judge.comparison import Comparison
from coordcheck.records.names import printable
from coordcheck.report.figures.style import SMALL, VERDICT_COLOURS, plain, text_width

MOST_ROWS = 40
WIDTH = 11.0  # inches
BEFORE, AFTER = "#5b5b5b", VERDICT_COLOURS["fail"]


def comparison_figure(comparison: Comparison) -> Figure:
    """An arrow for each curve that changed, from its slope before to its slope after, with the change's interval."""
    changed = comparison.changed
    rows = changed[changed["change"].notna()].head(MOST_ROWS)
    height = 0.2 * max(len(rows), 3) + 1.6
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.subplots()
    labels = [plain(f"{row['module']}, {row['kind']}, step {row['step']}") for _, row in rows.iterrows()]
    left = min(text_width(labels) + 0.3, 5.0)
    figure.subplots_adjust(left / WIDTH, 0.75 / height, 1 - 1.7 / WIDTH, 1 - 0.75 / height)
    shown = f", the {len(rows)} largest" if len(changed) > len(rows) > 0 else ""
    word = {"fail": "CHANGED", "pass": "SAME", "inconclusive": "INCONCLUSIVE"}[comparison.verdict]
    counts = f"{word}   {len(changed)} of {len(comparison.changes)} curves{shown}"
    names = f"before: {plain(printable(comparison.before))}\nafter: {plain(printable(comparison.after))}"
    figure.text(0.15 / WIDTH, 1 - 0.1 / height, counts, fontsize=12, fontweight="bold", va="top")
    figure.text(0.15 / WIDTH, 1 - 0.36 / height, names, fontsize=SMALL + 1, va="top")
    at = np.arange(len(rows))
    axes.hlines(at, rows["before"], rows["now"], color="#bbbbbb", linewidth=1.5, zorder=1)
    axes.plot(rows["before"], at, "o", color=BEFORE, markersize=5, label="before", zorder=2)
    axes.plot(rows["now"], at, "D", color=AFTER, markersize=5, label="after", zorder=3)
    for y, (_, row) in zip(at, rows.iterrows(), strict=True):
        said = f"{row['change']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
        axes.annotate(said, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=SMALL)
    axes.set_yticks(at, labels, fontsize=SMALL)
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.tick_params(labelsize=SMALL)
    axes.axvline(0, color="#dddddd", linewidth=0.8, zorder=0)
    axes.grid(axis="x", alpha=0.25, linewidth=0.5)
    axes.set_xlabel("slope: exponent of width (right: its change, with the interval)", fontsize=SMALL + 1)
    if len(rows):
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.35 / height), ncols=2, fontsize=SMALL + 1, frameon=False
        )
    else:
        axes.text(0.5, 0.5, "no curve has another slope", transform=axes.transAxes, ha="center", fontsize=SMALL + 3)
    return figure
