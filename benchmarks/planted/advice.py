"""Does literally what a finding says where that is a number, so that it can be seen whether it helps.

A finding's ``change`` has a ``quantity`` and an ``exponent``: the quantity of all its ``parameters`` is multiplied by
``width_mult ** exponent``. A multiplier multiplies what the finding says: the input of the layers that have the
parameter ("its input", "what the readout reads"), or of its product where the weight is used past its module, else the
output of the module that owns the parameter, else of the finding's module; that of attention logits the queries.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import coordcheck
from planted.case import Case

OPTIONS = {"learning_rate": "lr", "weight_decay": "weight_decay", "epsilon": "eps"}
LOGITS = "[attention_logits]"


@dataclass(frozen=True)
class Applied:
    """A change, and what it is made to.

    Attributes:
        quantity: "init_std", "learning_rate", "weight_decay", "epsilon" or "multiplier".
        exponent: Of width / base, which the quantity is multiplied by.
        parameters: Names; empty if the finding names none.
        module: Of the finding.
        advice: Of the finding.
    """

    quantity: str
    exponent: float
    parameters: tuple[str, ...]
    module: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.quantity} times width_mult^{self.exponent:+.2f}"


def parameters_of(finding: coordcheck.Finding) -> tuple[str, ...]:
    """The parameters that a finding is about."""
    named = getattr(finding, "parameters", ())
    return tuple(named) or (() if finding.parameter is None else (finding.parameter,))


def about(finding: coordcheck.Finding, other: coordcheck.Finding) -> bool:
    """Whether two findings are about a same parameter, or about the same module where one names no parameter."""
    mine, theirs = parameters_of(finding), parameters_of(other)
    return bool({*mine} & {*theirs}) if mine and theirs else finding.module == other.module


def changes_of(first: coordcheck.Finding, findings: Sequence[coordcheck.Finding]) -> list[Applied]:
    """The changes that findings give for what `first` is about, its own first; none if `first` gives none.

    What is changed once is not changed again: two findings may show the same cause.
    """
    if getattr(first, "change", None) is None:
        return []
    made: list[Applied] = []
    seen: set[tuple[str, str]] = set()
    for finding in (first, *findings):
        change = getattr(finding, "change", None)
        if change is None or not finding.fault or not about(finding, first):
            continue
        things = [(change.quantity, thing) for thing in parameters_of(finding) or (finding.module,)]
        if not seen & {*things}:
            said = finding.module, finding.advice
            made.append(Applied(change.quantity, change.exponent, parameters_of(finding), *said))
        seen |= {*things}
    return made


def followed(case: Case, changes: Sequence[Applied], base: int) -> Case:
    """The case with changes made to its model and its optimizer."""

    def build(width: int) -> nn.Module:
        model = case.build(width)
        for change in changes:
            factor = (width / base) ** change.exponent
            if change.quantity == "init_std":
                _multiply_weights(model, change.parameters, factor)
            elif change.quantity == "multiplier":
                _multiply(model, change, factor)
        model.widened = width / base  # type: ignore[assignment]
        return model

    def optimizer(model: nn.Module) -> torch.optim.Optimizer | list[torch.optim.Optimizer]:
        made = case.optimizer(model)
        named: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
        for part in made if isinstance(made, list) else [made]:
            # in place: a scheduler or a hook may hold the list
            part.param_groups[:] = [_changed(group, named, changes, model) for group in _alone(part)]
        return made

    return dataclasses.replace(case, build=build, optimizer=optimizer)


def _alone(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The groups of an optimizer, each with one parameter."""
    return [{**group, "params": [p]} for group in optimizer.param_groups for p in group["params"]]


def _changed(
    group: dict[str, Any], named: Mapping[Tensor, str], changes: Sequence[Applied], model: nn.Module
) -> dict[str, Any]:
    name = named.get(group["params"][0], "")
    for change in changes:
        option = OPTIONS.get(change.quantity)
        if option in group and name in change.parameters:
            group[option] *= model.widened**change.exponent  # type: ignore[operator]
    return group


def _multiply_weights(model: nn.Module, names: Sequence[str], factor: float) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for parameter in {parameters[name] for name in names}:
            parameter.mul_(factor)


def _multiply(model: nn.Module, change: Applied, factor: float) -> None:
    if change.module.endswith(LOGITS):
        attention = model.get_submodule(change.module.removesuffix(LOGITS))
        attention.forward = partial(_within, attention.forward, _QueriesTimes(factor))
        return
    module = change.module.partition("[")[0].replace("(model)", "")
    named = dict(model.named_parameters(remove_duplicate=False))
    weights = {named[name] for name in change.parameters}
    owners = {name.rpartition(".")[0] for name, p in named.items() if p in weights}
    if "input" in change.advice or "reads" in change.advice:
        if module not in owners:  # the weight is used past the modules that have it
            used_in = model.get_submodule(module)
            used_in.forward = partial(_within, used_in.forward, _InputsTimes(factor, weights))
            return
        for owner in map(model.get_submodule, owners):
            if not isinstance(owner, nn.Embedding):
                owner.register_forward_pre_hook(lambda module, inputs: (inputs[0] * factor, *inputs[1:]))
        return
    for owner in owners & {name.rpartition(".")[0] for name in change.parameters} or {module}:
        model.get_submodule(owner).register_forward_hook(lambda module, inputs, output: _times(output, factor))


def _times(output: Any, factor: float) -> Any:
    """A module's output, its first tensor multiplied."""
    if isinstance(output, Tensor):
        return output * factor
    if isinstance(output, tuple):
        return (_times(output[0], factor), *output[1:])
    key = "logits" if "logits" in output else next(iter(output))  # of a transformers' model
    output[key] = output[key] * factor
    return output


def _within(forward: Callable[..., Any], mode: TorchFunctionMode, *args: Any, **kwargs: Any) -> Any:
    with mode:
        return forward(*args, **kwargs)


class _QueriesTimes(TorchFunctionMode):
    """Multiplies the queries of fused attention."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            kwargs = dict(kwargs or {})
            if args:
                args = (args[0] * self.factor, *args[1:])
            else:
                kwargs["query"] = kwargs["query"] * self.factor
        return func(*args, **(kwargs or {}))


class _InputsTimes(TorchFunctionMode):
    """Multiplies what is multiplied with some weights."""

    def __init__(self, factor: float, weights: set[nn.Parameter]):
        super().__init__()
        self.factor = factor
        self.weights = weights

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and args[1] in self.weights:
            args = (args[0] * self.factor, *args[1:])
        return func(*args, **(kwargs or {}))
