"""How many runs a check makes: few where all is clear, more where they decide, none at wide widths where it fails."""

import numpy as np
import pandas as pd
import pytest

from conftest import synthetic
from coordcheck.judge.looks import (
    Auto,
    confidence_of,
    fails_early,
    look_confidence,
    look_until_decided,
    more_runs,
    narrow_confidence,
    pilot,
    seeds_at,
)
from coordcheck.judge.slopes import fit
from coordcheck.judge.verdict import judge
from coordcheck.records.schema import independent

WIDTHS = [64, 128, 256, 512, 1024]


def price(width):
    return 1 + (width / 128) ** 2


def of_seeds(seeds, exponent, noise=0.0, kind="activation"):
    """Records of runs at each width, whose noise in log2 falls like width^-1/2."""
    frames = []
    for width, chosen in seeds.items():
        for seed in chosen:
            drawn = np.random.default_rng(seed).normal(0, noise * (64 / width) ** 0.5)
            size = {("fc", kind, 1): lambda w, _, drawn=drawn: float(w**exponent * 2**drawn)}
            frames.append(synthetic(size, (width,), 1).assign(seed=seed))
    return pd.concat(frames, ignore_index=True)


def looked(gate, exponent, noise=0.0, budget=3.0, widths=WIDTHS, first_seed=0):
    """Runs by width that a check makes, and how often it looked."""
    asked = []

    def finish(seeds, still_open):
        asked.append(still_open)
        return of_seeds(seeds, exponent, noise)

    records = look_until_decided(
        finish,
        lambda records, confidence: judge(fit(records, confidence), gate),
        gate,
        widths,
        Auto(budget, first_seed),
        price,
    )
    return records, records.groupby("width").size().to_dict(), asked


def test_a_pilot_has_few_runs_where_they_are_dear_and_never_one():
    assert pilot(WIDTHS) == {64: 12, 128: 8, 256: 5, 512: 3, 1024: 2}
    assert pilot([64, 8192]) == {64: 12, 8192: 2}


def test_no_two_widths_share_a_seed_and_the_first_seed_moves_all():
    seeds = seeds_at(pilot(WIDTHS))
    flat = [seed for of in seeds.values() for seed in of]
    assert len(set(flat)) == len(flat) == 30
    assert seeds_at({64: 2}, 7) == {64: [640007, 640008]}
    assert independent(of_seeds(seeds, 0.0, 0.1))


def test_what_is_clear_is_decided_by_the_pilot(gate):
    _, counts, asked = looked(gate, 0.0, 0.02)
    assert counts == pilot(WIDTHS)
    assert asked == ["narrow widths first", "all curves open"]


def test_what_fails_for_certain_at_narrow_widths_needs_no_wide_run(gate):
    _, counts, asked = looked(gate, 1.0, 0.1)
    assert counts == {64: 12, 128: 8, 256: 5}
    assert asked == ["narrow widths first"]


def test_a_fault_that_narrow_widths_may_mislead_about_is_looked_at_in_full(gate):
    """0.3 lies beyond the border of 0.1, but by less than what narrow widths of a correct model may show."""
    _, counts, _ = looked(gate, 0.3, 0.01)
    assert counts == pilot(WIDTHS)


def test_three_widths_are_all_looked_at_at_once(gate):
    assert looked(gate, 1.0, 0.1, widths=[64, 128, 256])[2] == ["all curves open"]


def test_what_is_undecided_gets_runs_where_they_help_and_no_more_than_the_budget_pays(gate):
    records, counts, asked = looked(gate, 0.05, 0.25)
    start = pilot(WIDTHS)
    assert counts[64] > start[64]
    assert counts[256] == start[256]  # the middle of the widths has no lever on a slope
    assert asked[2] == "1 of 1 curves open"
    assert judge(fit(records, look_confidence(gate)), gate)["verdict"].item() == "pass"
    spent = sum(count * price(width) for width, count in counts.items())
    assert spent <= 3 * sum(count * price(width) for width, count in start.items())


def test_a_slope_on_its_border_spends_the_budget_and_stays_undecided(gate):
    records, counts, asked = looked(gate, 0.10, 0.3, budget=2.0)
    cost, of_pilot = (sum(n * price(w) for w, n in table.items()) for table in (counts, pilot(WIDTHS)))
    assert 1.5 * of_pilot < cost <= 2 * of_pilot
    assert len(asked) == 4
    assert judge(fit(records, look_confidence(gate)), gate)["verdict"].item() == "inconclusive"


def test_a_budget_of_one_is_the_pilot(gate):
    assert looked(gate, 0.10, 0.3, budget=1.0)[1] == pilot(WIDTHS)


def test_models_that_are_the_same_for_every_seed_get_no_more_runs(gate):
    assert looked(gate, 0.10, 0.0)[1] == pilot(WIDTHS)


def test_the_looks_together_err_no_more_often_than_one_interval_may(gate):
    shares = [1 - narrow_confidence(gate), *[1 - look_confidence(gate)] * 3]
    assert sum(shares) == pytest.approx(1 - gate.confidence)
    assert confidence_of(gate, {"seeds": "auto"}) == look_confidence(gate)
    assert confidence_of(gate, {"seeds": [0, 1]}) == gate.confidence == 0.95


def test_planned_runs_are_those_that_make_the_interval_fit(gate):
    counts = {64: 6, 128: 4, 256: 3}
    records = of_seeds(seeds_at(counts), 0.02, 0.1)
    judged = judge(fit(records, 0.95), gate)
    assert judged["verdict"].item() == "inconclusive"
    more = more_runs(records, judged, gate, 0.95, price, 1000.0)
    again = fit(of_seeds(seeds_at(more), 0.02, 0.1), 0.95)
    margin = 0.10 - judged["slope"].item()
    assert (again["ci_high"] - again["slope"]).item() == pytest.approx(0.8 * margin, rel=0.25)
    assert more_runs(records, judged, gate, 0.95, price, 0.5) == counts


def test_a_run_that_is_not_finite_ends_a_check_early_and_a_dead_one_does_not(gate):
    counts = {64: 3, 128: 3, 256: 3}
    records = of_seeds(seeds_at(counts), 0.0, 0.1)
    assert not fails_early(judge(fit(records), gate), gate)
    assert fails_early(judge(fit(records.assign(nonfinite=1)), gate), gate)
    assert not fails_early(judge(fit(records.assign(l1=0.0)), gate), gate)
