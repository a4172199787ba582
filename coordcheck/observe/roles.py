"""Roles of parameters from how their shapes change with width, and mup's base shapes."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from mup.infshape import InfShape
from mup.shape import zip_infshapes
from torch import Size, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from coordcheck.records.names import shown

Shapes = dict[str, Size]
ROLES = ("input", "hidden", "readout", "projection", "vector", "fixed")


def shapes(model: nn.Module) -> Shapes:
    """The shape of every parameter under every one of its names, tied ones included.

    Raises:
        ValueError: if it is no module, or a parameter has no shape yet.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"`build` must return a torch.nn.Module; got {type(model).__name__}. "
            f"For example build=lambda width: nn.Linear(16, width)."
        )
    found = dict(model.named_parameters(remove_duplicate=False))
    if lazy := [name for name, parameter in found.items() if is_lazy(parameter)]:
        raise ValueError(
            f"`build` must return a model whose parameters have their shapes; these have none before the first "
            f"forward pass: {lazy}. For example nn.Linear(8, width) in the place of nn.LazyLinear(width)."
        )
    return {name: parameter.shape for name, parameter in found.items()}


def infshapes(narrow: Shapes, wide: Shapes) -> dict[str, InfShape]:
    """Mup's InfShape per parameter name: a dimension that differs between two widths is infinite.

    Raises:
        ValueError: if the names differ, or nothing grows.
    """
    if narrow.keys() != wide.keys():
        raise ValueError(
            "a model must have the same parameter names at every width; these are not in both of two widths: "
            f"{sorted(narrow.keys() ^ wide.keys())}. For example, scale the size of layers, not their number."
        )
    result: dict[str, InfShape] = zip_infshapes(narrow, wide)
    if not any(shape.ninf() for shape in result.values()):
        raise ValueError(
            "no parameter's shape changes with width: `build` must return a wider model for a larger width. "
            "For example build=lambda width: nn.Linear(16, width)."
        )
    return result


def parameter_role(module: nn.Module, infshape: InfShape) -> str:
    """The role of a parameter that `module` owns: one that grows in its fan-out alone is an input.

    Returns:
        "input", "hidden", "readout", "vector" or "fixed", as in Tensor Programs V (arXiv 2203.03466), table 3.
    """
    if infshape.ninf() == 0:
        return "fixed"
    if len(infshape) == 1:
        return "vector"
    if infshape.ninf() > 1:
        return "hidden"
    _, fan_out = fan_dimensions(module, len(infshape))
    return "input" if infshape[fan_out].isinf() else "readout"


def fan_dimensions(module: nn.Module, dimensions: int) -> tuple[int, int]:
    """Which dimensions of a parameter of `module` are its fan-in and its fan-out, kernels left aside.

    What has an ``out_features``, as ``nn.Linear`` and those who imitate it, convolutions and torch's attention and
    recurrent layers store the fan-out first; embeddings, Hugging Face's Conv1D, transposed convolutions and plain
    parameters (a class token, learned positions) store it after the fan-in.
    """
    if isinstance(module, _ConvTransposeNd):
        return 0, 1
    if isinstance(module, _ConvNd) or hasattr(module, "out_features"):
        return 1, 0
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase) and dimensions == 2:
        return 1, 0
    return dimensions - 2, dimensions - 1


def fans(module: nn.Module, shape: Size) -> tuple[int, int]:
    """Fan-in and fan-out of a parameter of `module`; a vector, and an embedding that looks up a row, has fan-in 1."""
    if len(shape) < 2 or isinstance(module, nn.Embedding):
        return 1, shape[-1] if shape else 1
    fan_in, fan_out = fan_dimensions(module, len(shape))
    kernel = shape[2:].numel() if isinstance(module, _ConvNd) else 1
    return shape[fan_in] * kernel, shape[fan_out] * kernel


def roles(model: nn.Module, infshapes: Mapping[str, InfShape]) -> dict[str, str]:
    """The role of every parameter, by each of its names; a tied one has one role per place."""
    return {name: parameter_role(owner(model, name), shape) for name, shape in infshapes.items()}


def owner(model: nn.Module, name: str) -> nn.Module:
    """The module that a parameter belongs to; that of a parametrized weight's parts is the one that uses the weight."""
    return model.get_submodule(user(name.rpartition(".")[0]))


def user(module: str) -> str:
    """The name of the module that uses what `module` holds."""
    return re.sub(r"(^|\.)parametrizations\.\w+$", "", module)


def attached_roles(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Roles from the ``infshape`` that ``mup.set_base_shapes`` attached; none if a parameter has none.

    Args:
        modules: Of a model, by name.
    """
    found: dict[str, str] = {}
    for prefix, module in modules.items():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if not hasattr(parameter, "infshape"):
                return {}
            found[f"{prefix}.{name}".removeprefix(".")] = parameter_role(modules[user(prefix)], parameter.infshape)
    return found


def check_eager(model: nn.Module, who: str) -> None:
    """Makes sure that hooks see what a model's modules compute.

    Raises:
        ValueError: if one is scripted or traced.
    """
    if scripted := [name or "(model)" for name, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)]:
        raise ValueError(
            f"{who} a model as it was written; torch.jit.script or trace made these modules, which cannot be "
            f"recorded: {shown(scripted)}. For example the model before torch.jit.script(model)."
        )


def check_roles(roles: Any) -> Mapping[str, str]:
    """Roles of parameters by name, as a user gave them.

    Raises:
        ValueError: if they are none.
    """
    said = "For example roles={'fc.weight': 'hidden'}."
    if not isinstance(roles, Mapping):
        raise ValueError(f"`roles` is a dict from a parameter's name to its role; got {shown(roles)}. {said}")
    if unknown := {name: role for name, role in roles.items() if role not in ROLES}:
        raise ValueError(f"`roles` are of {list(ROLES)}; got {shown(unknown)}. {said}")
    return roles
