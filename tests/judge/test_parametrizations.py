"""The rows of parametrizations: derived by hand from how an update acts, and held against the sources' numbers."""

import math

import pytest

from coordcheck.config.schema import Expect, Parametrization
from coordcheck.judge.parametrizations import RULES, TABLES
from coordcheck.judge.theory import expected, forms
from coordcheck.records.verdict import VERDICT_SCHEMA

ROLES = ("input", "hidden", "readout")


def moved(row, role, update):
    """The exponent of an update's effect, by counting: the step of an entry, times the terms that are summed."""
    i = ROLES.index(role)
    a, b, c = row.multipliers[i], row.stds[i], row.rates[update][i]
    passed_on = row.multipliers[2] + row.stds[2]  # by the readout, of a gradient of size 1
    if update == "muon" and role == "hidden":
        return a + c  # an isometry
    entry = {
        "adam": c,
        "sgd": c + a + (0 if role == "readout" else passed_on),
        "adafactor": c + b,
        "muon": c - 0.5,  # of a matrix with a fixed side and orthogonal rows or columns
    }[update]
    return a + entry + (0 if role == "input" else 1)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("update", RULES)
def test_the_effect_of_an_update_is_counted(name, role, update):
    row = TABLES[name]
    if update not in row.rates:
        assert row.effective_update(role, update) is None
        return
    assert row.effective_update(role, update) == pytest.approx(moved(row, role, update))
    design = {("umup", "input"): -0.5}
    if name != "sp":
        assert moved(row, role, update) == design.get((name, role), 0.0)


# measured at one learning rate in standard parametrization: MLP, widths 64 to 512, 5 seeds, step 1
@pytest.mark.parametrize(
    ("update", "measured"), [("adam", (0.0, 0.97, 1.01)), ("sgd", (-0.50, 0.44, 1.07))], ids=["adam", "sgd"]
)
def test_standard_parametrization_moves_as_was_measured(update, measured):
    limits = [TABLES["sp"].effective_update(role, update) for role in ROLES]
    assert limits == pytest.approx(measured, abs=0.08)


@pytest.mark.parametrize("name", [name for name in TABLES if name not in ("mup", "sp")])
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("update", "slope"), [("adam", 1), ("sgd", 2), ("muon", 1)])
def test_a_row_judges_every_way_to_write_it(name, role, update, slope):
    row = TABLES[name]
    m, std = row.multiplier(role), row.stds[ROLES.index(role)]
    for t in (-0.5, 0.0, 0.25):
        (form,) = forms(name, role, update, multiplier=m + t)
        assert form.std == std - t
        if update in row.rates:
            assert form.lr == row.rates[update][ROLES.index(role)] - slope * t
        else:
            assert math.isnan(form.lr)


def test_adafactor_goes_by_the_weight_that_is_there():
    (form,) = forms("mean_field", "hidden", "adafactor", multiplier=-0.5, std=0.0)
    assert form.lr == TABLES["mean_field"].rates["adafactor"][1]
    (form,) = forms("mean_field", "hidden", "adafactor", multiplier=0.0, std=-0.5)
    assert form.lr == TABLES["mean_field"].rates["adafactor"][1]


@pytest.mark.parametrize(
    ("name", "start"), [("ntk", 0.0), ("sp_full_align", 0.0), ("mean_field", -0.5), ("umup", -0.5), ("completep", -0.5)]
)
def test_logits_start_as_the_row_makes_them(name, start):
    at_start = expected(name, "readout", "activation", 0, "constant")
    assert (at_start.low, at_start.high) == (start, start)
    later = expected(name, "readout", "activation", 3, "constant")
    assert (later.low, later.high) == (start, 0.0)
    assert expected(name, "readout", "activation", 0, "fan_in").high == min(start, TABLES[name].multipliers[2])


@pytest.mark.parametrize("role", ["projection", "fixed", "unknown"])
def test_what_no_row_names_keeps_its_size(role):
    for kind in ("delta", "effective_update"):
        found = expected("ntk", role, kind, 1, "constant")
        assert (found.low, found.high) == (0.0, 0.0)


def test_a_readout_at_zero_passes_less_on_to_sgd():
    slow = expected("ntk", "hidden", "effective_update", 2, "zero", update="sgd")
    assert (slow.low, slow.high) == (-0.5, 0.0)
    assert expected("ntk", "hidden", "effective_update", 2, "constant", update="sgd").low == 0.0
    assert expected("mean_field", "hidden", "effective_update", 2, "zero", update="sgd").low == 0.0


def test_an_input_of_umup_may_move_less():
    for kind in ("delta", "effective_update"):
        assert expected("umup", "input", kind, 1).high == -0.5
    behind = expected("umup", "hidden", "delta", 1)
    assert (behind.low, behind.high) == (-0.5, 0.0)
    assert math.isinf(expected("umup", "hidden", "delta", 1, update="sgd").high)


@pytest.mark.parametrize("name", ["sp_full_align", "mean_field"])
def test_attention_logits_follow_the_scale_of_the_row(name):
    growing = expected(name, "attention_logits", "activation", 2, heads_grow=True)
    aligned = 0.5 if TABLES[name].attention == -0.5 else 0.0
    assert (growing.low, growing.high) == (aligned - 0.5, aligned)
    fixed = expected(name, "attention_logits", "activation", 2, heads_grow=False)
    assert (fixed.low, fixed.high) == (0.0, 0.0)


def test_all_that_name_parametrizations_name_the_same():
    assert [*Expect] == [name for name in Parametrization if name != "own"] and {*Expect} == {*TABLES}
    assert VERDICT_SCHEMA["properties"]["audit"]["properties"]["expect"]["enum"] == [*Expect]
