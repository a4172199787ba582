"""Slopes of records: how the size of each activation scales with width, with a confidence interval.

One least-squares fit of log2(l1) on log2(width) per seed, then Student's t interval over the seeds' slopes.
Seeds, not points, are the unit of sampling: the points of a seed share their batch, so an interval from
their residuals is too narrow (in a simulation with 5 widths and 3 seeds whose slopes differ, seed fixed effects
cover 74% and cluster-robust z-intervals 80% at nominal 95%, this one 94%). Works on records that anybody wrote.
"""

import numpy as np
import pandas as pd

from coordcheck.judge.statistics import Array, t_interval
from coordcheck.records.schema import UNKNOWN, WEIGHTS, cell_columns, curve_columns, repeated_seeds, sizes

MIN_WIDTHS = 3


def fit(records: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Slopes of all curves.

    Args:
        records: Columns as in :meth:`coordcheck.Recorder.records`, with the cell's columns before them.
        confidence: Of the interval.

    Returns:
        One row per curve in forward order: the cell's columns, ``module order role kind step slope ci_low
        ci_high`` (exponents of width), ``n_widths n_seeds`` (used in the fit), ``slope_std`` (over seeds),
        ``curvature`` (how much steeper the curve is at its wide end than at its narrow one, NaN where that
        lies within the noise), ``n_zero n_nonfinite`` (runs that were exactly zero, or not finite) of
        ``n_runs``. With one seed there is no interval: it is (-inf, inf). A curve with fewer than three widths has
        slope NaN. A role that no record states is "hidden" if the tensor grows with width, else "readout"; that of a
        parameter's weight or update is then "unknown".
    """
    keys = curve_columns(records)
    per_curve = seed_slopes(records).groupby(keys, sort=False)[["slope", "bend", "n_widths"]]
    estimates = per_curve.apply(_estimate, confidence=confidence).reset_index()
    return facts(records).merge(estimates, on=keys, how="left")[
        [
            *cell_columns(records),
            *("module", "order", "role", "kind", "step", "slope", "ci_low", "ci_high"),
            *("n_widths", "n_seeds", "slope_std", "curvature", "n_zero", "n_nonfinite", "n_runs"),
        ]
    ]


def seed_slopes(records: pd.DataFrame) -> pd.DataFrame:
    """The fit of each curve and seed; repeated seeds count once, see :func:`repeated_seeds`.

    Returns:
        One row per curve and seed: what identifies them, ``slope``, ``bend`` (slope at the widest point minus
        slope at the narrowest, of a parabola) and ``n_widths``; slope NaN where fewer than three widths are
        finite and not zero.
    """
    records = records[~records["seed"].isin(repeated_seeds(records))]
    keys = [*curve_columns(records), "seed"]
    size = sizes(records)
    usable = np.isfinite(size) & (size > 0) & (records["nonfinite"] == 0)
    logs = records.assign(log=np.log2(size.where(usable)))
    wide = logs.pivot_table(index=keys, columns="width", values="log", aggfunc="mean", dropna=False)
    wide = wide.reindex(pd.MultiIndex.from_frame(logs[keys].drop_duplicates()))
    x = np.log2(wide.columns.to_numpy(dtype=float))
    y = wide.to_numpy(dtype=float)
    fits = {"slope": _slope(x, y), "bend": _bend(x, y), "n_widths": np.isfinite(y).sum(axis=1)}
    return pd.DataFrame(fits, index=wide.index).reset_index()


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
        .fillna((curves["most"] > curves["fewest"]).map({True: "hidden", False: "readout"}).astype("string"))
    )
    return curves.sort_values(["order", "kind", "step"], kind="stable", ignore_index=True)


def _estimate(seeds: pd.DataFrame, confidence: float) -> pd.Series:
    """One curve from its seeds' fits."""
    slopes = seeds["slope"].dropna().to_numpy()
    if not len(slopes):
        return pd.Series(
            {"slope": np.nan, "ci_low": np.nan, "ci_high": np.nan, "n_widths": 0, "n_seeds": 0}
            | {"slope_std": np.nan, "curvature": np.nan}
        )
    low, high = t_interval(slopes, confidence)
    bends = seeds["bend"].dropna().to_numpy()
    bend_low, bend_high = t_interval(bends, confidence)
    return pd.Series(
        {
            "slope": slopes.mean(),
            "ci_low": low,
            "ci_high": high,
            "n_widths": int(seeds["n_widths"].max()),
            "n_seeds": len(slopes),
            "slope_std": slopes.std(ddof=1) if len(slopes) > 1 else np.nan,
            "curvature": bends.mean() if len(bends) and bend_low * bend_high > 0 else np.nan,
        }
    )


def _centred(x: Array, y: Array) -> tuple[Array, Array]:
    """X and y of each row about their means over the row's finite points; 0 at the others."""
    there = np.isfinite(y)
    n = np.maximum(there.sum(axis=1, keepdims=True), 1)
    x_rows = np.where(there, x, 0.0)
    y_rows = np.where(there, y, 0.0)
    return (
        np.where(there, x - x_rows.sum(axis=1, keepdims=True) / n, 0.0),
        np.where(there, y_rows - y_rows.sum(axis=1, keepdims=True) / n, 0.0),
    )


def _slope(x: Array, y: Array) -> Array:
    """Least-squares slope of each row of y (rows, widths) on x (widths); NaN with fewer than three points."""
    dx, dy = _centred(x, y)
    enough = np.isfinite(y).sum(axis=1) >= MIN_WIDTHS
    slopes: Array = np.divide((dx * dy).sum(axis=1), (dx * dx).sum(axis=1), out=np.full(len(y), np.nan), where=enough)
    return slopes


def _bend(x: Array, y: Array) -> Array:
    """Slope at the widest point minus slope at the narrowest, from a parabola through each complete row."""
    result = np.full(len(y), np.nan)
    complete = np.isfinite(y).all(axis=1)
    if len(x) > MIN_WIDTHS and complete.any():
        second = np.polyfit(x - x.mean(), y[complete].T, 2)[0]
        result[complete] = 2 * second * (x.max() - x.min())
    return result
