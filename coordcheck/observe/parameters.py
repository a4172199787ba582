"""What can be known of a model before its first step: who wrote each parameter, and how it scales with width.

Builds the model at several widths under a :class:`coordcheck.observe.writes.WriteTracer`, reads the optimizer's groups
and fits exponents. What they should be is said by :mod:`coordcheck.judge.theory`, what follows by
:mod:`coordcheck.judge.audit`. Nothing is trained.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import mup
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coordcheck.observe.exponents import contrast, error_of_size, log2_or_nan, weighted_exponents
from coordcheck.observe.optimizer import Step, check_optimizer, try_steps
from coordcheck.observe.roles import fans, infshapes, owner, roles, shapes
from coordcheck.observe.uses import UNSEEN, UNUSED, read_uses, roles_from_uses, use_role
from coordcheck.observe.writes import FULL, History, Write, WriteTracer, root_mean_square
from coordcheck.records.schema import ARROW, ROOT

Array = NDArray[np.float64]
Build = Callable[[int], nn.Module]
Run = Callable[[nn.Module], Any]
SAMPLE = 100_000  # entries of a gradient that are looked at
RATES = ("groups", "lr", "decay", "eps")
MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


def measure(
    build: Build, widths: Sequence[int], optimizer: MakeOptimizer | None, forward: Run | None = None
) -> pd.DataFrame:
    """The facts of every parameter, without a judgement.

    Args:
        build: From width to model.
        widths: Ascending.
        optimizer: From model to optimizer, or None.
        forward: Runs a model once, to read how each parameter is used; None leaves that to shapes and classes.

    Returns:
        One row per parameter in the model's order: ``parameter role tied_to`` (its other names) ``module``; at the
        largest width ``shape entries fan_in fan_out init_std`` (root mean square) and ``std_fan_in`` (times
        sqrt(fan_in)); ``writes`` (full ones), ``operations``, ``rules``, ``unwritten`` (entries), ``repeats`` (full
        writes beyond what its module does by default) and whether they ``conflict``; ``std_exponent std_low
        std_high`` (with a 95% interval), ``lr_exponent decay_exponent effective_decay_exponent eps_exponent``, NaN
        where there is none; ``groups`` (how often they hold it), ``trained`` (False for a frozen one), ``update`` and
        ``step_exponent`` (see :class:`coordcheck.observe.optimizer.Step`); and what was read of its uses:
        ``used_in`` (operation and module; empty where it was not read), ``multiplier_exponent`` (of what its product is
        multiplied by; where it was not read, as mup's classes tell it), ``after_exponent`` (of the part of it that
        comes after the product), ``returned`` (whether the model returns the product), ``readout_used_in`` and
        ``readout_multiplier_exponent`` (of the use as a readout of a tied weight) and ``class_multiplier_exponent`` (as
        mup's classes tell it). ``eps`` at the largest width; and with a forward pass ``gradient``, which a quarter of a
        gradient's entries there does not exceed in the first two steps, and its ``gradient_exponent``.

    Raises:
        ValueError: if what is built cannot be compared over the widths, or the optimizer is none.
    """
    traced = [_built(build, width) for width in widths]
    narrow, wide = traced[0][0], traced[-1][0]
    for model, _ in traced[1:]:
        grown = infshapes(shapes(narrow), shapes(model))
    at_width = [_facts(model, tracer, optimizer) for model, tracer in traced]
    table = at_width[-1].drop(columns=["lr", "decay", "error"])
    table["role"] = pd.Series(roles(wide, grown))
    table = table.join(_exponents(widths, at_width))
    table = table.join(_steps([model for model, _ in traced], widths, optimizer))
    if forward is not None:
        # somebody else's forward pass may want another device or a kernel that this one lacks; shapes then serve alone
        with suppress(Exception):
            _read(table, {width: model for width, (model, _) in zip(widths, traced, strict=True)}, forward)
        if optimizer is not None:
            with suppress(Exception):  # likewise, of the backward pass and the optimizer
                _add_gradients(table, [model for model, _ in traced], widths, forward, optimizer)
    return table.rename_axis("parameter").reset_index()


def _add_gradients(
    table: pd.DataFrame, models: Sequence[nn.Module], widths: Sequence[int], forward: Run, optimizer: MakeOptimizer
) -> None:
    """How small each parameter's gradient is, at the largest width and as an exponent; epsilon must be smaller.

    The larger one of two steps: before a readout that starts at zero there is none at first. The models are used up.
    """
    sizes = []
    for model in models:
        trained = check_optimizer(optimizer(model))
        largest = dict.fromkeys(table.index, 0.0)
        for _ in range(2):
            forward(model).backward()
            for name in table.index:
                gradient = model.get_parameter(name).grad
                if gradient is not None:
                    largest[name] = max(largest[name], _lower_quartile(gradient.to_dense()))
            trained.step()
            trained.zero_grad()
        sizes.append([largest[name] for name in table.index])
    table["gradient"] = sizes[-1]
    table["gradient_exponent"] = log2_or_nan(np.array(sizes).T) @ contrast(widths)


def _lower_quartile(gradient: Tensor) -> float:
    """Of the sizes of entries that are not zero: a quarter of them is smaller."""
    entries = gradient.detach().abs().flatten()
    entries = entries[:: max(1, len(entries) // SAMPLE)]
    entries = entries[entries > 0].double()
    return float(entries.quantile(0.25)) if len(entries) else 0.0


def _read(table: pd.DataFrame, models: Mapping[int, nn.Module], forward: Run) -> None:
    """Puts roles and multipliers in the place of what shapes and classes tell, for parameters whose uses were seen."""
    uses = read_uses(models.__getitem__, forward, list(models))
    roles_of = roles_from_uses(uses)
    for name in table.index:
        seen = uses[(uses["parameter"] == name) & ~uses["operation"].isin((UNUSED, UNSEEN))]
        roles_here = roles_of.get(name, ())
        if not len(seen) or not roles_here:
            continue
        tied = {"input", "readout"} <= {*roles_here}
        role = "input" if tied else roles_here[0]
        of_role = [row for row in seen.itertuples() if use_role(row) == role]
        table.loc[name, "role"] = role
        table.loc[name, "used_in"] = f"{of_role[0].operation} in {of_role[0].module or ROOT}"
        table.loc[name, "multiplier_exponent"] = _multiplier(of_role)
        table.loc[name, "after_exponent"] = of_role[0].factor_after_exponent
        table.loc[name, "returned"] = any(row.is_returned for row in of_role)
        if role not in ("vector", "fixed"):
            table.loc[name, ["fan_in", "fan_out"]] = of_role[0].fan_in, of_role[0].fan_out
            table.loc[name, "std_fan_in"] = table.loc[name, "init_std"] * of_role[0].fan_in ** 0.5
        if tied:
            as_readout = [row for row in seen.itertuples() if use_role(row) == "readout"]
            table.loc[name, "readout_multiplier_exponent"] = _multiplier(as_readout)
            table.loc[name, "readout_used_in"] = f"{as_readout[0].operation} in {as_readout[0].module or ROOT}"


def _multiplier(uses: Sequence[Any]) -> float:
    """The exponent of the factors around a parameter's product; NaN where it is not known, or differs between uses."""
    found = {round(use.factor_before_exponent + use.factor_after_exponent, 6) for use in uses}
    return found.pop() if len(found) == 1 else math.nan


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
        "used_in": "",
        "readout_used_in": "",
        "gradient": np.nan,
        "gradient_exponent": np.nan,
        "multiplier_exponent": -1.0 if in_mup else np.nan,
        "class_multiplier_exponent": -1.0 if in_mup else np.nan,
        "readout_multiplier_exponent": np.nan,
        "after_exponent": np.nan,
        "returned": False,
        "trained": parameter.requires_grad,
    }


