"""Comparisons with a baseline: Welch's and Holm's numbers against scipy, and what counts as a regression."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from conftest import power, synthetic
from coordcheck import CoordCheck
from coordcheck.judge.baseline import TOLERANCE, Baseline, compare
from coordcheck.judge.ruling import rule_by_baseline
from coordcheck.judge.statistics import holm, welch

CURVES = {("fc", "activation", 0): power(0.0, 0.01), ("fc", "delta", 1): power(0.1, 0.02)}


def check_of(gate, curves=None, corpus="a" * 64, **config):
    return CoordCheck.from_records(
        synthetic(curves or CURVES), gate, config=config, corpus_sha256=corpus, versions={"python": "3.11.7"}
    )


def stored(check, path):
    Baseline.of(check).write(path)
    return Baseline.read(path)


@pytest.mark.parametrize(("n", "m"), [(5, 5), (3, 8), (2, 2)])
def test_welch_is_scipys(n, m):
    rng = np.random.default_rng(n)
    before, now = rng.normal(0, 1, n), rng.normal(1, 3, m)
    change, half, p = welch(before, now, 0.9)
    theirs = stats.ttest_ind(now, before, equal_var=False)
    interval = theirs.confidence_interval(0.9)
    assert p == pytest.approx(theirs.pvalue)
    assert (change - half, change + half) == pytest.approx((interval.low, interval.high))


def test_welch_without_noise_or_with_one_value():
    same, other = np.full(3, 0.5), np.full(3, 0.6)
    assert welch(same, same) == (0.0, 0.0, 1.0)
    assert welch(same, other)[2] == 0.0
    assert welch(np.array([0.5]), other)[1:] == (np.inf, 1.0)


def test_holm_by_hand_with_untested_ones_left_out():
    p = np.array([0.01, np.nan, 0.04, 0.03])
    # sorted 0.01 0.03 0.04: times 3, 2, 1, and never below the one before
    assert holm(p) == pytest.approx(np.array([0.03, np.nan, 0.06, 0.06]), nan_ok=True)


def test_a_baseline_is_reviewable_and_reads_back(gate, tmp_path):
    check = check_of(gate, CURVES | {("head", "activation", 0): lambda w, s: 0.0}, steps=4)
    baseline = stored(check, tmp_path / "slopes.json")
    lines = (tmp_path / "slopes.json").read_text().splitlines()
    curves = [json.loads(line.strip().rstrip(",")) for line in lines if line.strip().startswith('{"module"')]
    assert [(c["module"], c["kind"], c["step"]) for c in curves] == sorted(baseline.curves)
    assert curves[1]["slope"] == pytest.approx(0.1)
    assert len(curves[1]["seeds"]) == 5
    assert curves[2] == {"module": "head", "kind": "activation", "step": 0, "state": "zero", "seeds": []}
    said = json.loads((tmp_path / "slopes.json").read_text())
    assert said["corpus_sha256"] == "a" * 64
    assert len(said["config_sha256"]) == 64
    assert baseline.curves == Baseline.of(check).curves


def independent_check(gate, exponent, first_seed):
    """A check of independent runs, 6, 4 and 3 of them at three widths."""
    frames = []
    for width, n in {64: 6, 128: 4, 256: 3}.items():
        drawn = np.random.default_rng(first_seed + width).normal(0, 0.01, n)
        size = {("fc", "activation", 0): lambda w, s, drawn=drawn: float(w**exponent * 2 ** drawn[s])}
        frames.append(synthetic(size, (width,), n).assign(seed=lambda of, w=width: of["seed"] + 1000 * w))
    return CoordCheck.from_records(pd.concat(frames), gate, corpus_sha256="a" * 64, versions={"python": "3.11.7"})


def test_a_baseline_of_independent_runs_keeps_slope_error_and_freedom_and_compares(gate, tmp_path):
    check = independent_check(gate, 0.0, 1)
    baseline = stored(check, tmp_path / "b.json")
    row = check.slopes.iloc[0]
    kept = baseline.curves["fc", "activation", 0]
    assert (kept.value, kept.error, kept.df) == pytest.approx(tuple(row[["slope", "error", "df"]]), abs=1e-6)
    assert compare(independent_check(gate, 0.0, 2), baseline)["status"].item() == "same"
    assert compare(independent_check(gate, 0.1, 2), baseline)["status"].item() == "regressed"
    other = independent_check(gate, 0.1, 2)
    half = compare(other, baseline)["high"].item() - compare(other, baseline)["change"].item()
    parts = np.array([row["error"], other.slopes["error"].item()]) ** 2
    df = parts.sum() ** 2 / (parts**2 / np.array([row["df"], other.slopes["df"].item()])).sum()
    assert half == pytest.approx(stats.t.ppf(0.975, df) * parts.sum() ** 0.5, rel=1e-4)


def test_the_same_check_is_the_same(gate, tmp_path):
    check = check_of(gate)
    table = compare(check, stored(check, tmp_path / "b.json"))
    assert table["status"].tolist() == ["same", "same"]
    assert rule_by_baseline(check, Baseline.of(check), 0.05).verdict == "pass"


@pytest.mark.parametrize(
    ("exponent", "noise", "tolerance", "status"),
    [
        (0.2, 0.01, 0.05, "regressed"),
        (-0.2, 0.01, 0.05, "regressed"),
        (0.04, 0.0001, 0.05, "same"),  # beyond noise, within the tolerance
        (0.04, 0.0001, 0.02, "regressed"),
        (0.2, 0.2, 0.05, "same"),  # beyond the tolerance, within noise
    ],
)
def test_a_regression_is_beyond_noise_and_beyond_the_tolerance(gate, exponent, noise, tolerance, status):
    key = ("fc", "activation", 0)
    before, now = check_of(gate, {key: power(0.0, noise)}), check_of(gate, {key: power(exponent, noise)})
    assert compare(now, Baseline.of(before), tolerance)["status"].item() == status


def test_what_is_beyond_one_curves_noise_may_be_within_that_of_hundreds(gate):
    """Holm's correction: a p-value of 0.001 in one of three hundred curves is what chance gives."""
    before = {("m0", "activation", 0): power(0.0, 0.05)} | {
        (f"m{i}", "activation", 0): power(0.0) for i in range(1, 300)
    }
    now = before | {("m0", "activation", 0): power(0.2, 0.05)}
    alone = [{("m0", "activation", 0): curves["m0", "activation", 0]} for curves in (before, now)]
    assert compare(check_of(gate, alone[1]), Baseline.of(check_of(gate, alone[0])))["status"].tolist() == ["regressed"]
    together = compare(check_of(gate, now), Baseline.of(check_of(gate, before)))
    assert set(together["status"]) == {"same"}


