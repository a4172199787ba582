"""Slopes of records: how the size of each activation scales with width, with a confidence interval.

Which values may be averaged is read from the seeds. Where a seed ran at several widths, its points share what the seed
drew, for example their batch: the seed is the unit of sampling, and the interval is Student's over the seeds' slopes
(an interval from the residuals of its points is too narrow: in a simulation with 5 widths and 3 seeds whose slopes
differ, seed fixed effects cover 74% and cluster-robust z-intervals 80% at nominal 95%, this one 94%). Where no seed ran
at two widths, all points are independent: the slope is the least-squares line through the widths' means, which is a
linear contrast of them, its interval Welch's with Satterthwaite's degrees of freedom (Biometrics Bulletin 2, 1946), and
each width may have its own number of runs. Works on records that anybody wrote.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from coordcheck.judge.statistics import Array
from coordcheck.records.schema import (
    DEPTH,
    UNKNOWN,
    WEIGHTS,
    axis_of,
    cell_columns,
    curve_columns,
    repeated_seeds,
    sizes,
)

MIN_WIDTHS = 3


def fit(records: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Slopes of all curves.

    Args:
        records: Columns as in :meth:`coordcheck.Recorder.records`, with the cell's columns before them.
        confidence: Of the interval.

    Returns:
        One row per curve in forward order: the cell's columns, ``module order role kind step slope ci_low
        ci_high`` (exponents of width), ``n_widths n_seeds`` (used in the fit; of independent runs the fewest at a
        width), ``error df`` (standard error of the slope, and its degrees of freedom), ``curvature`` (how much
        steeper the curve is at its wide end than at its narrow one, NaN where that lies within the noise), ``n_zero
        n_nonfinite`` (runs that were exactly zero, or not finite) of ``n_runs``. With one seed there is no interval: it
        is (-inf, inf). A curve with fewer than three widths has slope NaN. A role that no record states is "hidden" if
        the tensor grows with width, else "readout"; that of a parameter's weight or update, or of anything over depths,
        is then "unknown".
    """
    sample = Sample.of(records)
    slope, bend = sample.slopes(), sample.bends()
    half, bend_half = slope.half_width(confidence), bend.half_width(confidence)
    estimates = pd.DataFrame(
        {
            "slope": slope.value,
            "ci_low": slope.value - half,
            "ci_high": slope.value + half,
            "n_widths": sample.n_widths(),
            "n_seeds": sample.n_seeds(),
            "error": slope.error,
            "df": slope.df,
            "curvature": np.where(np.abs(bend.value) > bend_half, bend.value, np.nan),
        },
        index=sample.curves,
    ).reset_index()
    return facts(records).merge(estimates, on=curve_columns(records), how="left")[
        [
            *cell_columns(records),
            *("module", "order", "role", "kind", "step", "slope", "ci_low", "ci_high"),
            *("n_widths", "n_seeds", "error", "df", "curvature", "n_zero", "n_nonfinite", "n_runs"),
        ]
    ]


class Estimate:
    """Values of many curves, each with its noise; NaN where there is none.

    Args:
        value: Estimated, one for each curve.
        error: Its standard error; NaN or infinite where nothing is known of it.
        df: Degrees of freedom of the error.
    """

    def __init__(self, value: Array, error: Array, df: Array):
        self.value = value
        self.error = error
        self.df = df

    def half_width(self, confidence: float) -> Array:
        """Half of Student's interval; infinite where the noise is not known."""
        known = np.isfinite(self.error) & (self.df > 0)
        half = stdtrit(np.where(known, self.df, 1.0), (1 + confidence) / 2) * np.where(known, self.error, 0.0)
        result: Array = np.where(np.isnan(self.value), np.nan, np.where(known, half, np.inf))
        return result


