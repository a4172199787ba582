"""Expected exponents: derived by hand from sums of independent or aligned terms."""

import math

import pytest

from coordcheck.theory import expected


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
        # width independent terms of size 1 without a multiplier
        ("sp", "readout", "activation", 0, "constant", 0.5, 0.5),
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
    with pytest.raises(ValueError, match=r"'ntk'.*expect='mup'"):
        expected("ntk", "hidden", "delta", 1)
