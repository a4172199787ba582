"""How many runs a check needs, and when it has seen enough: what ``seeds="auto"`` does, without running anything.

A check looks up to four times. First at the narrow widths alone: what fails there for certain is told without wide
runs. Then at a pilot of all widths, with few runs at the wide ones, and, as long as curves are undecided and the budget
lasts, twice more. All runs train on one batch, and no two widths share a seed, so that points are independent and more
runs may be made wherever they help most.

Looking often must not make errors more likely: the looks share the error that one interval may have, 1 - confidence,
2 % of it for the narrow widths, the rest in equal parts (Bonferroni; alpha spending with a flat spending function,
Lan and DeMets, Biometrika 70, 1983).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from coordcheck.config.schema import AUTO, GateConfig
from coordcheck.judge.slopes import MIN_WIDTHS, Sample
from coordcheck.judge.statistics import Array
from coordcheck.judge.verdict import FAILURES, borders
from coordcheck.records.schema import curve_columns, repeated_seeds

LOOKS = 3  # at all widths
NARROW = 0.02  # of the error, for the look at narrow widths
MOST_AT_NARROWEST = 12  # runs of a pilot; fewer at wider widths, as their spread, lever arm and price say
FEWEST = 2  # runs at a width: one says nothing of its noise
SHARE = 0.8  # of the distance to the border that an interval is planned to fill
CLOSEST = 0.01  # distance to a border for which nobody plans: no fault is that small
PRIOR = 4.0  # runs that the trend of the spread over widths counts for where a width has few
SEEDS_APART = 10_000  # more than there are runs at a width


@dataclass(frozen=True)
class Auto:
    """As many runs as a check needs.

    Attributes:
        budget: The most that they may cost, in pilots.
        first_seed: Of the seeds; another one repeats the check with fresh weights and another batch.
        share: Of a pilot's runs, to begin with.
    """

    budget: float
    first_seed: int = 0
    share: float = 1.0


def look_until_decided(
    finish: Callable[[dict[int, list[int]], str], pd.DataFrame],
    judge: Callable[[pd.DataFrame, float], pd.DataFrame],
    gate: GateConfig,
    widths: Sequence[int],
    auto: Auto,
    price: Callable[[int], float],
) -> pd.DataFrame:
    """Records of as many runs as decide all curves, or as the budget pays for.

    Args:
        finish: From seeds by width, and what is still open in words, to the records of these runs; a width that does
            not fit into memory is left out of them.
        judge: From records and the confidence of intervals to curves with verdicts.
        gate: That judges them.
        widths: Wanted.
        auto: The budget.
        price: Of a run at a width, in any unit; the same whatever the machine, as are then the runs.
    """
    counts = pilot(widths, auto.share)
    budget = auto.budget * sum(count * price(width) for width, count in counts.items())
    first = narrow(widths)
    if len(first) < len(counts):
        records = finish(seeds_at({width: counts[width] for width in first}, auto.first_seed), "narrow widths first")
        if fails_early(judge(records, narrow_confidence(gate)), gate):
            return records
    records = finish(seeds_at(counts, auto.first_seed), "all curves open")
    confidence = look_confidence(gate)
    for look in range(1, LOOKS):
        judged = judge(records, confidence)
        still = open_curves(judged)
        if not still.any() or repeated_seeds(records):
            break
        left = budget - sum(count * price(width) for width, count in counts.items())
        # half of what is left, so that the last look may mend what the noise of the pilot hid
        allowance = left / (LOOKS - look)
        more = more_runs(records, judged, gate, confidence, price, allowance)
        if more == {width: counts[width] for width in more}:
            break
        counts |= more
        records = finish(seeds_at(counts, auto.first_seed), f"{int(still.sum())} of {len(still)} curves open")
    return records


def narrow(widths: Sequence[int]) -> list[int]:
    """The widths of the first look, and of a control: what is cheap, at least three."""
    ordered = sorted(widths)
    return ordered[: max(MIN_WIDTHS, len(ordered) - 2)]


def pilot(widths: Sequence[int], share: float = 1.0) -> dict[int, int]:
    """Runs at each width to begin with, or a share of them: 12, 8, 5, 3, 2 at widths that double."""
    first = min(widths)
    return {w: max(FEWEST, round(share * MOST_AT_NARROWEST * (w / first) ** (-2 / 3))) for w in sorted(widths)}


def seeds_at(counts: Mapping[int, int], first_seed: int = 0) -> dict[int, list[int]]:
    """Seeds of the runs at each width; no two widths share one, so that their points are independent."""
    return {
        width: list(range(first_seed + SEEDS_APART * width, first_seed + SEEDS_APART * width + count))
        for width, count in counts.items()
    }


def confidence_of(gate: GateConfig, config: Mapping[str, Any]) -> float:
    """Of the intervals of a check: the gate's where it looked once, and what all looks share where it looked often."""
    return look_confidence(gate) if config.get("seeds") == AUTO else gate.confidence