class Sample:
    """The sizes of all curves in log2, by width and run.

    Args:
        curves: What identifies each curve.
        x: log2 of the widths.
        y: (curves, seeds, widths); NaN where a run is missing, zero or not finite.
    """

    def __init__(self, curves: pd.MultiIndex, x: Array, y: Array):
        self.curves = curves
        self.x = x
        self.y = y
        there = np.isfinite(y)
        # of all curves together: seeds are shared by a check, though single runs may be missing from a curve
        self.blocks = bool((there.any(axis=0).sum(axis=1) > 1).any())
        self.n = there.sum(axis=1)  # (curves, widths)

    @classmethod
    def of(cls, records: pd.DataFrame) -> "Sample":
        """That of records; repeated seeds count once, see :func:`repeated_seeds`."""
        records = records[~records["seed"].isin(repeated_seeds(records))]
        keys = curve_columns(records)
        size = sizes(records).to_numpy(dtype=float)
        usable = np.isfinite(size) & (size > 0) & (records["nonfinite"].to_numpy() == 0)
        grouped = records.groupby(keys, sort=False)
        curve = grouped.ngroup().to_numpy()
        curves = pd.MultiIndex.from_frame(records[keys].drop_duplicates())
        widths, width = np.unique(records["width"].to_numpy(dtype=float), return_inverse=True)
        seeds, seed = np.unique(records["seed"].to_numpy(), return_inverse=True)
        y = np.full((len(curves), len(seeds), len(widths)), np.nan)
        y[curve[usable], seed[usable], width[usable]] = np.log2(size[usable])
        return cls(curves, np.log2(widths), y)

    def seed_slopes(self) -> Array:
        """The slope of each curve and seed, (curves, seeds); NaN with fewer than three widths."""
        flat = self.y.reshape(-1, len(self.x))
        return _slope(self.x, flat).reshape(self.y.shape[:2])

    def slopes(self) -> Estimate:
        """The slope of each curve."""
        return _mean(self.seed_slopes()) if self.blocks else self._contrast(self.line())

    def line(self) -> Array:
        """Weights of the widths' means whose sum is the slope, (curves, widths)."""
        return _line(self.x, self.n > 0)

    def bends(self) -> Estimate:
        """Slope at the widest point minus slope at the narrowest, of the parabola through each curve's points.

        NaN with three widths, or where one is missing.
        """
        weights = _bend(self.x)
        if not self.blocks:
            return self._contrast(np.where((self.n > 0).all(axis=1, keepdims=True), weights, np.nan))
        bends: Array = self.y @ weights
        return _mean(bends)

    def n_widths(self) -> Array:
        """Widths that tell of each curve; 0 where they give no slope."""
        widths = np.isfinite(self.y).sum(axis=2).max(axis=1, initial=0) if self.blocks else (self.n > 0).sum(axis=1)
        counted: Array = np.where(widths >= MIN_WIDTHS, widths, 0)
        return counted

    def n_seeds(self) -> Array:
        """Seeds that tell of each curve; of independent runs the fewest at a width."""
        if self.blocks:
            seeds: Array = np.isfinite(self.seed_slopes()).sum(axis=1)
            return seeds
        fewest = np.where(self.n > 0, self.n, np.iinfo(np.int64).max).min(axis=1)
        result: Array = np.where((self.n > 0).sum(axis=1) >= MIN_WIDTHS, fewest, 0)
        return result

    def spread(self) -> tuple[Array, Array]:
        """Mean of each curve at each width, and the variance of its runs there, (curves, widths) each.

        A width with a single run says nothing of its noise: the largest variance of the others stands in, for the
        noise falls with width, and what is alone is mostly what is wide.
        """
        count = np.maximum(self.n, 1)
        means = np.nansum(self.y, axis=1) / count
        residuals = np.where(np.isfinite(self.y), self.y - means[:, None], 0.0)
        variances = np.where(self.n > 1, (residuals**2).sum(axis=1) / np.maximum(self.n - 1, 1), np.nan)
        largest = np.nanmax(np.where((self.n > 1).any(axis=1, keepdims=True), variances, np.inf), axis=1, keepdims=True)
        return means, np.where(self.n > 1, variances, largest)

    def _contrast(self, weights: Array) -> Estimate:
        """A linear combination of the widths' means, (curves, widths) weights, as each curve has its own widths."""
        means, variances = self.spread()
        count = np.maximum(self.n, 1)
        parts = weights**2 * np.where(weights == 0, 0.0, variances) / count
        total = parts.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            df = total**2 / (parts**2 / np.maximum(count - 1, 1)).sum(axis=1)
        # without any spread there is nothing to be uncertain about
        df = np.where(total == 0, (count - 1).sum(axis=1), df)
        return Estimate((weights * _centred(means, self.n > 0)).sum(axis=1), np.sqrt(total), df)


