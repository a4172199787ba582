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
    assert (row["error"], row["df"]) == pytest.approx((stats.sem(slopes), 4))


def independent_runs(counts, rng, noise=0.1):
    """Records of a curve whose runs share no seed, and its sizes by width."""
    sizes = {width: np.exp(rng.normal(0.2 * np.log(width), noise, n)) for width, n in counts.items()}
    frames = [
        synthetic({("fc", "delta", 2): lambda w, s, own=own: float(own[s])}, (width,), len(own)).assign(
            seed=lambda of, width=width: of["seed"] + 1000 * width
        )
        for width, own in sizes.items()
    ]
    return pd.concat(frames, ignore_index=True), sizes


def test_independent_runs_give_a_contrast_of_the_widths_means_with_satterthwaites_interval():
    records, sizes = independent_runs({64: 12, 128: 8, 256: 5, 512: 3}, np.random.default_rng(3))
    row = fit(records, 0.9).iloc[0]
    x = np.log2(list(sizes))
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    logs = [np.log2(own) for own in sizes.values()]
    parts = np.array([c**2 * own.var(ddof=1) / len(own) for c, own in zip(weights, logs, strict=True)])
    df = parts.sum() ** 2 / sum(part**2 / (len(own) - 1) for part, own in zip(parts, logs, strict=True))
    slope = sum(c * own.mean() for c, own in zip(weights, logs, strict=True))
    low, high = stats.t.interval(0.9, df, loc=slope, scale=parts.sum() ** 0.5)
    assert row[["slope", "ci_low", "ci_high", "df"]].tolist() == pytest.approx([slope, low, high, df])
    assert (row["n_widths"], row["n_seeds"], row["n_runs"]) == (4, 3, 28)


def test_two_widths_of_independent_runs_would_be_welchs_test():
    """With three widths the middle one has no weight, which leaves Welch's difference of the ends."""
    records, sizes = independent_runs({64: 9, 128: 2, 256: 4}, np.random.default_rng(4))
    row = fit(records).iloc[0]
    ends = stats.ttest_ind(np.log2(sizes[256]), np.log2(sizes[64]), equal_var=False).confidence_interval(0.95)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((ends.low / 2, ends.high / 2))


def test_a_lone_run_at_a_width_borrows_the_largest_spread_of_the_others():
    records, sizes = independent_runs({64: 6, 128: 4, 256: 1}, np.random.default_rng(5))
    row = fit(records).iloc[0]
    largest = max(np.log2(sizes[width]).var(ddof=1) for width in (64, 128))
    assert row["error"] == pytest.approx((np.log2(sizes[64]).var(ddof=1) / 6 / 4 + largest / 4) ** 0.5)
    alone, _ = independent_runs({64: 1, 128: 1, 256: 1}, np.random.default_rng(5))
    assert (fit(alone)["ci_low"].item(), fit(alone)["ci_high"].item()) == (-np.inf, np.inf)


def test_independent_runs_that_repeat_bit_for_bit_count_once():
    records, _ = independent_runs({64: 4, 128: 4, 256: 4}, np.random.default_rng(6), noise=0.0)
    assert fit(records)[["n_seeds", "n_runs"]].values.tolist() == [[1, 12]]


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
