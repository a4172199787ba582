"""What can be known of a model before its first step: who wrote each parameter, and how it scales with width.

Builds the model at several widths under a :class:`coordcheck.observe.writes.WriteTracer`, reads the optimizer's groups
and fits exponents. What they should be is said by :mod:`coordcheck.judge.theory`, what follows by
:mod:`coordcheck.judge.audit`. Nothing is trained.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import mup
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coordcheck.observe.optimizer import check_optimizer, update_rules
from coordcheck.observe.roles import fans, infshapes, owner, roles, shapes
from coordcheck.observe.writes import FULL, History, Write, WriteTracer, root_mean_square
from coordcheck.records.schema import ARROW, ROOT

Array = NDArray[np.float64]
Build = Callable[[int], nn.Module]
Z95 = 1.96
EXACT = 1e-6
RATES = ("groups", "lr", "decay", "eps")
MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


def measure(build: Build, widths: Sequence[int], optimizer: MakeOptimizer | None) -> pd.DataFrame:
    """The facts of every parameter, without a judgement.

    Args:
        build: From width to model.
        widths: Ascending.
        optimizer: From model to optimizer, or None.

    Returns:
        One row per parameter in the model's order: ``parameter role tied_to`` (its other names) ``module``; at the
        largest width ``shape entries fan_in fan_out init_std`` (root mean square) and ``std_fan_in`` (times
        sqrt(fan_in)); ``writes`` (full ones), ``operations``, ``rules``, ``unwritten`` (entries), ``repeats`` (full
        writes beyond what its module does by default) and whether they ``conflict``; ``std_exponent std_low
        std_high`` (with a 95% interval), ``lr_exponent decay_exponent effective_decay_exponent eps_exponent``, NaN
        where there is none; ``groups`` (how often they hold it), ``update`` ("adam", "sgd" or "", see
        :func:`coordcheck.observe.optimizer.update_rules`) and ``multiplier_exponent`` where mup's classes tell it.

    Raises:
        ValueError: if what is built cannot be compared over the widths, or the optimizer is none.
    """
    traced = [_built(build, width) for width in widths]
    narrow, wide = traced[0][0], traced[-1][0]
    for model, _ in traced[1:]:
        grown = infshapes(shapes(narrow), shapes(model))
    at_width = [_facts(model, tracer, optimizer) for model, tracer in traced]
    table = at_width[-1].drop(columns=["lr", "decay", "eps", "error"])
    table["role"] = pd.Series(roles(wide, grown))
    table = table.join(_exponents(widths, at_width))
    update_of = {} if optimizer is None else _updates(narrow, optimizer)
    table["update"] = [update_of.get(name, "") for name in table.index]
    return table.rename_axis("parameter").reset_index()


def _built(build: Build, width: int) -> tuple[nn.Module, WriteTracer]:
    """A model of one width, and who wrote it."""
    torch.manual_seed(0)
    with WriteTracer() as tracer:
        model = build(width)
    if without := [name for name in shapes(model) if model.get_parameter(name).is_meta]:
        raise ValueError(
            f"`build` must return a model that is in memory; these parameters are on the meta device: {without}. "
            f"For example model.to_empty(device='cpu'), and then its initialization."
        )
    return model, tracer


def _by_memory(model: nn.Module) -> dict[Hashable, list[str]]:
    """The names of each parameter; tied ones share their memory, most of them by being one object."""
    names: dict[Hashable, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(_memory(parameter), []).append(name)
    return names


def _memory(parameter: Tensor) -> Hashable:
    storage = parameter.untyped_storage()._cdata
    return storage, parameter.storage_offset(), parameter.shape, parameter.stride()


def _facts(model: nn.Module, tracer: WriteTracer, optimizer: MakeOptimizer | None) -> pd.DataFrame:
    """What a model of one width shows, a row for each of its parameters by name."""
    groups = [] if optimizer is None else check_optimizer(optimizer(model)).param_groups
    held = [(_memory(p), group) for group in groups for p in group["params"]]
    rows: dict[str, dict[str, object]] = {}
    for memory, (name, *others) in _by_memory(model).items():
        parameter = model.get_parameter(name)
        owners = [owner(model, other) for other in (name, *others)]
        rows[name] = {"tied_to": ", ".join(others), "module": name.rpartition(".")[0] or ROOT}
        size = root_mean_square(parameter)
        rows[name] |= _size(parameter, size, owners) | _writes(tracer.history(parameter), parameter, size, set(owners))
        # a frozen parameter, and one of a model audited without an optimizer, needs no group
        trained = optimizer is not None and parameter.requires_grad
        rows[name] |= _rates([group for of, group in held if of == memory]) if trained else dict.fromkeys(RATES, np.nan)
    return pd.DataFrame.from_dict(rows, orient="index")


def _size(parameter: Tensor, size: float, owners: Sequence[nn.Module]) -> dict[str, object]:
    """What a parameter is and how large its entries are."""
    fan_in, fan_out = fans(owners[0], parameter.shape)
    in_mup = any(isinstance(module, mup.MuReadout) for module in owners)
    return {
        "shape": " x ".join(map(str, parameter.shape)),
        "entries": parameter.numel(),
        "fan_in": fan_in,
        "fan_out": fan_out,
        "init_std": size,
        "error": _error(parameter, size),
        "std_fan_in": size * fan_in**0.5,
        "multiplier_exponent": -1.0 if in_mup else np.nan,
    }


def _error(parameter: Tensor, size: float) -> float:
    """Of log2(size): the mean of n squares has the error std / sqrt(n), and the root halves it."""
    if not size > 0:
        return 0.0
    real = parameter.detach().abs() if parameter.is_complex() else parameter.detach()
    relative = float((real.float() / size).square().std(correction=0))
    return relative / (2 * math.log(2) * math.sqrt(parameter.numel()))


def _writes(history: History, parameter: Tensor, size: float, owners: set[nn.Module]) -> dict[str, object]:
    """Who wrote a parameter, each rule with the size it left."""
    sizes = [*(write.size for write in history.writes[:-1]), size]
    said = [
        f"{write.rule} ({'' if write.effect == FULL else f'{write.effect}, '}std {size:.3g})"
        for write, size in zip(history.writes, sizes, strict=False)
    ]
    again = _initializations(history.full_writes, owners)
    return {
        "writes": len(history.full_writes),
        "operations": sum(write.operations for write in history.writes),
        "rules": ARROW.join(said),
        "unwritten": history.unwritten(parameter),
        "repeats": len(again),
        "conflict": len({write.code for write in again}) > 1,
    }


def _initializations(writes: Sequence[Write], owners: set[nn.Module]) -> list[Write]:
    """Those after what a module does by default when it is made; without any, what it does more than once."""
    own = list(itertools.takewhile(lambda write: write.by_default(owners), writes))
    times = Counter(write.rule for write in own)
    return list(writes[len(own) :]) or [write for write in own if times[write.rule] > 1]


def _rates(holding: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the parameter groups that hold a parameter say of it."""
    first = holding[0] if holding else {}
    said = [first.get(key) for key in ("lr", "weight_decay", "eps")]
    # Adafactor has two epsilons
    numbers = [float(x) if isinstance(x, float | int | Tensor) else np.nan for x in said]
    return dict(zip(RATES, (len(holding), *numbers), strict=True))


