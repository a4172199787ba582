"""Slopes against exact power laws, and intervals against scipy."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from conftest import power, synthetic
from coordcheck.judge.slopes import fit
from coordcheck.judge.statistics import t_interval
from coordcheck.records.schema import repeated_seeds


@pytest.mark.parametrize("exponent", [-1.0, -0.5, 0.0, 0.3, 1.0])
def test_an_exact_power_law_gives_its_exponent_and_an_empty_interval(exponent):
    row = fit(synthetic({("fc", "activation", 0): power(exponent)})).iloc[0]
    assert row["slope"] == pytest.approx(exponent, abs=1e-12)
    assert row["ci_low"] == pytest.approx(exponent, abs=1e-9) == row["ci_high"]
    assert (row["n_widths"], row["n_seeds"], row["n_runs"]) == (4, 5, 20)
    assert np.isnan(row["curvature"]) or abs(row["curvature"]) < 1e-9


def test_slopes_of_seeds_and_their_interval_are_those_of_scipy():
    rng = np.random.default_rng(0)
    widths = (64, 128, 256, 512, 1024)
    table = {(w, s): float(np.exp(rng.normal(0.2 * np.log(w), 0.1))) for w in widths for s in range(5)}
    row = fit(synthetic({("fc", "delta", 2): lambda w, s: table[w, s]}, widths), confidence=0.9).iloc[0]
    x = np.log(widths)
    slopes = [stats.linregress(x, [np.log(table[w, s]) for w in widths]).slope for s in range(5)]
    low, high = stats.t.interval(0.9, 4, loc=np.mean(slopes), scale=stats.sem(slopes))
    assert row[["slope", "ci_low", "ci_high"]].tolist() == pytest.approx([np.mean(slopes), low, high])
    assert row["slope_std"] == pytest.approx(np.std(slopes, ddof=1))


def test_one_seed_has_no_interval():
    row = fit(synthetic({("fc", "activation", 0): power(0.5)}, seeds=1)).iloc[0]
    assert row["slope"] == pytest.approx(0.5)
    assert (row["ci_low"], row["ci_high"]) == (-np.inf, np.inf)


def test_seeds_that_agree_bit_for_bit_count_as_one():
    curves = {("fc", "activation", 0): lambda w, s: (1 + s // 2) * w**0.5, ("fc", "activation", 1): lambda w, s: 0.0}
    records = synthetic(curves, seeds=4)
    assert repeated_seeds(records) == [1, 3]
    row = fit(records).iloc[0]
    assert (row["n_seeds"], row["n_runs"]) == (2, 16)
    assert fit(records[records["seed"] < 2])["ci_high"].iloc[0] == np.inf


def test_zeros_and_one_differing_size_do_not_make_seeds_the_same():
    assert repeated_seeds(synthetic({("fc", "activation", 0): lambda w, s: 0.0})) == []
    assert repeated_seeds(synthetic({("fc", "activation", 0): lambda w, s: w + s * (w == 64)})) == []


def test_t_interval_of_a_single_value_is_unbounded():
    assert t_interval(np.array([1.0]), 0.95) == (-np.inf, np.inf)


def test_a_missing_run_leaves_the_slopes_of_the_others():
    records = synthetic({("fc", "activation", 0): power(0.5)})
    without = records[(records["width"] != 512) | (records["seed"] != 1)]
    row = fit(without).iloc[0]
    assert row["slope"] == pytest.approx(0.5)
    assert (row["n_widths"], row["n_seeds"], row["n_runs"]) == (4, 5, 19)


def test_fewer_than_three_widths_give_no_slope():
    row = fit(synthetic({("fc", "activation", 0): power(0.5)}, widths=(64, 128))).iloc[0]
    assert np.isnan(row["slope"])
    assert row["n_seeds"] == 0


def test_zero_and_non_finite_runs_are_counted_and_left_out():
    broken = {(256, 0): 0.0, (512, 1): np.inf}
    row = fit(synthetic({("fc", "activation", 0): lambda w, s: broken.get((w, s), w**0.5)})).iloc[0]
    assert (row["n_zero"], row["n_nonfinite"]) == (1, 1)
    assert row["slope"] == pytest.approx(0.5)


def test_a_sum_that_overflowed_is_not_finite_even_where_its_entries_are():
    records = synthetic({("fc", "activation", 0): power(0.5)})
    records.loc[records["width"] == 64, "l1"] = np.inf
    assert fit(records.assign(nonfinite=0))["n_nonfinite"].item() == 5


def test_curvature_is_the_change_of_slope_and_only_reported_beyond_the_noise():
    widths = (64, 128, 256, 512, 1024)
    bent = fit(synthetic({("fc", "activation", 0): lambda w, s: (1 + s) * 2 ** (0.1 * np.log2(w) ** 2)}, widths)).iloc[
        0
    ]
    assert bent["curvature"] == pytest.approx(0.2 * np.log2(1024 / 64))
    rng = np.random.default_rng(1)
    noisy = fit(synthetic({("fc", "activation", 0): lambda w, s: float(np.exp(rng.normal()))}, widths)).iloc[0]
    assert np.isnan(noisy["curvature"])


def test_rms_stands_in_where_l1_is_unknown():
    records = synthetic({("attn", "activation", 0): power(-0.5)})
    records["rms"] = records["l1"]
    records["l1"] = np.nan
    assert fit(records)["slope"].item() == pytest.approx(-0.5)


def test_a_role_that_no_record_states_follows_from_what_grows():
    grows = synthetic({("block", "activation", 0): power(0.0)})
    grows["role"] = pd.NA
    constant = grows.assign(count=100)
    assert fit(grows)["role"].item() == "hidden"
    assert fit(constant)["role"].item() == "readout"


def test_cells_are_fitted_apart_and_named_first():
    records = synthetic({("fc", "activation", 0): power(0.0)})
    other = synthetic({("fc", "activation", 0): power(1.0)})
    both = pd.concat([records.assign(cell="a"), other.assign(cell="b")])
    both = both[["cell", *records.columns]]
    slopes = fit(both)
    assert slopes.columns[0] == "cell"
    assert dict(zip(slopes["cell"], slopes["slope"].round(9), strict=True)) == {"a": 0.0, "b": 1.0}


def test_the_order_of_records_does_not_matter():
    records = synthetic({("a", "activation", 0): power(0.1, 0.02), ("b", "delta", 1): power(0.4, 0.1)})
    shuffled = records.sample(frac=1.0, random_state=0)
    pd.testing.assert_frame_equal(fit(records), fit(shuffled))
