"""Verdicts on curves with known exponents."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from conftest import power, synthetic
from coordcheck.judge.slopes import fit
from coordcheck.judge.undecided import runs_to_decide, undecided, weights
from coordcheck.judge.verdict import judge, overall, worst_first


def judged(gate, curves, readout=None, **kwargs):
    return judge(fit(synthetic(curves, **kwargs)), gate, readout)


def verdict_of(gate, of, kind="activation", step=1, **kwargs):
    return judged(gate, {("fc", kind, step): of}, **kwargs)["verdict"].item()


@pytest.mark.parametrize(
    ("kind", "exponent", "verdict"),
    [
        ("activation", 0.0, "pass"),
        ("activation", 0.09, "pass"),
        ("activation", 0.11, "explodes"),
        ("activation", -0.24, "pass"),
        ("activation", -0.26, "vanishes"),
        ("delta", 0.19, "pass"),
        ("delta", 0.21, "explodes"),
        ("delta", -0.29, "pass"),
        ("delta", -0.31, "vanishes"),
        ("effective_update", 0.24, "pass"),
        ("effective_update", 0.26, "explodes"),
        ("effective_update", -0.49, "pass"),
        ("effective_update", -0.51, "vanishes"),
    ],
)
def test_each_side_of_each_tolerance(gate, kind, exponent, verdict):
    assert verdict_of(gate, power(exponent), kind) == verdict


def test_an_interval_across_the_border_is_inconclusive_and_says_what_decides_where_that_is_known(gate):
    row = judged(gate, {("fc", "activation", 1): power(0.04, noise=0.031)}).iloc[0]
    assert row["verdict"] == "inconclusive"
    margin = 0.10 - row["slope"]
    assert 2 < margin / row["error"] < 2.8

    def half(runs):
        times = runs / row["n_runs"]
        return stats.t.ppf(0.975, 5 * times - 1) * row["error"] / np.sqrt(times)

    needed = runs_to_decide(row, gate)
    assert half(needed) < margin < half(needed - 1)
    advice = undecided(judged(gate, {("fc", "activation", 1): power(0.04, noise=0.031)}), gate, {})[0].advice
    assert advice == f"About {np.ceil(needed / 4):.0f} seeds would decide."


def test_where_the_border_lies_within_the_noise_no_number_is_promised(gate):
    table = judged(gate, {("fc", "activation", 1): power(0.05, noise=0.06)})
    assert table["verdict"].item() == "inconclusive"
    assert runs_to_decide(table.iloc[0], gate) is None
    assert "four times as many runs halve: seeds=20, or seeds=auto" in undecided(table, gate, {})[0].advice
    assert "a larger budget" in undecided(table, gate, {}, independent=True)[0].advice


def test_a_layer_without_an_update_of_its_own_is_dead_at_the_last_step_only(gate):
    never = {("fc", "effective_update", step): lambda width, seed: 0.0 for step in (2, 3)}
    assert judged(gate, never)["verdict"].tolist() == ["pass", "dead"]
    deltas = {("fc", "delta", step): lambda width, seed: 0.0 for step in (2, 3)}
    assert judged(gate, deltas)["verdict"].tolist() == ["dead", "dead"]


def test_a_slope_on_the_border_is_not_promised_a_number_of_seeds(gate):
    row = judged(gate, {("fc", "activation", 1): power(0.10, noise=0.06)}).iloc[0]
    assert runs_to_decide(row, gate) is None


def test_one_seed_is_inconclusive_and_asks_for_more(gate):
    table = judged(gate, {("fc", "activation", 1): power(0.9)}, seeds=1)
    assert table["verdict"].item() == "inconclusive"
    assert "at least 2" in undecided(table, gate, {})[0].advice


def test_two_widths_are_inconclusive(gate):
    assert verdict_of(gate, power(0.0), widths=(64, 128)) == "inconclusive"


def test_non_finite_beats_every_slope(gate):
    assert verdict_of(gate, lambda w, s: np.inf if w == 512 else 1.0) == "nonfinite"


def test_zero_passes_at_step_0_and_is_dead_later(gate):
    assert verdict_of(gate, lambda w, s: 0.0, step=0) == "pass"
    assert verdict_of(gate, lambda w, s: 0.0, step=1) == "dead"


def test_zero_at_one_width_only_is_dead(gate):
    assert verdict_of(gate, lambda w, s: 0.0 if w == 64 else 1.0, step=0) == "dead"


def test_nothing_moves_at_step_1_behind_a_zero_readout(gate):
    moved = {("fc", "delta", 1): lambda w, s: 0.0}
    alone = judged(gate, moved).set_index("step")["verdict"]
    assert alone.to_dict() == {1: "dead"}
    moved |= {("wpe", "activation", 0): lambda w, s: 0.0, ("wpe", "activation", 1): lambda w, s: 0.0}
    zero = synthetic({("head", "activation", step): lambda w, s: 0.0 for step in (0, 1)}, role="readout")
    behind = judge(fit(pd.concat([synthetic(moved), zero])), gate)
    assert behind[behind["verdict"] != "pass"][["module", "step"]].values.tolist() == [["head", 1]]


@pytest.mark.parametrize(("readout", "verdict"), [("constant", "vanishes"), ("fan_in", "pass"), (None, "vanishes")])
def test_the_readouts_init_decides_what_is_expected_of_the_logits(gate, readout, verdict):
    table = judged(gate, {("head", "activation", 0): power(-1.0)}, readout, role="readout")
    assert table["verdict"].item() == verdict


def test_overall(gate):
    passing = judged(gate, {("a", "activation", 0): power(0.0)})
    undecided = judged(gate, {("a", "activation", 0): power(0.05, 0.06)})
    failing = judged(gate, {("a", "activation", 0): power(0.5)})
    assert overall(passing, True) == "pass"
    assert overall(passing, None) == "pass"
    assert overall(passing, False) == "inconclusive"
    assert overall(undecided, True) == "inconclusive"
    assert overall(failing, True) == "fail"
    assert overall(failing, False) == "fail"


def test_a_check_that_moves_nothing_and_whose_control_shows_nothing_is_inconclusive(gate):
    still = judged(gate, {("a", "activation", 0): power(0.0), ("a", "delta", 1): lambda w, s: 0.0})
    assert overall(still, False) == "inconclusive"
    assert overall(still, True) == "fail"


def test_worst_first(gate):
    table = judged(
        gate,
        {
            ("a", "activation", 0): power(0.0),
            ("b", "activation", 1): power(0.3),
            ("c", "activation", 1): power(0.9),
            ("d", "delta", 2): lambda w, s: np.nan,
            ("e", "activation", 0): power(0.05, 0.06),
        },
    )
    assert worst_first(table)["module"].tolist() == ["d", "c", "b", "e", "a"]
    assert [finding.module for finding in undecided(table, gate, {})] == ["e"]


def test_an_undecided_curve_says_slope_interval_and_expectation(gate):
    (finding,) = undecided(judged(gate, {("fc", "delta", 2): power(0.1, 0.2)}), gate, {})
    assert (finding.curve.verdict, finding.module, finding.kind, finding.step) == ("inconclusive", "fc", "delta", 2)
    assert finding.expected == (0.0, 0.0)
    assert str(finding).startswith("fc, delta, step 2: scales like width^+0.10 [-0.29, +0.49]; expected +0.00.")


def test_what_passes_is_not_undecided(gate):
    assert undecided(judged(gate, {("a", "activation", 0): power(0.0)}), gate, {}) == []


def test_overall_with_faults(gate):
    passing = judged(gate, {("a", "activation", 0): power(0.0)})
    trained = judged(gate, {("a", "delta", 1): power(0.9)})
    assert overall(passing, True, {"decay"}) == "fail"
    assert overall(passing, True, {"gentle"}) == overall(trained, True, {"gentle"}) == "inconclusive"
    assert overall(trained, True, {"harness"}) == "inconclusive"
    assert overall(trained, True, {"learning_rate"}) == "fail"


def test_a_finding_names_the_weight_of_a_module_that_has_one(gate):
    records = pd.concat(
        [
            synthetic({(name, "activation", 1): power(0.1, 0.2)}, role=role)
            for name, role in [
                ("blocks.0.fc", "hidden"),
                ("lstm[0]", "hidden"),
                ("(model)", "readout"),
                ("attn[attention_logits]", "attention_logits"),
                ("blocks.0", None),
            ]
        ]
    )
    found = {f.module: f.parameter for f in undecided(judge(fit(records), gate), gate, weights(records))}
    assert found == {
        "blocks.0.fc": "blocks.0.fc.weight",
        "lstm[0]": "lstm.weight",
        "(model)": "weight",
        "attn[attention_logits]": None,
        "blocks.0": None,
    }
    assert weights(records.assign(count=np.nan)) == {}  # mup's format


def test_what_moves_a_step_later_waited_behind_a_zero_branch_and_what_never_moves_is_dead(gate):
    late = {("b", "delta", 1): power(0.0), ("b", "delta", 2): power(0.0)}
    late |= {("a", "delta", 1): lambda w, s: 0.0, ("a", "delta", 2): power(0.0)}
    late |= {("c", "delta", step): lambda w, s: 0.0 for step in (1, 2)}
    table = judged(gate, late).set_index(["module", "step"])["verdict"]
    assert table["a"].to_dict() == {1: "pass", 2: "pass"}
    assert table["c"].to_dict() == {1: "dead", 2: "dead"}
