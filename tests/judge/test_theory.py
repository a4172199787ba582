"""Expected exponents: derived by hand from sums of independent or aligned terms."""

import math

import pytest

from conftest import power, synthetic
from coordcheck.judge.judgement import Judgement
from coordcheck.judge.theory import expected, forms


@pytest.mark.parametrize(
    ("parametrization", "role", "kind", "step", "readout", "low", "high"),
    [
        # every entry of a hidden activation, and every change of one, is O(1)
        ("mup", "hidden", "activation", 0, None, 0.0, 0.0),
        ("mup", "hidden", "delta", 3, None, 0.0, 0.0),
        # an update is made of the inputs it meets: width aligned terms times a learning rate or a multiplier of 1/width
        ("mup", "hidden", "effective_update", 3, None, 0.0, 0.0),
        ("mup", "readout", "effective_update", 3, "constant", 0.0, 0.0),
        # logits' gradients of size 1, times 1/width and width aligned or independent terms of a readout of size 1
        ("mup", "vector", "gradient", 1, None, -1.0, -1.0),
        ("mup", "hidden", "gradient", 1, "constant", -1.5, -1.0),
        ("mup", "input", "gradient", 1, None, -1.0, -0.5),
        ("mup", "readout", "gradient", 0, None, -1.0, 0.0),
        ("mup", "vector", "activation", 2, None, 0.0, 0.0),
        ("mup", "input", "activation", 1, None, 0.0, 0.0),
        # width independent terms of size 1, times 1/width: width^(1/2 - 1)
        ("mup", "readout", "activation", 0, "constant", -0.5, -0.5),
        # width independent terms of size width^-1/2, times 1/width
        ("mup", "readout", "activation", 0, "fan_in", -1.0, -1.0),
        ("mup", "readout", "activation", 3, "constant", -0.5, 0.0),
        ("mup", "readout", "activation", 0, None, -0.5, 0.0),
        ("mup", "readout", "delta", 1, "zero", -0.5, 0.0),
        ("mup", "attention_logits", "activation", 0, None, -0.5, 0.0),
        ("sp", "hidden", "activation", 0, None, 0.0, 0.0),
        # width independent terms of size width^-1/2; terms of size 1 grow, which is a fault whoever chose them
        ("sp", "readout", "activation", 0, "constant", 0.0, 0.0),
        ("sp", "readout", "activation", 0, "fan_in", 0.0, 0.0),
    ],
)
def test_expected_range(parametrization, role, kind, step, readout, low, high):
    expectation = expected(parametrization, role, kind, step, readout)
    assert (expectation.low, expectation.high) == (low, high)
    assert "arXiv" in expectation.source


@pytest.mark.parametrize("kind", ["delta", "effective_update"])
def test_adam_in_standard_parametrization_may_move_hidden_activations_by_width(kind):
    expectation = expected("sp", "hidden", kind, 1)
    assert expectation.low <= 1.0 <= expectation.high


@pytest.mark.parametrize("curve", [("sp", "hidden", "gradient", 1), ("mup", "loss", "activation", 0)])
def test_where_theory_has_no_claim_any_exponent_will_do(curve):
    expectation = expected(*curve)
    assert (expectation.low, expectation.high) == (-math.inf, math.inf)


def test_an_unknown_parametrization_is_named():
    with pytest.raises(ValueError, match=r"'xp'.*expect='mup'"):
        expected("xp", "hidden", "delta", 1)


# of Tensor Programs V, as exponents of width: std (half the variance's), rate of SGD, rate of Adam, multiplier
TABLES = {
    ("input", 3): (0.0, 1.0, 0.0, 0.0),
    ("readout", 3): (-1.0, -1.0, -1.0, 0.0),
    ("hidden", 3): (-0.5, 0.0, -1.0, 0.0),
    ("vector", 3): (0.0, 1.0, 0.0, 0.0),
    ("input", 8): (0.0, 1.0, 0.0, 0.0),
    ("readout", 8): (0.0, 1.0, 0.0, -1.0),
    ("hidden", 8): (-0.5, 0.0, -1.0, 0.0),
    ("input", 9): (-0.5, 0.0, -0.5, 0.5),
    ("readout", 9): (-0.5, 0.0, -0.5, -0.5),
    ("hidden", 9): (-0.5, 0.0, -1.0, 0.0),
}


@pytest.mark.parametrize(("role", "table"), TABLES)
def test_every_table_of_the_paper_is_a_form(role, table):
    std, sgd, adam, multiplier = TABLES[role, table]
    for update, lr in (("sgd", sgd), ("adam", adam)):
        assert (std, lr, multiplier) in [(form.std, form.lr, form.multiplier) for form in forms("mup", role, update)]


@pytest.mark.parametrize("role", ["input", "hidden", "readout"])
def test_forms_differ_by_the_symmetry_of_the_paper(role):
    """Lemma J.1: a multiplier times t, an init times 1/t and rates times 1/t (Adam), 1/t^2 (SGD) change nothing."""
    for update, slope in (("adam", 1), ("sgd", 2)):
        (first, *others) = forms("mup", role, update)
        for form in others:
            t = form.multiplier - first.multiplier
            assert (form.std, form.lr) == (first.std - t, first.lr - slope * t)


def test_forms_of_an_unknown_parametrization_are_refused():
    with pytest.raises(ValueError, match=r"'xp'.*expect='mup'"):
        forms("xp", "hidden", "adam")


@pytest.mark.parametrize(("grow", "step", "low"), [(True, 0, -0.5), (False, 0, 0.0), (False, 1, -0.5)])
def test_logits_of_heads_of_one_size_sum_over_as_many_terms_at_every_width(grow, step, low):
    expectation = expected("mup", "attention_logits", "activation", step, heads_grow=grow)
    assert (expectation.low, expectation.high) == (low, 0.0)


@pytest.mark.parametrize(("heads", "low"), [(lambda width: 4, -0.5), (lambda width: width // 16, 0.0)])
def test_whether_heads_grow_is_told_by_the_number_of_logits(gate, heads, low):
    records = synthetic({("attn[attention_logits]", "activation", 0): power(0.0)}, role="attention_logits")
    records["count"] = [8 * heads(width) for width in records["width"]]
    assert Judgement.from_records(records, gate).slopes["expected_low"].tolist() == [low]


@pytest.mark.parametrize(
    ("update", "heads_grow", "low"), [("sgd", True, -0.5), ("sgd", False, 0.0), ("adam", True, 0.0)]
)
def test_a_step_of_sgd_is_as_small_as_the_gradient_of_queries_and_keys(update, heads_grow, low):
    own = expected("mup", "hidden", "effective_update", 2, update=update, heads_grow=heads_grow)
    assert (own.low, own.high) == (low, 0.0)
    assert expected("mup", "hidden", "delta", 2, update=update, heads_grow=heads_grow).low == 0.0
