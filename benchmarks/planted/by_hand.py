"""Puts a model into muP by hand: a table says who holds which role, as a person read it.

A table gives each parameter by the first pattern that its name matches: its role, and the power of width / base that
its first weights are multiplied by, which depends on how the library's own std scales. What a table leaves out is a
vector, but for the biases of logits, which do not grow. Learning rates follow from the role, see :data:`RATES`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from planted.case import Build, MakeOptimizer, Plant

BASE = 64

# Exponents of width of a learning rate (Tensor Programs V, tables 8 and 9): of an optimizer whose step does not depend
# on the gradient's size (Adam, Lion), of SGD, and of Muon with its factor sqrt(max(1, out / in)).
RATES = {
    "input": {"adam": 0.0, "sgd": 1.0},
    "hidden": {"adam": -1.0, "sgd": 0.0, "muon": 0.0},
    "readout": {"adam": -1.0, "sgd": -1.0},
    "divided": {"adam": 0.0, "sgd": 1.0},  # a readout whose input is divided by width
    "projection": {"adam": -1.0},  # to a size that does not grow: a router, LoRA's A, Mamba's dt, B, C
    "vector": {"adam": 0.0, "sgd": 1.0},
    "fixed": {"adam": 0.0, "sgd": 0.0},
    "half": {"adam": -0.5},  # hidden and multiplied by width^-1/2, or an input multiplied by width^+1/2
}


@dataclass(frozen=True)
class Rule:
    """What the table says of some parameters.

    Attributes:
        pattern: Of their names.
        role: A key of :data:`RATES`.
        std: Power of width / base that their first weights are multiplied by.
        factor: At every width.
    """

    pattern: str
    role: str
    std: float = 0.0
    factor: float = 1.0


@dataclass(frozen=True)
class Scaling:
    """Of one model: its width / base, and the role of each parameter by name."""

    mult: float
    roles: dict[str, str]


VECTOR = Rule("", "vector")
FIXED = Rule(r"^(head|classifier)\.bias", "fixed")


def put(
    structure: Build, *rules: Rule, base: int = BASE, plant: Plant = lambda model, mult: None, zero: str = r"\bbias"
) -> Build:
    """Initializes what `structure` builds as its table says.

    Args:
        structure: From width to a model with the first weights of its library.
        rules: The table.
        base: Width at which all parametrizations agree.
        plant: A fault, given the model and width / base.
        zero: Pattern of the vectors that begin at zero.
    """

    def build(width: int) -> nn.Module:
        model, mult, roles = structure(width), width / base, {}
        with torch.no_grad():
            for name, p in model.named_parameters():
                said = rules if p.dim() > 1 else (FIXED,)
                rule = next((rule for rule in said if re.search(rule.pattern, name)), VECTOR)
                roles[name] = rule.role
                if rule.factor * mult**rule.std != 1.0:
                    p.mul_(rule.factor * mult**rule.std)
                if p.dim() < 2 and re.search(zero, name):
                    p.zero_()
        model.scaling = Scaling(mult, roles)  # type: ignore[assignment]
        plant(model, mult)
        return model

    return build


# optimizers


class Lion(torch.optim.Optimizer):
    """Lion (arXiv 2302.06675), written by hand."""

    def __init__(self, params: Any, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99)):
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Moves each entry by the rate, against the sign of the gradient's mean."""
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                p.sub_(group["lr"] * torch.sign(first * mean + (1 - first) * p.grad))
                mean.mul_(second).add_(p.grad, alpha=1 - second)


def groups(
    model: nn.Module,
    rule: str,
    lr: float,
    pattern: str = "^$",
    exponent: float = 0.0,
    wanted: Callable[[str, Tensor], bool] = lambda name, p: True,
) -> list[dict[str, Any]]:
    """A parameter group each, with the learning rate of its role, times a power of width where `pattern` says so."""
    made = []
    for name, p in model.named_parameters():
        scaling: Scaling = model.scaling  # type: ignore[assignment]
        power = RATES[scaling.roles[name]][rule] + (exponent if re.search(pattern, name) else 0.0)
        if p.requires_grad and wanted(name, p):
            made.append({"params": [p], "lr": lr * scaling.mult**power})
    return made


def adamw(lr: float = 2e-3, eps: float = 1e-12, weight_decay: float = 0.0, **which: Any) -> MakeOptimizer:
    """AdamW; `which` is for :func:`groups`."""
    return lambda model: torch.optim.AdamW(
        groups(model, "adam", lr, **which), lr=lr, eps=eps, weight_decay=weight_decay
    )


def sgd(lr: float = 0.1, rule: str = "sgd", **which: Any) -> MakeOptimizer:
    """SGD, by default with its own rule."""
    return lambda model: torch.optim.SGD(groups(model, rule, lr, **which), lr=lr)


def lion(lr: float = 5e-4, **which: Any) -> MakeOptimizer:
    """The Lion above."""
    return lambda model: Lion(groups(model, "adam", lr, **which))


def muon(adjust: str = "original", lr: float = 2e-2) -> MakeOptimizer:
    """Muon for hidden matrices at one rate, AdamW for the rest: two optimizers."""

    def make(model: nn.Module) -> list[torch.optim.Optimizer]:
        scaling: Scaling = model.scaling  # type: ignore[assignment]

        def hidden(name: str, p: Tensor) -> bool:
            return scaling.roles[name] == "hidden"

        matrices = [p for name, p in model.named_parameters() if hidden(name, p)]
        rest = groups(model, "adam", 2e-3, wanted=lambda name, p: not hidden(name, p))
        return [
            torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn=adjust),
            torch.optim.AdamW(rest, lr=2e-3, eps=1e-12, weight_decay=0.0),
        ]

    return make
