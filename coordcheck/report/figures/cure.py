"""The picture of a cure: sizes against width before it on the left, with it on the right, and the table below."""

import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from coordcheck.judge.cure import CureTable
from coordcheck.judge.judgement import Judgement
from coordcheck.judge.verdict import counts
from coordcheck.records.schema import WEIGHTS
from coordcheck.report.figures.check import draw_panel
from coordcheck.report.figures.curves import make_headroom
from coordcheck.report.figures.style import VERDICT_COLOURS, depth_colours, plain, text_width

LETTERS = 118  # of the table's text in a line
LINES = 12  # of the table's text, at most
WIDTH, ROW, LINE = 11.0, 2.9, 0.19  # inches
BOLD = 1.2  # how much wider letters of that weight are
CAPTION = "one line per module, dark input to bright output; label: the steepest slopes, exponents of width"


def cure_figure(table: CureTable, before: Judgement, after: Judgement) -> Figure:
    """A row for each kind at its last step, with the same scale on both sides.

    Args:
        table: The cure.
        before: The check without it.
        after: The check with it.
    """
    lines = table_lines(table)
    kinds = [kind for kind in dict.fromkeys(before.slopes["kind"]) if kind in set(after.slopes["kind"])]
    bottom, top = 0.55 + LINE * (len(lines) + 1), 1.25
    height = ROW * len(kinds) + bottom + top
    figure = Figure(figsize=(WIDTH, height))
    panels = figure.subplots(len(kinds), 2, sharex=True, sharey="row", squeeze=False)
    for kind, row in zip(kinds, panels, strict=True):
        for check, axes in zip((before, after), row, strict=True):
            _draw(axes, check, kind)
        make_headroom(row[0], 0.24)
        row[0].set_ylabel("spectral norm" if kind in WEIGHTS else "mean |entry| (l1)")
    for axes in panels[-1]:
        axes.set_xlabel("width")
    figure.subplots_adjust(0.08, bottom / height, 0.985, 1 - top / height, 0.05, 0.24)
    figure.suptitle(
        plain(str(before.records.iloc[0].get("model", "model"))), fontsize=13, y=1 - 0.12 / height, va="top"
    )
    for check, name, axes in ((before, "before", panels[0, 0]), (after, "with the cure", panels[0, 1])):
        place, said = axes.get_position(), f"{name}: {headline(check)}"
        figure.text(
            (place.x0 + place.x1) / 2,
            1 - 0.48 / height,
            said,
            ha="center",
            va="top",
            fontsize=min(11.0, place.width * WIDTH / text_width([said], BOLD)),
            fontweight="bold",
            color=VERDICT_COLOURS[check.verdict],
        )
    figure.text(0.53, 1 - 0.78 / height, CAPTION, fontsize=8, ha="center", va="top")
    text = "\n".join([f"the cure; width_mult is width / {table.base_width}", *lines])
    figure.text(0.08, 0.12 / height, text, fontsize=9, family="monospace", va="bottom")
    return figure


def headline(check: Judgement) -> str:
    """The verdict, and how many curves are at fault or undecided."""
    at_fault, undecided = counts(check.slopes)
    said = [f"{at_fault} of {len(check.slopes)} curves at fault"] + [f"{undecided} undecided"] * (undecided > 0)
    return f"{check.verdict.upper()}, {', '.join(said)}"


def table_lines(table: CureTable) -> list[str]:
    """The table in words, wrapped; what does not fit is in ``cure.yaml``."""
    lines = [
        line
        for entry in table.describe().splitlines()
        for line in textwrap.wrap(plain(entry, 2000), LETTERS, subsequent_indent="    ")
    ]
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], "..."]


def _draw(axes: Axes, check: Judgement, kind: str) -> None:
    """One kind of a check at its last step."""
    step = int(check.slopes[check.slopes["kind"] == kind]["step"].max())
    colours = depth_colours(list(check.slopes.sort_values("order")["module"].unique()))
    records, slopes = (
        frame[(frame["kind"] == kind) & (frame["step"] == step)] for frame in (check.records, check.slopes)
    )
    draw_panel(axes, records, slopes, colours)
    axes.set_title(f"{kind}, step {step}", fontsize=10)