def look_confidence(gate: GateConfig) -> float:
    """Of the intervals of a look at all widths."""
    return 1 - (1 - NARROW) * (1 - gate.confidence) / LOOKS


def narrow_confidence(gate: GateConfig) -> float:
    """Of the intervals of the look at narrow widths."""
    return 1 - NARROW * (1 - gate.confidence)


def fails_early(judged: pd.DataFrame, gate: GateConfig) -> bool:
    """Whether wider runs cannot save a check: some curve is at fault by more than what narrow widths may mislead by."""
    low, high = borders(judged, gate)
    certain = gate.diagnosis.certain
    beyond = (judged["ci_low"] > high + certain) | (judged["ci_high"] < low - certain)
    told = judged["verdict"].isin(("explodes", "vanishes"))
    return bool((told & beyond).any() or (judged["verdict"] == "nonfinite").any())


def open_curves(judged: pd.DataFrame) -> pd.Series:
    """Which curves more runs may decide: the undecided, and where a check fails those that may be where it starts."""
    undecided = (judged["verdict"] == "inconclusive") & (judged["n_widths"] >= MIN_WIDTHS)
    failing = judged[judged["verdict"].isin(FAILURES)]
    if not len(failing):
        return undecided
    earlier: pd.Series = undecided & (judged["excess"] > 0) & (judged["step"] <= failing["step"].min())
    return earlier


def more_runs(
    records: pd.DataFrame,
    judged: pd.DataFrame,
    gate: GateConfig,
    confidence: float,
    price: Callable[[int], float],
    allowance: float,
) -> dict[int, int]:
    """Runs at each width after another look, made one by one where they narrow the open curves' intervals most.

    Args:
        records: So far, of independent runs.
        judged: Their curves.
        gate: That judged them.
        confidence: Of the intervals.
        price: Of a run at a width.
        allowance: What may be spent.

    Returns:
        The number of runs in all by width, those of `records` included.
    """
    sample = Sample.of(records)
    widths = 2.0**sample.x
    prices = np.array([price(round(width)) for width in widths])
    is_open = judged.set_index(curve_columns(records)).assign(open=open_curves(judged).to_numpy())
    low, high = borders(is_open, gate)
    margin = np.fmin((is_open["slope"] - low).abs(), (is_open["slope"] - high).abs())
    table = pd.DataFrame({"open": is_open["open"], "margin": margin}).loc[sample.curves]
    at = table["open"].to_numpy(dtype=bool)
    targets = SHARE * np.maximum(table["margin"].to_numpy()[at], CLOSEST)
    parts = sample.line()[at] ** 2 * smoothed(sample)[at]  # of the error's square, times runs
    counts = sample.n.max(axis=0).astype(float)
    spent = 0.0
    while True:
        wide = half_widths(parts, counts, confidence) > targets
        affordable = spent + prices <= allowance
        if not wide.any() or not affordable.any():
            break
        gain = (parts[wide] / targets[wide, None] ** 2).sum(axis=0) / (counts * (counts + 1)) / prices
        best = int(np.argmax(np.where(affordable, gain, -1.0)))
        if gain[best] <= 0:
            break
        counts[best] += 1
        spent += prices[best]
    return {round(width): int(count) for width, count in zip(widths, counts, strict=True)}


def half_widths(parts: Array, counts: Array, confidence: float) -> Array:
    """What the intervals of curves will be, with so many runs at each width."""
    shares = parts / counts
    total = np.maximum(shares.sum(axis=1), 1e-30)
    df = total**2 / np.maximum((shares**2 / (counts - 1)).sum(axis=1), 1e-60)
    half: Array = stdtrit(df, (1 + confidence) / 2) * np.sqrt(total)
    return half


def smoothed(sample: Sample) -> Array:
    """Variances of runs, (curves, widths): at least what their trend, which falls like 1/width, makes them.

    By chance few runs agree too well, and more of them would then not narrow the interval as planned.
    """
    _, variances = sample.spread()
    df = np.maximum(sample.n - 1, 0)
    relative = 2.0 ** (sample.x - sample.x[0])
    known = np.where(df > 0, variances, 0.0)
    trend = (df * known * relative).sum(axis=1, keepdims=True) / np.maximum(df.sum(axis=1, keepdims=True), 1) / relative
    result: Array = np.maximum(known, (df * known + PRIOR * trend) / (df + PRIOR))
    return result