def _error(parameter: Tensor, size: float) -> float:
    """Of log2(size). One entry alone may be anything."""
    entries = parameter.numel()
    if not size > 0:
        return 0.0
    if entries == 1:
        return math.inf
    real = parameter.detach().abs() if parameter.is_complex() else parameter.detach()
    return error_of_size(float((real.float() / size).square().std(correction=1)), entries)


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


def _steps(models: Sequence[nn.Module], widths: Sequence[int], optimizer: MakeOptimizer | None) -> pd.DataFrame:
    """How steps depend on what they are given, and the exponent of their size at one learning rate.

    One that Adam or SGD takes has none, so the narrowest model is enough for these.
    """
    names = [names[0] for names in _by_memory(models[0]).values()]
    if optimizer is None:
        return pd.DataFrame({"update": "", "step_exponent": np.nan}, index=names)
    nothing = Step("", math.nan)
    taken = [try_steps(check_optimizer(optimizer(models[0])))]
    if any(step.rule not in ("adam", "sgd") for step in taken[0].values()):
        taken += [try_steps(check_optimizer(optimizer(model))) for model in models[1:]]
    rows = {}
    for name in names:
        steps = [of.get(model.get_parameter(name), nothing) for model, of in zip(models, taken, strict=False)]
        exponent = 0.0 if steps[0].rule in ("adam", "sgd") else np.nan
        if len(steps) == len(models) and steps[0].rule not in ("adam", "sgd"):
            sizes = log2_or_nan(np.array([[step.size for step in steps]]))
            exponent = float((sizes @ contrast(widths))[0])
        rows[name] = {"update": steps[0].rule, "step_exponent": exponent}
    return pd.DataFrame.from_dict(rows, orient="index")


def _exponents(widths: Sequence[int], at_width: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Exponents of width of what each width shows, a row for each parameter."""
    names = at_width[0].index

    def column(name: str) -> Array:
        return np.array([facts.loc[names, name].to_numpy(dtype=float) for facts in at_width]).T

    std, half = weighted_exponents(widths, log2_or_nan(column("init_std")), column("error"))
    unknown = ~np.isfinite(column("error")).all(axis=1)
    plain = contrast(widths)
    lr, decay = log2_or_nan(column("lr")), log2_or_nan(column("decay"))
    return pd.DataFrame(
        {
            "std_exponent": std,
            "std_low": np.where(unknown, -np.inf, std - half),
            "std_high": np.where(unknown, np.inf, std + half),
            "lr_exponent": lr @ plain,
            "decay_exponent": decay @ plain,
            "effective_decay_exponent": (lr + decay) @ plain,
            "eps_exponent": log2_or_nan(column("eps")) @ plain,
        },
        index=names,
    )
