"""Intervals and tests of means: Student's, Welch's, and Holm's correction for many of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """A number, its standard error, and the degrees of freedom of that; none where nothing is known of it."""

    value: float
    error: float
    df: float

    @classmethod
    def of(cls, sample: Array) -> "Measured":
        """The mean of a sample."""
        n = len(sample)
        error = float(sample.std(ddof=1) / np.sqrt(n)) if n > 1 else np.inf
        return cls(float(sample.mean()), error, n - 1.0)

    def half_width(self, confidence: float) -> float:
        """Half of Student's interval; infinite where nothing is known of the error."""
        return float(stdtrit(self.df, (1 + confidence) / 2) * self.error) if self.df > 0 else np.inf


def half_width(std: float, count: NDArray[np.int64] | int, confidence: float) -> Array:
    """Half of Student's t interval of the mean of `count` values, at least two, whose standard deviation is `std`."""
    half: Array = stdtrit(np.subtract(count, 1), (1 + confidence) / 2) * std / np.sqrt(count)
    return half


def t_interval(values: Array, confidence: float) -> tuple[float, float]:
    """Student's t interval of the mean of a sample; (-inf, inf) for a sample of one."""
    if len(values) < 2:
        return -np.inf, np.inf
    half = half_width(float(values.std(ddof=1)), len(values), confidence)
    return float(values.mean() - half), float(values.mean() + half)


def welch(before: Array, now: Array, confidence: float = 0.95) -> tuple[float, float, float]:
    """Welch's t test of the difference of two means.

    Returns:
        The difference, the half width of its interval, and the two-sided p-value. With a single value in a
        sample nothing is known of its noise: the interval is infinite and p is 1. Two samples without any
        spread differ for certain or not at all.
    """
    return difference(Measured.of(before), Measured.of(now), confidence)


def difference(before: Measured, now: Measured, confidence: float = 0.95) -> tuple[float, float, float]:
    """Welch's t test of the difference of two numbers whose errors were estimated; returns as :func:`welch`."""
    change = now.value - before.value
    if min(before.df, now.df) <= 0:
        return change, np.inf, 1.0
    parts = np.array([before.error, now.error]) ** 2
    if parts.sum() == 0:
        return change, 0.0, float(change == 0)
    df = parts.sum() ** 2 / (parts**2 / np.array([before.df, now.df])).sum()
    error = np.sqrt(parts.sum())
    half = float(stdtrit(df, (1 + confidence) / 2) * error)
    return change, half, float(2 * stdtr(df, -abs(change) / error))


def holm(p: Array) -> Array:
    """P-values after Holm's step-down correction (Scand. J. Statist. 6, 1979); NaN stay and do not count."""
    adjusted = p.copy()
    tested = np.flatnonzero(~np.isnan(p))
    ascending = tested[np.argsort(p[tested])]
    factors = np.arange(len(ascending), 0, -1)
    adjusted[ascending] = np.minimum(1.0, np.maximum.accumulate(p[ascending] * factors))
    return adjusted
