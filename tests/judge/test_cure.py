"""The table of a cure: patterns, sums, files, and what it refuses."""

import re

import pytest

from coordcheck.judge.cure import CureTable, Entry, Exponents, rounded

HIDDEN = Exponents(std=-0.5, lr=-1.0)
TABLE = CureTable(
    64,
    (Entry(("blocks.0.w", "blocks.1.w"), "hidden", HIDDEN), Entry(("head.weight",), "readout", Exponents(-1.0, -1.0))),
    {"head": -1.0},
    ("not mended: x",),
)


def test_what_is_written_is_read():
    assert CureTable.from_dict(TABLE.to_dict()) == TABLE


def test_numbers_between_dots_become_patterns_where_all_agree():
    names = ["blocks.0.w", "blocks.1.w", "blocks.0.v1.w", "head.weight"]
    table = TABLE.generalized(names)
    assert table.entries[0].parameters == ("blocks.*.w",)
    assert table.exponents("blocks.11.w") == HIDDEN  # of a deeper model
    assert not table.exponents("blocks.1.v.w") and not table.exponents("blocks.w") and not table.exponents("blocks.x.w")
    lonely = CureTable(64, (Entry(("blocks.0.w",), "hidden", HIDDEN),)).generalized(names)
    assert lonely.entries[0].parameters == ("blocks.0.w",)
    assert not lonely.exponents("blocks.1.w")


def test_a_second_cure_is_added_to_the_first():
    more = CureTable(64, (Entry(("blocks.0.w",), "hidden", Exponents(std=0.5, lr=-0.5)),), {"head": 0.5})
    both = TABLE.plus(more)
    assert both.exponents("blocks.0.w") == Exponents(0.0, -1.5)
    assert both.exponents("blocks.1.w") == HIDDEN
    assert both.multipliers == {"head": -0.5}


def test_what_cancels_is_no_change():
    back = CureTable(64, (Entry(("head.weight",), "readout", Exponents(1.0, 1.0)),))
    assert not TABLE.plus(back).exponents("head.weight")
    assert all("head.weight" not in entry.parameters for entry in TABLE.plus(back).entries)


def test_the_table_in_words():
    assert TABLE.describe().splitlines() == [
        "hidden (blocks.0.w, blocks.1.w): std / sqrt(width_mult), lr / width_mult",
        "readout (head.weight): std / width_mult, lr / width_mult",
        "what head reads: / width_mult",
        "not mended: x",
    ]
    assert CureTable(64).describe() == "nothing to change" and not CureTable(64) and TABLE
    assert TABLE.changes == 5


def test_of_a_weight_of_few_entries_the_simplest_exponent_is_meant():
    assert rounded(-0.34, -0.55, -0.13) == -0.5 and rounded(-0.34, -0.38, -0.3) == -0.34
    assert rounded(0.2, 0.11, 0.29) == 0.25 and rounded(-0.34) == -0.34


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is a mapping"),
        ([], "is a mapping"),
        ({"version": 1}, "is a mapping"),
        ({"version": 2, "base_width": 64}, "has version 2"),
        ({"version": 1, "base_width": True}, "`base_width` is a positive integer; got True"),
        ({"version": 1, "base_width": 0}, "`base_width` is a positive integer; got 0"),
        ({"version": 1, "base_width": 64, "entries": [{"parameters": "x", "role": "hidden"}]}, "entry 0: `parameters`"),
        ({"version": 1, "base_width": 64, "entries": [{"parameters": ["x"], "role": "a", "rate": 1}]}, "entry 0 is a"),
        (
            {"version": 1, "base_width": 64, "entries": [{"parameters": ["x"], "role": "a", "std": float("nan")}]},
            "entry 0: `std` is an exponent, a finite number; got nan",
        ),
        ({"version": 1, "base_width": 64, "multipliers": {"head": "x"}}, "head is an exponent"),
        ({"version": 1, "base_width": 64, "multipliers": [1]}, "`multipliers` are exponents by module"),
    ],
)
def test_what_is_no_cure_is_refused(content, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        CureTable.from_dict(content, "cure.yaml")
