"""Where the loss is lowest, sought on surfaces whose lowest point is known."""

import math

import numpy as np
import pandas as pd
import pytest

from coordcheck.judge.transfer import TransferCurves, missing_runs, optima_of, outcome, seeds_for

WIDTHS = (64, 128, 256)


def surface(exponent=0.0, at=3.3, noise=0.0, better=0.1, cliff=math.inf):
    """Loss by octave, width and seed: a bowl whose lowest point moves like width^exponent, infinite above a cliff."""

    def loss(octave, width, seed):
        doublings = math.log2(width / 64)
        best = at + exponent * doublings + noise * np.random.default_rng(seed).normal()
        return math.inf if octave > best + cliff else 3.0 - better * doublings + 0.08 * (octave - best) ** 2

    return loss


def searched(loss, widths=WIDTHS, count=None, start=0.0):
    """What a search makes of a surface, and how many runs it took."""
    seeds, rows = seeds_for(widths, count), []
    for width in widths:
        for _ in range(100):
            table = pd.DataFrame(rows, columns=["octave", "width", "seed", "loss"])
            octaves, wanted = missing_runs(table, width, seeds[width], start)
            if not octaves:
                break
            there = {(row[0], row[1], row[2]) for row in rows}
            runs = {(octave, width, seed) for octave in octaves for seed in wanted}
            assert runs - there, "what was run is asked for again"
            rows += [[*run, loss(*run)] for run in sorted(runs - there)]
        else:
            raise AssertionError("the search does not end")
    return pd.DataFrame(rows, columns=["octave", "width", "seed", "loss"])


def curves(loss, **options):
    return TransferCurves.of("model", searched(loss, **options), lr=1e-3)


@pytest.mark.parametrize("at", [-7.3, 0.0, 3.3, 9.0])
@pytest.mark.parametrize("exponent", [0.0, -0.5, -1.3])
def test_the_exponent_of_a_bowl_is_found_wherever_it_lies(at, exponent):
    found = curves(surface(exponent, at))
    assert found.exponent == pytest.approx(exponent, abs=1e-6)
    assert (found.ci_low, found.ci_high) == pytest.approx((exponent, exponent), abs=1e-6)
    assert found.best["lr"].tolist() == pytest.approx([1e-3 * 2 ** (at + exponent * k) for k in range(3)])
    assert found.verdict == ("pass" if exponent == 0 else "fail")


def test_rates_are_spent_around_the_lowest_loss():
    runs = searched(surface(-1.0))
    for width, seeds in seeds_for(WIDTHS, None).items():
        here = runs[runs["width"] == width].groupby("octave").size()
        assert (here == len(seeds)).sum() == 5 and len(here) <= 8


def test_a_verdict_says_how_far_off_a_rate_is():
    said = curves(surface(-1.0)).sentence()
    assert said.startswith("does not transfer: the best learning rate falls like width^-1.00 [-1.00, -1.00].")
    assert said.endswith("Tuned at 64, it is 4 times too large at 256.")
    assert curves(surface(0.5)).sentence().endswith("Tuned at 64, it is 2 times too small at 256.")
    assert curves(surface()).sentence() == "transfers: the best learning rate moves like width^+0.00 [+0.00, +0.00]."


def test_noise_leaves_a_verdict_open_and_seeds_decide_it():
    assert curves(surface(noise=1.0)).verdict == "inconclusive"
    few, many = (curves(surface(noise=0.3), count=count) for count in (2, 20))
    assert few.ci_high - few.ci_low > many.ci_high - many.ci_low
    assert many.verdict == "pass" and "More seeds" in curves(surface(noise=1.0)).sentence()


def test_diverged_runs_are_data():
    found = curves(surface(-1.0, cliff=0.9))
    assert np.isinf(found.losses["loss"]).any()
    assert found.exponent == pytest.approx(-1.0, abs=0.02) and found.verdict == "fail"


@pytest.mark.parametrize("loss", [lambda octave, *_: -octave, lambda octave, *_: octave, lambda *_: math.inf])
def test_without_a_lowest_point_nothing_is_said(loss):
    found = curves(loss)
    assert found.verdict == "inconclusive" and math.isnan(found.exponent)
    assert "no lowest point among the learning rates that were tried at widths 64, 128, 256" in found.sentence()


def test_a_plane_ends_the_search():
    assert curves(lambda *_: 1.0).verdict == "inconclusive"


@pytest.mark.parametrize(("better", "said"), [(0.1, True), (-0.1, False), (0.0, None)])
def test_whether_wider_is_better_is_told_from_the_losses_at_the_best_rates(better, said):
    noisy = surface(better=better)
    found = curves(lambda octave, width, seed: noisy(octave, width, seed) + 0.01 * np.random.default_rng(seed).normal())
    assert found.wider_is_better() is said
    words = {
        True: "Wider is better at",
        False: "Wider is not always better at",
        None: "Whether wider is better is open",
    }
    assert found.wider_sentence().startswith(words[said])


def test_no_two_widths_share_a_seed():
    by_width = seeds_for((64, 128, 256, 1024), None, first=7)
    assert [len(seeds) for seeds in by_width.values()] == [8, 6, 4, 2]
    every = [seed for seeds in by_width.values() for seed in seeds]
    assert len({*every}) == len(every)
    assert {len(seeds) for seeds in seeds_for(WIDTHS, 3).values()} == {3}


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([5.0, 4, 3, 3, 3, 3, 3, 3, 2, 1], 1.5),  # the last fifth
        ([5.0, 4, math.nan], math.inf),
        ([5.0, 4, 3, 3, 3, 3, 3, 3, 3, math.inf], math.inf),
        ([5.0, 4, 3, 3, 3, 3, 3, 3, 6, 5], math.inf),  # above where it began
    ],
)
def test_a_run_comes_to_its_last_losses(losses, said):
    assert outcome(np.array(losses), steps=10) == said


def test_an_optimum_is_a_parabolas_lowest_point_or_the_lowest_of_its_points():
    rows = [(octave, 64, 0, (octave - 0.25) ** 2) for octave in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    bent = [(octave, 64, 1, -((octave - 9) ** 2)) for octave in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    table = pd.DataFrame([*rows, *bent], columns=["octave", "width", "seed", "loss"])
    assert optima_of(table[table["seed"] == 0])["octave"].tolist() == pytest.approx([0.25])
    assert optima_of(table[table["seed"] == 1]).empty
