"""The modules of a model by the names that its author gave them, whatever wraps them, and the tensors they return."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from coordcheck.records.names import shown
from coordcheck.records.schema import ROOT

# What FSDP1, activation checkpointing and torch.compile call the module that they wrap.
WRAPPED = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")


def wrapped(module: nn.Module) -> str | None:
    """The name of the child that a wrapper wraps; None of any other module."""
    if isinstance(module, DistributedDataParallel):
        return "module"
    return next((name for name in WRAPPED if name in module._modules), None)


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As ``model.named_modules()``, without wrappers: neither they nor their names are the model's."""
    names: dict[nn.Module, str] = {}
    for name, module in model.named_modules():
        parent, _, own = name.rpartition(".")
        above = model.get_submodule(parent)
        if name and wrapped(above) == own:
            names[module] = names[above]
        elif name:
            names[module] = f"{names[above]}.{own}".removeprefix(".")
        else:
            names[module] = ""
        if wrapped(module) is None:
            yield names[module], module


def named_parameters(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of modules by name, each once as ``model.named_parameters()`` has them."""
    seen: set[nn.Parameter] = set()
    for prefix, module in modules.items():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter not in seen:
                seen.add(parameter)
                yield f"{prefix}.{name}".removeprefix("."), parameter


def select_modules(names: Sequence[str], patterns: Sequence[str] | None) -> list[str]:
    """Those of `names` that `patterns` select, in the model's order; the model itself is "(model)".

    Raises:
        ValueError: if a pattern matches no module.
    """
    if patterns is None:
        return [*names]
    chosen: set[str] = set()
    for pattern in patterns:
        matching = {name for name in names if fnmatchcase(name or ROOT, pattern)}
        if not matching:
            raise ValueError(
                f"`modules` pattern {shown(pattern)} matches no module; the model has "
                f"{', '.join(name or ROOT for name in names)}. For example modules=['*']."
            )
        chosen |= matching
    return [name for name in names if name in chosen]


def tensors(output: Any) -> Iterator[tuple[str, Tensor]]:
    """Every floating-point tensor in a module's output that has entries to average, with its "[i]" suffix."""
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.dim() > 0 and output.numel() > 0:
            yield "", output
        return
    parts: Iterable[tuple[object, Any]] = ()
    if isinstance(output, Mapping):
        parts = output.items()
    elif isinstance(output, list | tuple):
        parts = enumerate(output)
    elif is_dataclass(output):
        parts = ((field.name, getattr(output, field.name)) for field in fields(output))
    for key, value in parts:
        for suffix, tensor in tensors(value):
            yield f"[{key}]{suffix}", tensor
