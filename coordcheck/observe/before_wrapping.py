"""Roles of parameters, taken before an engine for many devices puts parameters of its own in their place."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from coordcheck.observe.modules import named_modules
from coordcheck.observe.roles import attached_roles, infshapes, shapes
from coordcheck.observe.roles import roles as roles_by_shape
from coordcheck.records.names import shown


def roles(model_or_build: nn.Module | Callable[[int], Any], widths: Sequence[int] = (64, 128)) -> dict[str, str]:
    """The role of every parameter by name, for :class:`coordcheck.Recorder` in distributed training.

    Args:
        model_or_build: A model that ``mup.set_base_shapes`` has seen; or a function from width to a model, or to model
            and optimizer, which is called at two widths, without memory where it can be.
        widths: Those two.

    Returns:
        "input", "hidden", "readout", "vector" or "fixed" by the names of parameters, as before any wrapping.

    Raises:
        ValueError: if the model has no ``infshape``, or `widths` are not two.

    Example:
        >>> roles(lambda width: nn.Sequential(nn.Linear(8, width), nn.Linear(width, 4)))["1.weight"]
        'readout'
    """
    if isinstance(model_or_build, nn.Module):
        found = attached_roles(dict(named_modules(model_or_build)))
        if not found:
            raise ValueError(
                f"`model` needs mup's infshape at every parameter to know their roles, or a function that builds it; "
                f"this {type(model_or_build).__name__} has a parameter without. For example "
                f"coordcheck.roles(build), where build(width) returns the model."
            )
        return found
    if not callable(model_or_build):
        raise ValueError(
            f"`build` is a function from width to a model; got {shown(model_or_build)}. "
            f"For example coordcheck.roles(lambda width: nn.Linear(16, width))."
        )
    if len({*widths}) != 2:
        raise ValueError(f"`widths` are two that `build` can take; got {shown(widths)}. For example widths=(64, 128).")
    narrow, wide = (_built(model_or_build, width) for width in sorted(widths))
    return roles_by_shape(narrow, infshapes(shapes(narrow), shapes(wide)))


def _built(build: Callable[[int], Any], width: int) -> nn.Module:
    try:
        with torch.device("meta"):
            built = build(width)
    except (RuntimeError, NotImplementedError):  # it reads what it writes
        built = build(width)
    model: nn.Module = built[0] if isinstance(built, tuple) else built
    return model
