"""The part of a layer's change that its own update made: (W_t - W_0) x_t.

A delta hides it: what the layers before sent changed too, and is mostly larger. A refined coordinate check looks at the
layer's own update alone (arXiv 2505.22491).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from coordcheck.sums import at_least_float32, without_autocast

EVERY = 4  # positions: a quarter of the layer's forward pass for a mean over thousands of entries
FEW = 16  # rows that are all used


def updated_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """What a layer multiplies its input by or adds to it, by name, if training moves it.

    Returns:
        Weight and bias of ``nn.Linear``, ``nn.Embedding``, their subclasses and Hugging Face's Conv1D; nothing for any
        other module, a frozen one, or one whose weight another module computes.
    """
    weight = module._parameters.get("weight")
    if weight is None or not weight.requires_grad:
        return {}
    conv1d = weight.dim() == 2 and getattr(module, "nf", None) == weight.shape[1]
    if not conv1d and not isinstance(module, nn.Linear | nn.Embedding):
        return {}
    return {name: parameter for name, parameter in module._parameters.items() if parameter is not None}


@torch.no_grad()
def effective_update(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], start: Mapping[str, Tensor]
) -> Any:
    """What `module` makes of its input with its parameters' change in their place.

    Its own forward runs, so that a multiplier which a subclass applies before or after the product is in the result.
    The bias takes part: its change is in no other layer's effective update, and a layer whose input is zero has no
    other. Differences and products are taken in float32 even under autocast, where a change below 2^-8 of a weight
    would be rounded away.

    Args:
        module: A layer that is affine in its parameters, see :func:`updated_parameters`.
        args: What its forward was called with. Of a (..., L, D) input of at least 16 rows every fourth position is
            used; an embedding, which costs little, looks up all.
        kwargs: Likewise.
        start: Its parameters at step 0, by name.
    """
    change = {name: _change(module._parameters[name], before) for name, before in start.items()}
    dtype = change["weight"].dtype
    if not isinstance(module, nn.Embedding):
        args = tuple(_thinned(value, dtype) for value in args)
        kwargs = {name: _thinned(value, dtype) for name, value in kwargs.items()}
    parameters = module._parameters
    module._parameters = {**parameters, **change}  # type: ignore[dict-item]
    try:
        with without_autocast(change["weight"].device):
            return module.forward(*args, **kwargs)  # not the call, which would run everybody's hooks
    finally:
        module._parameters = parameters


def _change(parameter: Tensor | None, before: Tensor) -> Tensor:
    assert parameter is not None
    change = at_least_float32(parameter.detach()) - at_least_float32(before)
    change.__dict__.update(vars(parameter))  # mup keeps a weight's infshape there, and its readout asks for it
    return change


def _thinned(value: Any, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    chosen = value[..., ::EVERY, :] if value.shape[:-1].numel() >= FEW else value
    return chosen.contiguous().to(dtype)
