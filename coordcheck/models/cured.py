"""A cure applied: to initial weights, to an optimizer's groups, and where it must be to what a module reads."""

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from coordcheck.judge.cure import CureTable, Exponents
from coordcheck.observe.modules import named_modules, named_parameters
from coordcheck.observe.optimizer import Together
from coordcheck.run.cell import Cell
from coordcheck.run.wrapped import Wrapped

_initialized: "WeakSet[nn.Module]" = WeakSet()
_attached: "WeakSet[nn.Module]" = WeakSet()


def initialize(cure: CureTable, model: nn.Module, width: int) -> None:
    """Multiplies initial weights in place, those of shared memory once.

    Raises:
        ValueError: if it was done before, or a name of the table is no parameter's.
    """
    if model in _initialized:
        raise ValueError(
            "this model was initialized by a cure before; a second time would scale its weights twice. For example "
            "build it anew."
        )
    parameters = names_of(model)
    check_names(cure, parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if power := cure.exponents(name).std:
                parameter.mul_((width / cure.base_width) ** power)
    _initialized.add(model)


def names_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by the names that the model's author gave them, whatever wraps it: a compiler, DDP, checkpoints."""
    return dict(named_parameters(dict(named_modules(model))))


def check_names(cure: CureTable, names: Mapping[str, Any]) -> None:
    """Refuses a table that was made for another model.

    Raises:
        ValueError: naming what matches no parameter.
    """
    for entry in cure.entries:
        for pattern in entry.parameters:
            if not any(type(entry)((pattern,), entry.role, Exponents()).covers(name) for name in names):
                raise ValueError(
                    f"the cure names {pattern!r}, which is no parameter of this model; it has {[*names][:5]}, ... . "
                    f"For example make a cure for this model with coordcheck.cure(build, batch, ...)."
                )


def param_groups(
    cure: CureTable, model: nn.Module, width: int, groups: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Parameter groups split by what the cure says of their parameters; all other keys stay.

    Args:
        cure: The cure.
        model: Whose parameters they hold.
        width: d_model.
        groups: Each with ``params`` and ``lr``.

    Returns:
        The groups in their order, with ``initial_lr`` for schedulers.
    """
    names = {parameter: name for name, parameter in names_of(model).items()}
    width_mult = width / cure.base_width
    split: list[dict[str, Any]] = []
    for group in groups:
        parts: dict[Exponents, list[Tensor]] = {}
        for parameter in group["params"]:
            power = cure.exponents(names[parameter]) if parameter in names else Exponents()
            parts.setdefault(Exponents(0.0, power.lr, power.weight_decay, power.eps), []).append(parameter)
        for power, parameters in parts.items():
            part = {key: value for key, value in group.items() if key not in ("param_names", "initial_lr")}
            rate = group["lr"] * width_mult**power.lr
            part |= {"params": parameters, "lr": rate, "initial_lr": rate}
            if "weight_decay" in group:
                part["weight_decay"] = group["weight_decay"] * width_mult**power.weight_decay
            if power.eps and "eps" in group:
                part["eps"] = group["eps"] * width_mult**power.eps
            split.append(part)
    return split


def rescale(cure: CureTable, model: nn.Module, width: int, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The same optimizer with its groups split by what the cure says of them; call it before the first step."""
    if isinstance(optimizer, Together):
        return Together([rescale(cure, model, width, part) for part in optimizer.parts])
    optimizer.param_groups[:] = param_groups(cure, model, width, optimizer.param_groups)
    return optimizer


def attach(cure: CureTable, model: nn.Module, width: int) -> None:
    """Lets modules multiply what they read, by a hook that `torch.compile` traces; once.

    Raises:
        ValueError: if it was done before, or a name of the table is no module's.
    """
    if not cure.multipliers:
        return
    if model in _attached:
        raise ValueError("a cure is attached to this model already. For example build it anew.")
    modules = dict(named_modules(model))
    for name, power in cure.multipliers.items():
        if name not in modules or modules[name] is model:
            raise ValueError(
                f"what {name!r} reads must be multiplied by width_mult^{power:g}, and it is no module of its own. "
                f"For example multiply it in the model's forward."
            )
        modules[name].register_forward_pre_hook(Multiply((width / cure.base_width) ** power))
    _attached.add(model)


class Multiply:
    """A hook that multiplies the first input of a module by a number."""

    def __init__(self, factor: float):
        self.factor = factor

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """What the module reads, its first input multiplied."""
        return (inputs[0] * self.factor, *inputs[1:])


class Cured(Wrapped):
    """A cell with a cure applied.

    Args:
        cell: What is cured.
        cure: How.
    """

    def __init__(self, cell: Cell, cure: CureTable):
        super().__init__(cell, {"cure": cure.to_dict()})
        self.cure = cure
        self._widths: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process, where nothing has been built yet."""
        return {name: value for name, value in vars(self).items() if name != "_widths"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """What came from another process, with nothing built."""
        vars(self).update(state, _widths=WeakKeyDictionary())

    def build(self, width: int, seed: int, device: torch.device) -> nn.Module:
        """The cell's model with its initial weights scaled."""
        model = self.cell.build(width, seed, device)
        if self.cure.entries:
            initialize(self.cure, model, width)
        attach(self.cure, model, width)
        self._widths[model] = width
        return model

    def optimizer(self, model: nn.Module, width: int) -> torch.optim.Optimizer:
        """The cell's optimizer with its groups split, as the width wants it that the model was built for."""
        return rescale(self.cure, model, self._widths.get(model, width), self.cell.optimizer(model, width))
