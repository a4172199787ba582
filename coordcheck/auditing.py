"""What can be known of a model before its first step: who wrote each parameter, and how it scales with width.

Builds the model at several widths under a :class:`coordcheck.writes.WriteTracer`, reads the optimizer's groups and
fits exponents. What they should be is said by :mod:`coordcheck.theory`, what follows by
:mod:`coordcheck.audit_result`. Nothing is trained.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mup
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coordcheck.audit_result import ARROW, Audit
from coordcheck.cell import Cell
from coordcheck.config import ROOT, GateConfig, Parametrization, check_axes, default_gate, member
from coordcheck.optim import update_rules
from coordcheck.parametrization import Shapes, fans, infshapes, roles
from coordcheck.writes import FULL, History, WriteTracer

Array = NDArray[np.float64]
Build = Callable[[int], nn.Module]
Z95 = 1.96
EXACT = 1e-6
MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


def audit(
    build: Build,
    widths: Sequence[int] = (64, 128, 256),
    optimizer: MakeOptimizer | None = None,
    expect: str = "mup",
) -> Audit:
    """Audits how a model of yours is initialized, and how that and its learning rates scale. Nothing is trained.

    Args:
        build: From width to an initialized, parametrized model with the same parameter names at every width;
            called with torch's global generator seeded.
        widths: d_model, at least three distinct values.
        optimizer: From model to its optimizer; None leaves learning rates and decays out.
        expect: Whose exponents to expect, "mup" or "sp".

    Returns:
        The audit: its ``parameters`` (one row each), ``findings`` and ``verdict``.

    Raises:
        ValueError: naming the value, the rule and a working example.

    Example:
        >>> def build(width):
        ...     return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width))
        >>> report = audit(build, optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=1e-3))
        >>> report.parameters.loc[[2], ["parameter", "std_exponent", "lr_exponent", "verdict"]].round(1).values.tolist()
        [['2.weight', -0.5, 0.0, 'learning_rate']]
    """
    check_axes(widths, [0], 1, ["activation"])
    gate = dataclasses.replace(default_gate(), expect=member(Parametrization, "expect", expect))
    return _judged(build, [int(width) for width in widths], optimizer, gate)


def audit_cell(cell: Cell, widths: Sequence[int], gate: GateConfig) -> Audit:
    """Audits a cell on CPU, as :func:`audit` does a model.

    Args:
        cell: What is built.
        widths: At least three.
        gate: Whose exponents to expect, and how far beyond them still passes.
    """
    cpu = torch.device("cpu")
    return _judged(
        lambda width: cell.build(width, 0, cpu),
        widths,
        lambda model: cell.optimizer(model, min(widths)),
        gate,
    )


def _judged(build: Build, widths: Sequence[int], optimizer: MakeOptimizer | None, gate: GateConfig) -> Audit:
    ascending = sorted(widths)
    with torch.random.fork_rng(devices=[]):
        measured = measure(build, ascending, optimizer)
    return Audit.from_parameters(measured, ascending, gate.expect, gate.tolerance.exponent)


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
        where there is none; ``groups`` (how many it is in), ``update`` ("adam", "sgd" or "", see
        :func:`coordcheck.optim.update_rules`) and ``multiplier_exponent`` where mup's classes tell it.
    """
    at_width = [_facts(build, width, optimizer) for width in widths]
    narrow = _built(build, widths[0])
    updates = {} if optimizer is None else _update_of_each(narrow, optimizer(narrow))
    role_of = roles(narrow, infshapes(*(_shapes(facts) for facts in (at_width[0], at_width[-1]))))
    table = at_width[-1].drop(columns=["lr", "decay", "eps", "error"])
    table["role"] = [role_of[name] for name in table.index]
    table["update"] = [updates.get(name, "") for name in table.index]
    table = table.join(_exponents(widths, at_width))
    return table.rename_axis("parameter").reset_index()


def _built(build: Build, width: int) -> nn.Module:
    torch.manual_seed(0)
    return build(width)