def seed_slopes(records: pd.DataFrame) -> pd.DataFrame:
    """The slope of each curve and seed, where seeds ran at several widths.

    Returns:
        One row per curve and seed: what identifies them, and ``slope``, NaN where fewer than three widths are finite
        and not zero.
    """
    sample = Sample.of(records)
    slopes = pd.DataFrame(sample.seed_slopes(), index=sample.curves).reset_index()
    return slopes.melt(id_vars=[str(name) for name in sample.curves.names], var_name="seed", value_name="slope")


def facts(records: pd.DataFrame) -> pd.DataFrame:
    """What a curve is, apart from its slope: one row per curve, in forward order."""
    flags = records.assign(zero=sizes(records) == 0, bad=(records["nonfinite"] > 0) | ~np.isfinite(sizes(records)))
    grouped = flags.groupby(curve_columns(records), sort=False)
    curves = grouped.agg(
        order=("order", "min"),
        role=("role", "first"),
        n_zero=("zero", "sum"),
        n_nonfinite=("bad", "sum"),
        n_runs=("zero", "size"),
        fewest=("count", "min"),
        most=("count", "max"),
    ).reset_index()
    curves["role"] = (
        curves["role"]
        .mask(curves["role"].isna() & curves["kind"].isin(WEIGHTS), UNKNOWN)
        .fillna(
            UNKNOWN
            if axis_of(records) == DEPTH
            else (curves["most"] > curves["fewest"]).map({True: "hidden", False: "readout"}).astype("string")
        )
    )
    return curves.sort_values(["order", "kind", "step"], kind="stable", ignore_index=True)


def _mean(values: Array) -> Estimate:
    """Of a sample in each row, NaN left out."""
    there = np.isfinite(values)
    n = there.sum(axis=1)
    mean = np.where(n > 0, np.where(there, values, 0.0).sum(axis=1) / np.maximum(n, 1), np.nan)
    residuals = np.where(there, values - mean[:, None], 0.0)
    variance = (residuals**2).sum(axis=1) / np.maximum(n - 1, 1)
    return Estimate(mean, np.where(n > 1, np.sqrt(variance / np.maximum(n, 1)), np.nan), n - 1.0)


def _line(x: Array, there: NDArray[np.bool_]) -> Array:
    """Weights of the means whose sum is the least-squares slope, by row; NaN with fewer than three points."""
    n = np.maximum(there.sum(axis=1, keepdims=True), 1)
    dx = np.where(there, x - np.where(there, x, 0.0).sum(axis=1, keepdims=True) / n, 0.0)
    enough = there.sum(axis=1, keepdims=True) >= MIN_WIDTHS
    square = (dx**2).sum(axis=1, keepdims=True)
    weights: Array = np.where(enough, dx / np.where(square > 0, square, 1.0), np.nan)
    return weights


def _slope(x: Array, y: Array) -> Array:
    """Least-squares slope of each row of y (rows, widths) on x (widths); NaN with fewer than three points."""
    there = np.isfinite(y)
    slopes: Array = (_line(x, there) * _centred(y, there)).sum(axis=1)
    return slopes


def _centred(y: Array, there: NDArray[np.bool_]) -> Array:
    """Each row about its mean, so that rounding leaves the slope of a constant at zero; 0 where nothing is there."""
    known = np.where(there, y, 0.0)
    mean = known.sum(axis=1, keepdims=True) / np.maximum(there.sum(axis=1, keepdims=True), 1)
    centred: Array = np.where(there, known - mean, 0.0)
    return centred


def _bend(x: Array) -> Array:
    """Weights of the means whose sum is the change of slope from the narrowest to the widest, of a parabola."""
    if len(x) <= MIN_WIDTHS:
        return np.full(len(x), np.nan)
    weights: Array = 2 * (x.max() - x.min()) * np.linalg.pinv(np.vander(x - x.mean(), 3))[0]
    return weights
