"""Writes every parameter of a model exactly once, from a table of rules.

The tables of this project's models stand beside the models.

A parameter that no rule matches would keep whatever memory held, and one that two rules match would be
written twice (https://github.com/huggingface/transformers/issues/21431): both raise.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

# std of a standard normal distribution cut off at 2, by which jax divides so that the promised std is the real one
TRUNCATED_STD = 0.87962566103423978


@dataclass(frozen=True)
class Rule:
    """One row of the table: which parameters, and what is written.

    Attributes:
        role: Role that a parameter must have.
        name: Regular expression that its name must contain.
        std: Standard deviation of a centred distribution, as a function of the fan-in; 0 writes zeros.
        mean: Constant that is written instead, where given.
        distribution: "normal", "uniform", or "truncated_normal" (cut off at two of its own std, which `std` is not).
    """

    role: str
    name: str
    std: "Std | None" = None
    mean: float = 0.0
    distribution: str = "normal"

    def write(self, parameter: nn.Parameter, fan_in: int, generator: torch.Generator | None) -> None:
        """Fills `parameter` in place."""
        std = 0.0 if self.std is None else self.std.value(fan_in)
        if std == 0:
            parameter.fill_(self.mean)
        elif self.distribution == "uniform":
            parameter.uniform_(-(3**0.5) * std, 3**0.5 * std, generator=generator)
        elif self.distribution == "truncated_normal":
            std /= TRUNCATED_STD
            nn.init.trunc_normal_(parameter, 0.0, std, -2 * std, 2 * std, generator=generator)
        else:
            parameter.normal_(self.mean, std, generator=generator)


@dataclass(frozen=True)
class Std:
    """A standard deviation ``factor * fan_in ** exponent``."""

    factor: float
    exponent: float = 0.0

    def value(self, fan_in: int) -> float:
        """The number, for a fan-in."""
        return float(self.factor * fan_in**self.exponent)


def initialize(
    model: nn.Module,
    roles: Mapping[str, str],
    table: Sequence[Rule],
    generator: torch.Generator | None = None,
) -> dict[str, Rule]:
    """Writes every parameter once.

    Args:
        model: Changed in place.
        roles: Role of every parameter, by name.
        table: Rules of which exactly one matches each parameter.
        generator: Source of random numbers, on the model's device.

    Returns:
        The rule that wrote each parameter, in the order of writing.

    Raises:
        ValueError: if no rule or several match a parameter; nothing is written then.
    """
    chosen: dict[str, Rule] = {}
    for name, _ in model.named_parameters():
        matching = [rule for rule in table if rule.role == roles[name] and re.search(rule.name, name)]
        if len(matching) != 1:
            raise ValueError(
                f"exactly one rule must match each parameter; {len(matching)} match {name!r} of role {roles[name]!r}. "
                f"For example add Rule({roles[name]!r}, {'^' + re.escape(name) + '$'!r}, Std(0.02))."
            )
        chosen[name] = matching[0]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # a tied embedding is written as a readout: its fan-in is the width, the last dimension of both
            fan_in = parameter.shape[-1]
            chosen[name].write(parameter, fan_in, generator)
    return chosen