def _facts(build: Build, width: int, optimizer: MakeOptimizer | None) -> pd.DataFrame:
    """What a model of one width shows, a row for each of its parameters by name."""
    with WriteTracer() as tracer:
        model = _built(build, width)
    groups = [] if optimizer is None else optimizer(model).param_groups
    owners = dict(model.named_modules(remove_duplicate=False))
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    rows: dict[str, dict[str, object]] = {}
    for parameter, (name, *others) in names.items():
        of = [owners[other.rpartition(".")[0]] for other in (name, *others)]
        rows[name] = {"tied_to": ", ".join(others), "module": name.rpartition(".")[0] or ROOT}
        rows[name] |= _size(parameter, of) | _writes(tracer.history(parameter), parameter, set(of))
        rows[name] |= _rates(parameter, groups if parameter.requires_grad else [], optimizer is not None)
    return pd.DataFrame.from_dict(rows, orient="index")


def _size(parameter: Tensor, owners: Sequence[nn.Module]) -> dict[str, object]:
    fan_in, fan_out = fans(owners[0], parameter.shape)
    squares = parameter.detach().float().square()
    size = float(squares.mean(dtype=torch.float64)) ** 0.5
    in_mup = any(isinstance(owner, mup.MuReadout) for owner in owners)
    return {
        "shape": " x ".join(map(str, parameter.shape)),
        "entries": parameter.numel(),
        "fan_in": fan_in,
        "fan_out": fan_out,
        "init_std": size,
        # of log2(size): the mean of n squares has the error std / sqrt(n), and the root halves it
        "error": float(squares.std(correction=0)) / max(2 * np.log(2) * size**2 * parameter.numel() ** 0.5, 1e-30),
        "std_fan_in": size * fan_in**0.5,
        "multiplier_exponent": -1.0 if in_mup else np.nan,
    }


def _writes(history: History, parameter: Tensor, owners: set[nn.Module]) -> dict[str, object]:
    """Who wrote a parameter, each rule with the size it left."""
    writes = history.writes
    sizes = [*(write.size for write in writes[:-1]), float(parameter.detach().float().square().mean()) ** 0.5]
    said = [
        f"{write.rule} ({'' if write.effect == FULL else f'{write.effect}, '}std {size:.3g})"
        for write, size in zip(writes, sizes, strict=False)
    ]
    chosen = list(itertools.dropwhile(lambda write: write.by_default(owners), history.full_writes))
    return {
        "writes": len(history.full_writes),
        "operations": sum(write.operations for write in writes),
        "rules": ARROW.join(said),
        "unwritten": history.unwritten(parameter.numel()),
        "repeats": len(chosen),
        "conflict": len({write.code for write in chosen}) > 1,
    }


def _rates(parameter: Tensor, groups: Sequence[Mapping[str, Any]], judged: bool) -> dict[str, object]:
    """What the optimizer's groups say of a parameter."""
    mine = [group for group in groups for p in group["params"] if p is parameter]
    of = mine[0] if mine else {}
    return {
        # a frozen parameter, and one of a model audited without an optimizer, need no group
        "groups": len(mine) if judged and parameter.requires_grad else np.nan,
        "lr": float(of.get("lr", np.nan)),
        "decay": float(of.get("weight_decay", np.nan)),
        "eps": float(of.get("eps", np.nan)),
    }


def _update_of_each(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, str]:
    """By name, how a parameter's step depends on its gradient."""
    rules = update_rules(optimizer)
    rule_of = {
        id(p): rule or "" for group, rule in zip(optimizer.param_groups, rules, strict=True) for p in group["params"]
    }
    return {name: rule_of.get(id(parameter), "") for name, parameter in model.named_parameters()}


def _shapes(facts: pd.DataFrame) -> Shapes:
    """Shapes under every name, tied ones included."""
    found: Shapes = {}
    for name, row in facts.iterrows():
        shape = torch.Size(int(size) for size in str(row["shape"]).split(" x ") if size)
        found |= {other: shape for other in (str(name), *filter(None, row["tied_to"].split(", ")))}
    return found


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
