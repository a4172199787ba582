"""Exponents of width that sizes have, and how well they are known. Without torch."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

Array = NDArray[np.float64]
Z95 = 1.96
FEW = 30  # entries, above which their own spread is known well enough
EXACT = 1e-6


def error_of_size(relative: float, entries: int) -> float:
    """The standard error of log2 of a root mean square.

    The mean of n squares has the error std / sqrt(n), and the root halves it. Few entries do not show their spread:
    they have at least the error of normal ones, whose sum of squares has a chi-squared distribution. Equal ones were
    not drawn, so that they have none.

    Args:
        relative: Standard deviation of the squares, in units of their mean.
        entries: How many there are, at least 2.
    """
    if relative < EXACT:
        return 0.0
    seen = relative / (2 * math.log(2) * math.sqrt(entries))
    if entries > FEW:
        return seen
    ends = np.log2(chdtri(entries, [0.975, 0.025]) / entries) / 2
    return max(seen, float(np.abs(ends).max()) / Z95)


def weighted_exponents(widths: Sequence[int], logs: Array, errors: Array) -> tuple[Array, Array]:
    """Exponents of width by least squares, each width with the weight of its error, and half of their 95 % intervals.

    Args:
        widths: W of them.
        logs: log2 of sizes, (..., W).
        errors: Of `logs`, (..., W); infinite where nothing is known.

    Returns:
        Two arrays (...).
    """
    x = np.log2(np.array(widths, dtype=float))
    weights = 1 / np.clip(errors, EXACT, 1 / EXACT) ** 2
    centred = x - (weights * x).sum(axis=-1, keepdims=True) / weights.sum(axis=-1, keepdims=True)
    moment = (weights * centred**2).sum(axis=-1)
    exponents: Array = (weights * centred * logs).sum(axis=-1) / moment
    return exponents, Z95 / np.sqrt(moment)


def contrast(widths: Sequence[int]) -> Array:
    """Weights of the logarithms of numbers at these widths that make their exponent, by least squares."""
    x = np.log2(np.array(widths, dtype=float))
    weights: Array = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    return weights


def log2_or_nan(values: Array) -> Array:
    """NaN where there is no logarithm: a size of zero scales like nothing."""
    return np.log2(values, out=np.full_like(values, np.nan), where=values > 0)
