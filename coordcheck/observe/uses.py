"""Reads where each parameter meets data in a forward pass, and with which factor, at several widths.

Roles and forward multipliers are read here, not guessed from shapes or from the classes of modules. What they should be
is for :mod:`coordcheck.judge.theory` to say.
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from scipy.special import stdtrit
from torch import nn

from coordcheck.observe.eager import eager
from coordcheck.observe.flow import FlowMode
from coordcheck.observe.ledger import VECTORS, Ledger, OpenUse
from coordcheck.observe.roles import fans, owner

Build = Callable[[int], nn.Module]
Run = Callable[[nn.Module], Any]
Item = TypeVar("Item")
UNUSED = "unused"
UNSEEN = "unseen"
EXACT = 1e-9
NO_VALUE = "a factor is a tensor without memory, on meta"


@dataclass(frozen=True)
class Use:
    """One place in a forward pass where a parameter meets data.

    Attributes:
        parameter: Its name; the first one of a tied parameter.
        operation: "linear", "embedding", "matmul", "conv", "einsum", "recurrent", "elementwise", "norm",
            "concatenate", ... or the name of a torch function that is not known; "unseen" for a parameter that
            no torch function was seen to take although its module ran, "unused" for one whose module did not run.
        module: The innermost module whose forward was running; "" is the model itself.
        fan_in: Number of entries that are summed into one, kernels included; 1 where nothing is summed.
        fan_out: Size of the output per block, kernels left aside.
        blocks: How many such products stand side by side: heads, experts, groups, entries of a vector.
        dim_in: Dimensions of the parameter that are summed over.
        dim_out: Dimensions of the parameter that are the output's.
        factor_before: What the data or the weight was multiplied by before.
        factor_after: What the result was multiplied by; both are sizes, without a sign.
        is_returned: Whether the model returns the result, up to factors and sums.
        feeds: Whether the product of a parameter later reads it.
        reason: Why a factor is unknown, NaN then.
        sizes: Root mean squares (result, data, weight) where the factor has to be measured.
    """

    parameter: str
    operation: str
    module: str
    fan_in: int
    fan_out: int
    blocks: int
    dim_in: tuple[int, ...] = ()
    dim_out: tuple[int, ...] = ()
    factor_before: float = 1.0
    factor_after: float = 1.0
    is_returned: bool = False
    feeds: bool = False
    reason: str = ""
    sizes: tuple[float, float, float] | None = None


def trace_uses(model: nn.Module, run: Callable[[], Any]) -> list[Use]:
    """The uses of a model's parameters in one forward pass.

    Args:
        model: On any device; on ``meta`` nothing is computed, and a factor that is a tensor is unknown.
        run: Runs the model once, without gradients. It may compute a loss. What a forward pass changes, such as
            running means, is changed.

    Returns:
        In the order of the pass, at least one use for each parameter.

    Example:
        >>> layer = nn.Linear(8, 3, bias=False)
        >>> [use] = trace_uses(layer, lambda: layer(torch.ones(2, 8) / 4))
        >>> use.operation, use.fan_in, use.is_returned
        ('linear', 8, True)
    """
    mode = _traced(model, run)
    names = [name for name, _ in model.named_parameters() if name not in mode.ledger.used]
    return [*_closed(model, mode.ledger), *(_unseen(model, name, mode) for name in names)]


def read_uses(build: Build, run: Run, widths: Sequence[int]) -> pd.DataFrame:
    """The uses of a model's parameters, with the exponents of width of what they do.

    Args:
        build: From width to a model with the same parameter names at every width.
        run: Runs a model once.
        widths: At least two distinct values.

    Returns:
        One row per parameter and use, in the order of the pass; uses that are alike at all widths are one. Columns
        ``parameter use`` (its number among the parameter's) ``operation module``; at the largest width ``fan_in
        fan_out blocks dim_in dim_out``; ``fan_in_exponent fan_out_exponent blocks_exponent factor_before_exponent
        factor_after_exponent``, exact, NaN where there is a ``reason``; ``is_returned feeds``; ``measured`` (the
        exponent of the product of both factors where it can only be measured, else NaN) with its 95% interval
        ``measured_low measured_high``.

    Raises:
        ValueError: if there are too few widths.
    """
    ascending = sorted({int(width) for width in widths})
    if len(ascending) < 2:
        raise ValueError(
            f"`widths` needs at least 2 distinct values to fit an exponent; got {list(widths)}. "
            f"For example widths=[64, 128, 256]."
        )
    at_width = []
    for width in ascending:
        model = build(width)
        at_width.append(trace_uses(model, lambda model=model: run(model)))  # type: ignore[misc]
    rows = [_row(uses) for uses in _matched(ascending, at_width)]
    frame = pd.DataFrame(rows)
    frame.insert(1, "use", frame.groupby("parameter").cumcount())
    return frame


def roles_from_uses(frame: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """The roles of each parameter, one for each of its uses, in their order and each once.

    Args:
        frame: As :func:`read_uses` gives it.

    Returns:
        "input", "hidden", "readout", "projection", "vector" or "fixed", by the parameter's name. None at all for a
        parameter that is unused.
    """
    found: dict[str, dict[str, None]] = {}
    for row in frame.itertuples():
        roles = found.setdefault(str(row.parameter), {})
        if row.operation != UNUSED:
            roles[use_role(row)] = None
    return {name: tuple(roles) for name, roles in found.items()}


def use_role(row: Any) -> str:
    """The role that a parameter has in one use, a row of :func:`read_uses`."""
    sums = abs(row.fan_in_exponent) > EXACT
    out = abs(row.fan_out_exponent) > EXACT
    blocks = abs(row.blocks_exponent) > EXACT
    if row.operation in VECTORS:
        return "vector" if out or blocks else "fixed"
    if sums:
        return "hidden" if out or blocks else "projection" if row.feeds else "readout"
    return "input" if out else "vector" if blocks else "fixed"


def _traced(model: nn.Module, run: Callable[[], Any]) -> FlowMode:
    # nothing is compiled before this is imported, which takes a second
    compiled = "torch._dynamo" in sys.modules
    mode = FlowMode(model)
    with eager() if compiled else nullcontext(), torch.no_grad(), mode.watching(model), mode:
        output = run()
    mode.returns(output)
    return mode


def _closed(model: nn.Module, ledger: Ledger) -> list[Use]:
    """Uses with all factors settled, for which it must be known what was returned."""
    after = [_factor_after(ledger, use) for use in ledger.uses]
    return [_closed_use(model, ledger, index, after) for index in range(len(after))]


def _factor_after(ledger: Ledger, use: OpenUse) -> float:
    """A factor between two products belongs to the first one, unless the second one makes what the model returns."""
    if use.after is not None or use.claimant < 0:
        return math.nan if use.after is None else use.after
    claimant = ledger.uses[use.claimant]
    return use.claimed_at * (1.0 if ledger.is_returned(use.claimant) else claimant.disputed)


def _closed_use(model: nn.Module, ledger: Ledger, index: int, after: Sequence[float]) -> Use:
    use = ledger.uses[index]
    before = use.own
    if use.source >= 0 and not math.isclose(after[use.source], use.source_factor * use.disputed, rel_tol=EXACT):
        before *= use.disputed
    reason = use.reason
    if not reason and use.after is None and use.claimant < 0:
        reason = "nothing was seen to take its result"
    elif not reason and not math.isfinite(before * after[index]):
        reason = NO_VALUE if math.isnan(before * after[index]) else "a factor is infinite"
    sizes = (use.fan_in, use.fan_out, use.blocks) if use.fan_in else _guessed(model, use.parameter)
    return Use(
        *(use.parameter, use.operation, use.module, *sizes, use.dim_in, use.dim_out),
        factor_before=before,
        factor_after=after[index],
        is_returned=ledger.is_returned(index),
        feeds=bool(ledger.read >> index & 1),
        reason=reason,
        sizes=use.sizes,
    )


def _guessed(model: nn.Module, name: str) -> tuple[int, int, int]:
    """Fans from the parameter's shape and its module's class, where no sum was seen."""
    shape = model.get_parameter(name).shape
    if len(shape) < 2:
        return 1, 1, shape.numel()
    return *fans(owner(model, name), shape), 1


def _unseen(model: nn.Module, name: str, mode: FlowMode) -> Use:
    """What is left to say of a parameter that no function was seen to take."""
    sizes = mode.around.get(name)
    reason = "its module did not run" if sizes is None else "no torch function was seen to take it"
    return Use(
        *(name, UNUSED if sizes is None else UNSEEN, name.rpartition(".")[0], *_guessed(model, name)),
        factor_before=math.nan,
        factor_after=math.nan,
        reason=reason,
        sizes=sizes,
    )


def _matched(widths: Sequence[int], at_width: Sequence[Sequence[Use]]) -> list[dict[int, Use]]:
    """The same use at every width, those that are alike at all of them once."""
    by_place: dict[Hashable, list[list[Use]]] = {}
    for place, uses in enumerate(at_width):
        for use in uses:
            key = use.parameter, use.operation, use.module, use.dim_in, use.dim_out
            by_place.setdefault(key, [[] for _ in widths])[place].append(use)
    matched = []
    for found in by_place.values():
        if len({len(uses) for uses in found}) > 1:
            # how often a loop runs may depend on data
            found = [[_one(group) for group in _groups(uses, _alike)] for uses in found]
        columns = [
            {width: uses[number] for width, uses in zip(widths, found, strict=True) if number < len(uses)}
            for number in range(max(map(len, found)))
        ]
        for group in _groups(columns, lambda column: tuple((width, _alike(use)) for width, use in column.items())):
            matched.append({width: _one([column[width] for column in group]) for width in group[0]})
    return matched


def _groups(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    """Items of the same key, in the order in which the keys come."""
    groups: dict[Hashable, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def _alike(use: Use) -> Hashable:
    """What makes two uses different; NaN is alike to itself."""
    factors = (f"{factor:.9g}" for factor in (use.factor_before, use.factor_after))
    return (*factors, use.fan_in, use.fan_out, use.blocks, use.reason)


def _one(uses: Sequence[Use]) -> Use:
    """Uses that are alike, as one."""
    returned, feeds = any(use.is_returned for use in uses), any(use.feeds for use in uses)
    return dataclasses.replace(uses[0], is_returned=returned, feeds=feeds)


def _row(uses: Mapping[int, Use]) -> dict[str, object]:
    """One use at several widths, as a row."""
    widths, seen = list(uses), list(uses.values())
    last = seen[-1]
    row: dict[str, object] = {
        "parameter": last.parameter,
        "operation": last.operation,
        "module": last.module,
        "fan_in": last.fan_in,
        "fan_out": last.fan_out,
        "blocks": last.blocks,
        "dim_in": last.dim_in,
        "dim_out": last.dim_out,
    }
    for name in ("fan_in", "fan_out", "blocks", "factor_before", "factor_after"):
        row[f"{name}_exponent"] = _exponent(widths, [float(getattr(use, name)) for use in seen])
    reasons = [use.reason for use in seen if use.reason]
    if len(widths) < 2:
        reasons.append(f"used at width {widths[0]} only")
    elif not reasons and not all(use.factor_before * use.factor_after > 0 for use in seen):
        reasons.append("a factor is zero")
    row |= {
        "is_returned": any(use.is_returned for use in seen),
        "feeds": any(use.feeds for use in seen),
        "reason": reasons[0] if reasons else "",
    }
    return row | dict(zip(("measured", "measured_low", "measured_high"), _measured(widths, seen), strict=True))


def _exponent(widths: Sequence[int], values: Sequence[float]) -> float:
    """By least squares on logarithms; NaN where there is none."""
    x, y = np.log2(widths), np.array(values)
    if len(x) < 2 or not (np.isfinite(y) & (y > 0)).all():
        return math.nan
    centred = x - x.mean()
    # adding zero leaves no negative one
    return round(float(centred @ np.log2(y) / (centred @ centred)), 9) + 0.0


def _measured(widths: Sequence[int], uses: Sequence[Use]) -> tuple[float, float, float]:
    """Slope, with its interval, of what a product's result is larger by than independent terms would be."""
    nothing = (math.nan, math.nan, math.nan)
    sizes = [use.sizes for use in uses if use.sizes is not None]
    if len(sizes) < len(uses) or len(widths) < 3 or uses[-1].operation in VECTORS:
        return nothing
    result, data, weight = np.array(sizes).T
    fan_in = np.array([use.fan_in for use in uses], dtype=float)
    if fan_in.max() <= 1 or not np.all(np.array(sizes) > 0):
        return nothing
    y = np.log2(result / data / weight / np.sqrt(fan_in))
    x = np.log2(widths) - np.log2(widths).mean()
    slope = float(x @ y / (x @ x))
    error = math.sqrt(float(np.square(y - y.mean() - slope * x).sum() / (x @ x) / (len(x) - 2)))
    half = float(stdtrit(len(x) - 2, 0.975)) * error
    return slope, slope - half, slope + half
