"""What can be known of a JAX model before its first step: how each parameter starts, is used and is trained.

Judged by :mod:`coordcheck.judge.audit` as a torch model's table is. JAX's arrays are made once, so who wrote them is
their initializer, and an optax transformation has no groups: what it does is tried.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from coordcheck.jax.cell import JaxCell
from coordcheck.jax.roles import by_role
from coordcheck.jax.steps import Step, try_steps
from coordcheck.jax.told import names_of
from coordcheck.observe.exponents import contrast, error_of_size, log2_or_nan, weighted_exponents
from coordcheck.records.schema import ROOT

Array = NDArray[np.float64]
KEYS = 4  # that initialize each width


def measure(cell: JaxCell, widths: Sequence[int], with_optimizer: bool = True) -> pd.DataFrame:
    """The facts of every parameter, without a judgement.

    Args:
        cell: What is built.
        widths: Ascending.
        with_optimizer: Whether learning rates and decays are looked at.

    Returns:
        One row per parameter, with the columns of :func:`coordcheck.observe.parameters.measure`.
    """
    traced = [cell.traced(width) for width in widths]
    names = names_of(traced[0].parameters)
    sizes = [_sizes(cell, width) for width in widths]
    nothing = Step("", math.nan, math.nan)
    steps = [_steps(cell, width) if with_optimizer else {} for width in widths]
    rows = []
    for name in names:
        rms = np.array([of[name][0] for of in sizes])
        errors = np.array([of[name][1] for of in sizes])
        taken = [of.get(name, nothing) for of in steps]
        shape = traced[-1].shapes[name]
        row: dict[str, Any] = {
            "parameter": name,
            "role": cell.roles[name],
            "tied_to": "",
            "module": name.rpartition(".")[0] or ROOT,
            "shape": " x ".join(map(str, shape)),
            "entries": math.prod(shape),
            "fan_in": shape[-2] if len(shape) > 1 else 1,
            "fan_out": shape[-1] if shape else 1,
            "init_std": rms[-1],
            "writes": 1,
            "operations": 1,
            "rules": "its initializer",
            "unwritten": 0,
            "repeats": 0,
            "conflict": False,
            "groups": 1.0 if with_optimizer else np.nan,
            "update": taken[0].rule,
            "eps_exponent": np.nan,
            **_std_exponent(widths, rms, errors),
            **rates(widths, taken),
            **_uses(name, [t.uses for t in traced], cell.roles[name], widths),
        }
        row["std_fan_in"] = row["init_std"] * row["fan_in"] ** 0.5
        rows.append(row)
    return pd.DataFrame(rows)


def _steps(cell: JaxCell, width: int) -> dict[str, Step]:
    """What the optimizer does with each parameter of one width."""
    found = try_steps(cell.optimizer(width), cell.traced(width).parameters)
    named = zip(found.items(), cell.factors(width)[0].tolist(), strict=True)
    return {name: step._replace(size=step.size * f, decay=step.decay * f) for (name, step), f in named}


def _sizes(cell: JaxCell, width: int) -> dict[str, tuple[float, float]]:
    """Root mean square of each initial parameter over some keys, and the error of its log2."""
    moments = np.zeros((len(cell.traced(width).shapes), 2))
    for key in range(KEYS):
        for i, p in enumerate(jax.device_get(jax.tree.leaves(cell.begun(width, key)[0]))):
            squares = np.square(np.asarray(p, dtype=np.float64))
            moments[i] += np.array([squares.mean(), np.square(squares).mean()]) / KEYS
    parameters = cell.traced(width).parameters
    result = {}
    for name, leaf, (second, fourth) in zip(names_of(parameters), jax.tree.leaves(parameters), moments, strict=True):
        entries = leaf.size * KEYS
        relative = math.sqrt(max(0.0, fourth / second**2 - 1)) if second > 0 else 0.0
        result[name] = math.sqrt(second), error_of_size(relative, entries)
    return result


def _std_exponent(widths: Sequence[int], rms: Array, errors: Array) -> dict[str, float]:
    exponent, half = (float(of) for of in weighted_exponents(widths, log2_or_nan(rms), errors))
    return {"std_exponent": exponent, "std_low": exponent - half, "std_high": exponent + half}


def rates(widths: Sequence[int], taken: Sequence[Step]) -> dict[str, float]:
    """Exponents of width of what a step does; of one that depends on shapes no learning rate is seen apart."""
    lr = _exponent(widths, [step.size for step in taken])
    product = _exponent(widths, [step.decay for step in taken])
    return {
        "lr_exponent": lr,
        "decay_exponent": product - lr,
        "effective_decay_exponent": product,
        "step_exponent": 0.0 if taken[0].rule else np.nan,
    }


def _uses(name: str, uses: Sequence[Sequence[Any]], role: str, widths: Sequence[int]) -> dict[str, Any]:
    """What was read of a parameter's uses."""
    found = by_role(name, uses)
    mine = [use for kind, use in found if kind == role]
    if not mine:
        return {"used_in": "", "multiplier_exponent": np.nan}
    first = mine[0]
    said: dict[str, Any] = {
        "used_in": _place(first[-1]),
        "multiplier_exponent": _multiplier(widths, first),
        "after_exponent": _exponent(widths, [use.after for use in first]),
        "returned": first[-1].returned,
    }
    if role not in ("vector", "fixed"):
        said |= {"fan_in": first[-1].fan_in, "fan_out": first[-1].fan_out}
    as_readout = [use for kind, use in found if kind == "readout"]
    if role == "input" and as_readout:
        said["readout_used_in"] = _place(as_readout[0][-1])
        said["readout_multiplier_exponent"] = _multiplier(widths, as_readout[0])
    return said


def _place(use: Any) -> str:
    return f"{use.operation} in {use.module or use.parameter.rpartition('.')[0] or ROOT}"


def _multiplier(widths: Sequence[int], use: Sequence[Any]) -> float:
    return _exponent(widths, [one.before * one.after for one in use])


def _exponent(widths: Sequence[int], values: Sequence[float]) -> float:
    return float(log2_or_nan(np.array(values, dtype=float)) @ contrast(widths)) + 0.0
