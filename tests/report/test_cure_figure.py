"""The data behind the picture of a cure."""

import pytest

from conftest import power, synthetic
from coordcheck import CoordCheck
from coordcheck.judge.cure import CureTable, Entry, Exponents
from coordcheck.report.figures.cure import LETTERS, LINES, cure_figure, headline, table_lines
from coordcheck.report.figures.style import VERDICT_COLOURS

TABLE = CureTable(64, (Entry(("fc.weight",), "hidden", Exponents(-0.5, -1.0)),), {"head": -1.0})


def check_of(gate, exponent, widths):
    curves = {(m, kind, 1): power(exponent, 0.01) for m in ("fc", "a$b$") for kind in ("activation", "delta")}
    return CoordCheck.from_records(synthetic(curves, widths), gate)


@pytest.fixture
def checks(gate):
    return check_of(gate, 0.9, (64, 128, 256)), check_of(gate, 0.0, (64, 128, 256, 512))


def test_before_and_after_stand_side_by_side_at_one_scale(checks):
    figure = cure_figure(TABLE, *checks)
    figure.draw_without_rendering()
    rows = [figure.axes[:2], figure.axes[2:]]
    assert [[axes.get_title() for axes in row] for row in rows] == [["activation, step 1"] * 2, ["delta, step 1"] * 2]
    assert all(left.get_ylim() == right.get_ylim() and left.get_xlim() == right.get_xlim() for left, right in rows)
    assert "▲ fc +0.90" in rows[0][0].texts[0].get_text() and "▲" not in rows[0][1].texts[0].get_text()
    # each panel shows the sizes of its own check
    segments = [rows[0][side].collections[1].get_segments()[0] for side in (0, 1)]
    assert [len(segment) for segment in segments] == [3, 4]
    said = {text.get_text(): text.get_color() for text in figure.texts}
    assert said["before: FAIL, 4 of 4 curves at fault"] == VERDICT_COLOURS["fail"]
    assert said["with the cure: PASS, 0 of 4 curves at fault"] == VERDICT_COLOURS["pass"]
    (table,) = [text for text in said if text.startswith("the cure; width_mult is width / 64")]
    assert "hidden (fc.weight): std / sqrt(width_mult), lr / width_mult\nwhat head reads: / width_mult" in table


@pytest.mark.parametrize("long", [False, True])
def test_nothing_overlaps(checks, gate, long):
    curves = {(f"m{i}", "activation", 1): power(0.0, 0.5) for i in range(120)}
    undecided = CoordCheck.from_records(synthetic(curves, (64, 128, 256)), gate)
    figure = cure_figure(TABLE, *([undecided] * 2 if long else checks))
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.texts]
    boxes += [axes.get_tightbbox() for axes in figure.axes]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a.overlaps(b)]


def test_undecided_curves_are_counted(checks, gate):
    assert headline(check_of(gate, 0.1, (64, 128, 256))) == "INCONCLUSIVE, 0 of 4 curves at fault, 2 undecided"


def test_a_long_table_is_cut():
    names = tuple(f"model.layers.{i}.with.a.name.that.is.long.and.longer.still.weight" for i in range(3))
    entries = tuple(Entry(names, f"role {i}", Exponents(-0.5)) for i in range(9))
    lines = table_lines(CureTable(64, entries))
    assert len(lines) == LINES and lines[-1] == "..." and max(map(len, lines)) <= LETTERS