def test_new_and_vanished_curves_are_named_and_leave_the_gate_undecided(gate):
    before = check_of(gate, CURVES | {("old", "activation", 0): power(0.0)})
    now = check_of(gate, CURVES | {("young", "activation", 0): power(0.0)})
    result = rule_by_baseline(now, Baseline.of(before), 0.05)
    assert result.verdict == "inconclusive"
    assert "1 curves are new and 1 vanished (old, young)" in result.sentence
    assert "--update" in result.sentence


@pytest.mark.parametrize(("of", "word"), [(lambda w, s: float("nan"), "nonfinite"), (lambda w, s: 0.0, "zero")])
def test_a_curve_that_lost_its_slope_regressed(gate, of, word):
    key = ("fc", "activation", 0)
    result = rule_by_baseline(check_of(gate, {key: of}), Baseline.of(check_of(gate, {key: power(0.0)})), 0.05)
    assert result.verdict == "fail"
    assert f"was a slope, is {word}" in result.sentence
    both = rule_by_baseline(check_of(gate, {key: of}), Baseline.of(check_of(gate, {key: of})), 0.05)
    assert both.verdict == ("pass" if word == "zero" else "inconclusive")  # NaN is never the same
    assert word in both.cases[0].message


def test_another_configuration_or_corpus_is_refused_by_name(gate, tmp_path):
    baseline = stored(check_of(gate, steps=4, model={"depth": 3, "bias": False}), tmp_path / "b.json")
    same = check_of(gate, steps=4, model={"depth": 3, "bias": False}, name="other", seeds=9, device="cuda")
    assert set(compare(same, baseline)["status"]) == {"same"}
    with pytest.raises(ValueError, match=r"model.depth: 3 in the baseline, 4 now; steps: 4 in the baseline, 5 now"):
        compare(check_of(gate, steps=5, model={"depth": 4, "bias": False}), baseline)
    with pytest.raises(ValueError, match=r"corpus_sha256: a+ in the baseline \(Python 3.11.7\), b+ now"):
        compare(check_of(gate, corpus="b" * 64, steps=4, model={"depth": 3, "bias": False}), baseline)


def test_widths_are_part_of_the_configuration(gate):
    narrow = CoordCheck.from_records(synthetic(CURVES, widths=(64, 128, 256)), gate, corpus_sha256="a" * 64)
    with pytest.raises(ValueError, match=r"widths: \[64, 128, 256, 512\] in the baseline, \[64, 128, 256\] now"):
        compare(narrow, Baseline.of(check_of(gate)))


