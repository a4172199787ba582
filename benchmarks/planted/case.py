"""What a case of the benchmark is, and changes that are a fault in any model."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCAB, CONTEXT = 64, 32

Build = Callable[[int], nn.Module]
Plant = Callable[[nn.Module, float], None]
MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer | list[torch.optim.Optimizer]]
Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Case:
    """A model to check, correct or with one fault.

    Attributes:
        name: What is special about it.
        build: From width to model.
        batch: From seed to batch.
        optimizer: From model to optimizer, or to several.
        loss: None for the default one.
        places: Modules of which one must be named first; empty for a correct model.
        cause: Class of the fault, of ``coordcheck.judge.diagnose.evidence.FAULT_CLASSES``, or several where they are
            names of the same thing; empty for a right model.
        decay: How learning rate times weight decay is meant to scale, see :func:`coordcheck.coord_check`.
    """

    name: str
    build: Build
    batch: Callable[[int], Any]
    optimizer: MakeOptimizer
    loss: Loss | None = None
    places: tuple[str, ...] = ()
    cause: str | tuple[str, ...] = ""
    decay: str | None = None

    @property
    def causes(self) -> tuple[str, ...]:
        """The classes that are right."""
        return (self.cause,) if isinstance(self.cause, str) else self.cause


def zipf(seed: int, *shape: int) -> Tensor:
    """Tokens of which the n-th is seen 1/n as often as the first."""
    generator = torch.Generator().manual_seed(seed)
    share = 1 / torch.arange(1, VOCAB + 1)
    return torch.multinomial(share, torch.Size(shape).numel(), replacement=True, generator=generator).view(shape)


def written(pattern: str, std: float, exponent: float = 0.0) -> Plant:
    """Initializes weights again, with another std."""

    def plant(model: nn.Module, mult: float) -> None:
        for name, p in model.named_parameters():
            if p.dim() > 1 and re.search(pattern, name):
                nn.init.normal_(p, std=std * (mult * 64) ** exponent)

    return plant


def scaled(pattern: str, exponent: float) -> Plant:
    """Multiplies weights by ``width_mult ** exponent``."""

    def plant(model: nn.Module, mult: float) -> None:
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.dim() > 1 and re.search(pattern, name):
                    p.mul_(mult**exponent)

    return plant


def output_times(name: str, exponent: float) -> Plant:
    """Multiplies a module's output by ``width_mult ** exponent``."""

    def plant(model: nn.Module, mult: float) -> None:
        model.get_submodule(name).register_forward_hook(lambda module, inputs, output: output * mult**exponent)

    return plant


def input_times(name: str, exponent: float) -> Plant:
    """Multiplies a module's first input by ``width_mult ** exponent``."""

    def plant(model: nn.Module, mult: float) -> None:
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, inputs: (inputs[0] * mult**exponent, *inputs[1:])
        )

    return plant


def frozen(pattern: str) -> Plant:
    """Stops the training of parameters."""

    def plant(model: nn.Module, mult: float) -> None:
        for name, p in model.named_parameters():
            p.requires_grad_(not re.search(pattern, name))

    return plant


def detached(name: str) -> Plant:
    """Lets no gradient reach a layer's weight, as ``torch.no_grad`` in the wrong place does."""

    def plant(model: nn.Module, mult: float) -> None:
        layer = model.get_submodule(name)
        layer.forward = lambda x: F.linear(x, layer.weight.detach())

    return plant


def silenced(name: str) -> Plant:
    """Multiplies a module's output by zero."""

    def plant(model: nn.Module, mult: float) -> None:
        model.get_submodule(name).register_forward_hook(lambda module, inputs, output: 0 * output)

    return plant


def overflowing(name: str) -> Plant:
    """Passes a module's output through float16 after a multiplication that is too large for wide models."""

    def plant(model: nn.Module, mult: float) -> None:
        factor = 4e3 * mult**2
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output: (output * factor).half().float() / factor
        )

    return plant
