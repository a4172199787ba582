"""Spectral norms are held against the spectral condition, under the multipliers that were read."""

import math

import numpy as np
import pandas as pd
import pytest

from conftest import power, synthetic
from coordcheck.judge.diagnose.evidence import Evidence
from coordcheck.judge.judgement import Judgement
from coordcheck.judge.norms import weight_ranges
from coordcheck.judge.slopes import fit
from coordcheck.judge.theory import expected
from coordcheck.judge.verdict import judge
from coordcheck.records.schema import check_records


def weights(exponents, role="hidden", kind="weight", steps=(0, 1)):
    """Records of a parameter whose spectral norm scales so; its entries scale otherwise."""
    records = synthetic(
        {(name, kind, step): power(e, 0.002) for name, e in exponents.items() for step in steps}, role=role
    )
    return records.assign(l1=1.0, rms=1.0)


def judged(records, gate, parameters=None):
    return judge(fit(check_records(records)), gate, parameters=parameters)


@pytest.mark.parametrize(
    ("role", "kind", "low", "high"),
    [
        # sqrt(fan_out / fan_in): only fan-out grows, both do, only fan-in does
        ("input", "update", 0.5, 0.5),
        ("hidden", "update", 0.0, 0.0),
        ("readout", "update", -0.5, -0.5),
        ("projection", "update", -0.5, -0.5),
        ("vector", "update", 0.5, 0.5),
        ("fixed", "update", 0.0, 0.0),
        # width independent entries in a row or column that does not grow: sqrt(F) + sqrt(width)
        ("input", "weight", 0.0, 0.5),
        ("hidden", "weight", 0.0, 0.0),
        ("readout", "weight", -1.0, -0.5),
        ("projection", "weight", -1.0, 0.0),
        ("vector", "weight", 0.5, 0.5),
    ],
)
def test_the_spectral_condition_of_each_role(role, kind, low, high):
    expectation = expected("mup", role, kind, 1)
    assert (expectation.low, expectation.high) == (low, high)
    assert "2310.17813" in expectation.source


@pytest.mark.parametrize(("parametrization", "role"), [("sp", "hidden"), ("mup", "unknown")])
def test_no_claim_is_said_plainly(parametrization, role):
    expectation = expected(parametrization, role, "update", 1)
    assert (expectation.low, expectation.high) == (-math.inf, math.inf)
    assert expectation.source.startswith("no claim")


def test_the_norm_is_judged_and_not_the_mean_entry(gate):
    rows = judged(weights({"right.weight": 0.0, "large.weight": 0.75, "small.weight": -0.5}), gate)
    verdicts = rows.set_index("module")["verdict"].groupby("module").agg(set)
    assert verdicts.to_dict() == {"right.weight": {"pass"}, "large.weight": {"explodes"}, "small.weight": {"vanishes"}}


def test_a_parameter_whose_role_nobody_stated_is_not_judged(gate):
    assert {*judged(weights({"some.weight": 0.7}, role=None), gate)["verdict"]} == {"pass"}


def audit(**values):
    row = {"parameter": "head.weight", "shape": "10 x 64", "used_in": "linear in head", "fan_in": 64, "fan_out": 10}
    row |= {"role": "readout", "multiplier_exponent": np.nan, **values}
    return pd.DataFrame([row])


@pytest.mark.parametrize(
    ("multiplier", "low", "high"), [(0.0, -0.5, -0.5), (-1.0, 0.5, 0.5), (-0.5, 0.0, 0.0), (np.nan, -0.5, 0.5)]
)
def test_what_is_multiplied_afterwards_may_be_as_much_larger(multiplier, low, high):
    slopes = pd.DataFrame({"kind": ["update"], "module": ["head.weight"], "role": ["readout"]})
    ranges = [expected("mup", "readout", "update", 1)]
    [found] = weight_ranges(slopes, ranges, audit(multiplier_exponent=multiplier))
    assert (found.low, found.high) == (low, high)


@pytest.mark.parametrize(
    ("values", "claimed"),
    [
        ({"shape": "4 x 64 x 64", "fan_in": 64, "fan_out": 64, "used_in": "matmul in experts"}, True),
        ({"shape": "64 x 4 x 16", "fan_in": 64, "fan_out": 64, "used_in": "einsum in attention"}, False),
        ({"shape": "64 x 64 x 3", "fan_in": 192, "fan_out": 64, "used_in": "conv in conv"}, True),
    ],
    ids=["experts", "heads", "conv"],
)
def test_a_norm_over_other_dimensions_than_the_forward_pass_sums_over_is_not_judged(values, claimed):
    slopes = pd.DataFrame({"kind": ["weight"], "module": ["head.weight"], "role": ["hidden"]})
    [found] = weight_ranges(slopes, [expected("mup", "hidden", "weight", 0)], audit(**{"role": "hidden", **values}))
    assert math.isfinite(found.low) == claimed


def test_a_weight_that_never_moves_is_dead_at_the_last_step_only(gate):
    records = weights({"a.weight": 0.0, "b.weight": 0.0}, kind="update", steps=(1, 2))
    still = records["module"] == "b.weight"
    records.loc[still, ["l1", "rms", "max", "spectral"]] = 0.0
    found = Judgement.from_records(records, gate)
    verdicts = found.slopes.set_index(["module", "step"])["verdict"]
    assert verdicts["b.weight", 1] == "pass"
    assert verdicts["b.weight", 2] == "dead"
    assert (found.findings[0].fault, found.findings[0].parameter) == ("untrained", "b.weight")


def test_every_failing_weight_is_told_and_the_search_ends(gate):
    found = Judgement.from_records(weights({"a.weight": 0.75, "b.weight": 0.75}, steps=(0,)), gate)
    assert found.verdict == "fail"
    assert found.findings[0].parameter == "a.weight"
    assert "its spectral norm grows like width^+0.75 at step 0" in found.findings[0].cause


def test_records_of_weights_need_their_norms():
    records = weights({"a.weight": 0.0})
    with pytest.raises(ValueError, match="the column spectral, behind count; there is none"):
        check_records(records.drop(columns="spectral"))
    records.loc[3, "spectral"] = np.nan
    with pytest.raises(ValueError, match=r"column 'spectral'; row 3 has nan"):
        check_records(records)


def test_a_weight_reaches_what_fails_inside_its_module(gate):
    curves = {"experts.act": "activation", "experts": "activation"}
    inside = synthetic({(name, kind, 0): power(0.5) for name, kind in curves.items()})
    own = weights({"experts.up": 0.75}, steps=(0,)).assign(order=2)
    records = pd.concat([inside, own], ignore_index=True)
    slopes = judged(records, gate)
    evidence = Evidence(gate, records, slopes, None, None)
    assert evidence.reached("experts.up", 0, inside=True).sum() == 3