def test_new_versions_are_said(gate):
    before = Baseline.of(check_of(gate))
    now = CoordCheck.from_records(synthetic(CURVES), gate, corpus_sha256="a" * 64, versions={"python": "3.12.1"})
    assert rule_by_baseline(now, before, 0.05).sentence.endswith("python is 3.12.1, was 3.11.7.")


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "[]",
        "{}",
        '{"format": 0}',
        "[" * 100_000,
        '{"format": 1, "config": [], "versions": {}, "corpus_sha256": null, "curves": []}',
        '{"format": 1, "config": {}, "versions": {}, "corpus_sha256": 3, "curves": []}',
        '{"format": 1, "config": {}, "versions": {}, "corpus_sha256": null, "curves": 3}',
        "\ud800",
    ],
    ids=range(10),
)
def test_a_file_that_is_no_baseline_is_refused(tmp_path, content):
    path = tmp_path / "slopes.json"
    if content is not None:
        path.write_bytes(content.encode(errors="surrogatepass"))
    said = r"slopes.json (cannot be read|must be|may nest|does not fit at \$).*For example .*--update writes a baseline"
    with pytest.raises(ValueError, match=said):
        Baseline.read(path)


def tampered(check, path, **fields):
    """A baseline whose first curve was edited."""
    Baseline.of(check).write(path)
    content = json.loads(path.read_text())
    content["curves"][0] |= fields
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    "fields",
    [
        {"seeds": seeds}
        for seeds in (
            [],
            [float("nan")] * 5,
            [0.0, float("inf")],
            ["0.1", "0.2"],
            [True, False],
            [None],
            [[0.1]],
            [10**400],
            [1e300],
            "0.1",
            0.1,
            None,
            {"0": 0.1},
        )
    ]
    + [
        {"state": "zero"},
        {"state": "fine", "seeds": []},
        {"state": ["zero"], "seeds": []},
        {"state": None, "seeds": []},
    ],
    ids=str,
)
def test_a_curve_without_numbers_is_refused_by_file_and_name(gate, tmp_path, fields):
    path = tampered(check_of(gate), tmp_path / "slopes.json", **fields)
    with pytest.raises(
        ValueError, match=r"slopes.json, curve 1 \('fc', activation, step 0\): `seeds` are .*got .*For ex"
    ):
        Baseline.read(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"module": 3},
        {"kind": "size"},
        {"kind": ["delta"]},
        {"step": True},
        {"step": -1},
        {"step": "0"},
        {"module": None},
    ],
    ids=str,
)
def test_a_curve_without_a_name_is_refused_by_file_and_number(gate, tmp_path, fields):
    path = tampered(check_of(gate), tmp_path / "slopes.json", **fields)
    with pytest.raises(ValueError, match=r"slopes.json, curve 1: a curve has a module, a kind of .* For example"):
        Baseline.read(path)


def test_a_curve_may_be_there_once(gate, tmp_path):
    path = tampered(check_of(gate), tmp_path / "slopes.json", kind="delta", step=1)
    with pytest.raises(ValueError, match=r"slopes.json, 'fc', delta, step 1: it is there twice"):
        Baseline.read(path)


@pytest.mark.parametrize("state", ["zero", "nonfinite", "unknown"])
def test_a_known_state_reads_back(gate, tmp_path, state):
    path = tampered(check_of(gate), tmp_path / "slopes.json", state=state, seeds=[])
    assert Baseline.read(path).curves["fc", "activation", 0] == state


@pytest.mark.parametrize("seeds", [1, 5])
def test_nan_is_never_the_same(gate, seeds):
    check = check_of(gate)
    nan = Baseline(dict.fromkeys(Baseline.of(check).curves, [float("nan")] * seeds), {}, "a" * 64, {})
    nan.config.update(Baseline.of(check).config)
    assert compare(check, nan)["status"].tolist() == ["undecided", "undecided"]
    decided = rule_by_baseline(check, nan, TOLERANCE)
    assert decided.verdict == "inconclusive"
    assert "2 of 2 curves cannot be compared. fc, activation, step 0: not a number" in decided.sentence


def test_a_baseline_without_a_curve_in_common_is_refused(gate):
    before = check_of(gate, {("old", "activation", 0): power(0.0)})
    with pytest.raises(
        ValueError, match=r"no curve in common with the check: 1 curve .*'old'.* 2 curves .*'fc'.* --update"
    ):
        rule_by_baseline(check_of(gate), Baseline.of(before), TOLERANCE)
    nothing = Baseline({}, Baseline.of(before).config, "a" * 64, {})
    with pytest.raises(ValueError, match=r"no curve in common with the check: 0 curves there"):
        compare(check_of(gate), nothing)


def test_a_change_seen_with_one_seed_is_undecided(gate):
    before, now = (
        CoordCheck.from_records(synthetic({("fc", "activation", 0): power(exponent)}, seeds=1), gate)
        for exponent in (0.0, 0.4)
    )
    decided = rule_by_baseline(now, Baseline.of(before), TOLERANCE)
    assert decided.verdict == "inconclusive"
    assert "1 of 1 curves changed, but one seed says nothing of noise; use at least 2" in decided.sentence
    assert rule_by_baseline(before, Baseline.of(before), TOLERANCE).verdict == "pass"
