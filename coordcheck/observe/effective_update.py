"""The part of a layer's change that its own update made: (W_t - W_0) x_t.

A delta hides it: what the layers before sent changed too, and is mostly larger. A refined coordinate check looks at the
layer's own update alone (arXiv 2505.22491).

Some positions and output features stand for all: the mean over thousands of entries needs no more, and neither a
second model's memory nor another forward pass has to be paid.
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from typing import Any

import mup
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from coordcheck.observe.ranks import selected, splits_evenly
from coordcheck.observe.sums import at_least_float32, thinned, without_autocast

FEATURES = 64  # of the output
STEPS = 2**16  # within each part of them
GOLDEN = 40503  # of these, about 0.618
# The dimension of the weight that holds output features, of forwards that take any number of them.
FEATURE_DIMENSION: dict[Callable[..., Any], int] = {
    nn.Linear.forward: 0,
    mup.MuReadout.forward: 0,
    nn.Embedding.forward: 1,
}
# products with a weight, and the place of what they multiply it by
PRODUCTS = {F.linear: 0, torch.matmul: 0, torch.addmm: 1}


def updated_parameters(module: nn.Module, flattened: Collection[str] = ()) -> dict[str, Tensor]:
    """What a layer multiplies its input by or adds to it, by name, if training moves it.

    Args:
        module: Any.
        flattened: Names of parameters that FSDP1 took away and gives back, as tensors, for each forward pass.

    Returns:
        Weight and bias of ``nn.Linear``, ``nn.Embedding``, their subclasses and Hugging Face's Conv1D; nothing for any
        other module, a frozen one, or one whose weight another module computes.
    """
    parameters = _parameters(module, flattened)
    weight = parameters.get("weight")
    if weight is None or not weight.requires_grad:
        return {}
    conv1d = weight.dim() == 2 and getattr(module, "nf", None) == weight.shape[1]
    if not conv1d and not isinstance(module, nn.Linear | nn.Embedding):
        return {}
    return parameters


def _parameters(module: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    """A module's parameters as its forward pass finds them; FSDP1 puts whole ones in front of torch's own."""
    found = {**module._parameters, **{name: vars(module).get(name, module._parameters.get(name)) for name in names}}
    return {name: parameter for name, parameter in found.items() if parameter is not None}


class StartingPoint:
    """A layer's parameters at step 0, to tell what training has made of them.

    Args:
        module: A layer that is affine in its parameters.
        parameters: Those of :func:`updated_parameters`. A copy is kept of what makes 64 of the output's features, or
            all of them where a subclass has a forward of its own, or ranks split them unevenly.
        watched: Whether to measure what the weight meets.

    Attributes:
        input_rms: The root mean square of what the weight met last, after all that the layer's forward multiplies its
            input by. None for an embedding, which sums nothing, and where the weight was seen to meet nothing.
    """

    def __init__(self, module: nn.Module, parameters: Mapping[str, Tensor], watched: bool = False):
        self.watched = watched and not isinstance(module, nn.Embedding)
        self.input_rms: Tensor | None = None
        weight = parameters["weight"]
        self.dimension = FEATURE_DIMENSION.get(type(module).forward)
        self.chosen: Tensor | None = None
        if self.dimension is not None and weight.shape[self.dimension] >= 2 * FEATURES:
            chosen = some_features(weight.shape[self.dimension], weight.device)
            self.chosen = chosen if splits_evenly(weight, self.dimension, FEATURES) else None
        self.before = {name: self._chosen(p).clone() for name, p in parameters.items()}

    @torch.no_grad()
    def effective_update(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What the layer makes of its input with its parameters' change in their place.

        Its own forward runs, so that a multiplier which a subclass applies before or after the product is in the
        result. The bias takes part: its change is in no other layer's effective update, and a layer whose input is
        zero has no other. Differences and products are taken in float32 even under autocast, where a change below
        2^-8 of a weight would be rounded away.

        Args:
            module: The layer.
            args: What its forward was called with; of a (..., L, D) input some positions are used, see
                :func:`coordcheck.observe.sums.thinned`; an embedding, which costs little, looks up all.
            kwargs: Likewise.
        """
        now = _parameters(module, self.before)
        change = {name: self._change(now[name], before) for name, before in self.before.items()}
        dtype = change["weight"].dtype
        if not isinstance(module, nn.Embedding):
            args = tuple(_some_positions(value, dtype) for value in args)
            kwargs = {name: _some_positions(value, dtype) for name, value in kwargs.items()}
        parameters, whole = module._parameters, {n: vars(module).pop(n) for n in change if n in vars(module)}
        module._parameters = {**parameters, **change}  # type: ignore[dict-item]
        meeting = Meeting(change["weight"])
        try:
            with without_autocast(change["weight"].device), meeting if self.watched else nullcontext():
                return module.forward(*args, **kwargs)  # not the call, which would run everybody's hooks
        finally:
            module._parameters = parameters
            vars(module).update(whole)
            self.input_rms = meeting.input_rms

    def _change(self, parameter: Tensor, before: Tensor) -> Tensor:
        change = at_least_float32(self._chosen(parameter)) - at_least_float32(before)
        if hasattr(parameter, "infshape"):  # mup's readout asks its weight for it
            change.infshape = parameter.infshape  # type: ignore[attr-defined]
        return change

    def _chosen(self, parameter: Tensor) -> Tensor:
        if self.chosen is None:
            return parameter.detach()
        # a bias has features alone
        return selected(parameter.detach(), (self.dimension or 0) if parameter.dim() == 2 else 0, self.chosen)


class Meeting(TorchFunctionMode):
    """Sees what a weight is multiplied by."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = weight
        self.input_rms: Tensor | None = None

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        place = PRODUCTS.get(func)
        if place is not None and any(value is self.weight for value in [*args, *(kwargs or {}).values()]):
            x = at_least_float32(args[place])
            self.input_rms = torch.linalg.vector_norm(x) / max(x.numel(), 1) ** 0.5
        return func(*args, **(kwargs or {}))


def some_features(count: int, device: torch.device) -> Tensor:
    """Which of `count` output features are used: one of each 64th part, at places that repeat with no head's size.

    In integers, and on the device: not every one has float64, and a copy from the CPU would wait for a GPU.
    """
    place = torch.arange(FEATURES, device=device)
    return (place * STEPS + place * GOLDEN % STEPS) * count // (FEATURES * STEPS)


def _some_positions(value: Any, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return thinned(value).contiguous().to(dtype)
