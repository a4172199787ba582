"""What is expected of the spectral norms of weights, where the audit read what else multiplies them."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from coordcheck.judge.theory import NO_CLAIM, Expectation, possible_multipliers
from coordcheck.records.schema import WEIGHTS


def weight_ranges(
    slopes: pd.DataFrame, ranges: Sequence[Expectation], parameters: pd.DataFrame | None
) -> list[Expectation]:
    """The ranges of all curves, those of the kinds "weight" and "update" for the numbers that are stored.

    A weight whose product is multiplied by width^a is as much larger as the product is made smaller. Where nobody read
    a, it may be any that the usual parametrizations have.

    Args:
        slopes: One row per curve.
        ranges: One for each, without multipliers.
        parameters: Of an audit.
    """
    rows = {} if parameters is None else {str(row["parameter"]): row for row in parameters.to_dict("records")}
    curves = zip(ranges, slopes["kind"], slopes["module"], slopes["role"], strict=True)
    return [
        _stored(expectation, rows.get(module), role) if kind in WEIGHTS else expectation
        for expectation, kind, module, role in curves
    ]


def _stored(expectation: Expectation, row: Mapping[Hashable, Any] | None, role: str) -> Expectation:
    if np.isinf(expectation.low) and np.isinf(expectation.high):
        return expectation
    if row is not None and _is_another_matrix(row):
        return Expectation(-np.inf, np.inf, f"{NO_CLAIM}: the forward pass sums over other dimensions than the norm")
    read = np.nan if row is None else float(row["multiplier_exponent"])
    multipliers = possible_multipliers(role) if np.isnan(read) else (read,)
    return replace(
        expectation, low=expectation.low - max(multipliers) + 0.0, high=expectation.high - min(multipliers) + 0.0
    )


def _is_another_matrix(row: Mapping[Hashable, Any]) -> bool:
    """Whether a weight of three dimensions was not used as a stack of matrices of the last two."""
    shape = [int(size) for size in str(row["shape"]).split(" x ") if size]
    operation = str(row["used_in"]).partition(" in ")[0]
    if len(shape) != 3 or operation in ("", "conv") or row["role"] in ("vector", "fixed"):
        return False
    return {row["fan_in"], row["fan_out"]} != {*shape[1:]}
