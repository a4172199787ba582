"""Writes every parameter of a model exactly once, from a table of rules.

A parameter that no rule matches would keep whatever memory held, and one that two rules match would be
written twice (https://github.com/huggingface/transformers/issues/21431): both raise.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from coordcheck.config import CheckConfig, Embedding, Init


@dataclass(frozen=True)
class Rule:
    """One row of the table: which parameters, and what is written.

    Attributes:
        role: Role that a parameter must have.
        name: Regular expression that its name must contain.
        std: Standard deviation of a centred normal distribution, as a function of the fan-in; 0 writes zeros.
        mean: Constant that is written instead, where given.
    """

    role: str
    name: str
    std: "Std | None" = None
    mean: float = 0.0

    def write(self, parameter: nn.Parameter, fan_in: int, generator: torch.Generator | None) -> None:
        """Fills `parameter` in place."""
        std = 0.0 if self.std is None else self.std.value(fan_in)
        if std > 0:
            parameter.normal_(self.mean, std, generator=generator)
        else:
            parameter.fill_(self.mean)


@dataclass(frozen=True)
class Std:
    """A standard deviation ``factor * fan_in ** exponent``."""

    factor: float
    exponent: float = 0.0

    def value(self, fan_in: int) -> float:
        """The number, for a fan-in."""
        return float(self.factor * fan_in**self.exponent)


def rules(config: CheckConfig) -> list[Rule]:
    """The table for the models of this project.

    Tensor Programs V (arXiv 2203.03466), table 8, which the mup package follows: hidden weights fan_in^-1/2
    in standard and in muP, input weights, and the readout under mup's 1/width_mult multiplier, a constant.
    """
    readout = {
        Init.zero: Std(0.0),
        Init.constant: Std(config.base_width**-0.5 if config.readout.std is None else config.readout.std),
        Init.fan_in: Std(1.0 if config.readout.std is None else config.readout.std, -0.5),
    }[config.readout.name]
    tied = config.embedding.name != Embedding.untied
    return [
        Rule("input", r"^wte\.weight$", readout if tied else Std(config.embedding.std)),
        Rule("input", r"^wpe\.weight$", Std(config.embedding.position_std)),
        Rule("hidden", r"\.weight$", Std(1.0, -0.5)),
        Rule("readout", r"\.weight$", readout),
        Rule("vector", r"\.weight$", mean=1.0),
        Rule("vector", r"\.bias$"),
    ]


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