def _updates(model: nn.Module, optimizer: MakeOptimizer) -> dict[str, str]:
    """By name, how a parameter's step depends on its gradient."""
    used = optimizer(model)
    held = [list(group["params"]) for group in used.param_groups]
    rule_of = {p: rule or "" for of, rule in zip(held, update_rules(used), strict=True) for p in of}
    return {name: rule_of.get(parameter, "") for name, parameter in model.named_parameters()}


def _exponents(widths: Sequence[int], at_width: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Exponents of width of what each width shows, a row for each parameter."""
    names = at_width[0].index
    x = np.log2(np.array(widths, dtype=float))

    def column(name: str) -> Array:
        return np.array([facts.loc[names, name].to_numpy(dtype=float) for facts in at_width]).T

    weights = 1 / np.maximum(column("error"), EXACT) ** 2
    centred = x - (weights * x).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
    moment = (weights * centred**2).sum(axis=1)
    std = (weights * centred * _log2(column("init_std"))).sum(axis=1) / moment
    half = Z95 / np.sqrt(moment)
    plain = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    lr, decay = _log2(column("lr")), _log2(column("decay"))
    return pd.DataFrame(
        {
            "std_exponent": std,
            "std_low": std - half,
            "std_high": std + half,
            "lr_exponent": lr @ plain,
            "decay_exponent": decay @ plain,
            "effective_decay_exponent": (lr + decay) @ plain,
            "eps_exponent": _log2(column("eps")) @ plain,
        },
        index=names,
    )


def _log2(values: Array) -> Array:
    """NaN where there is no logarithm: a zero scales like nothing."""
    return np.log2(values, out=np.full_like(values, np.nan), where=values > 0)
