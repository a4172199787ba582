"""The rules that a value must keep and a type cannot say, checked before anything is built."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from numbers import Integral
from typing import TypeVar

from coordcheck.config.schema import (
    CheckConfig,
    Decay,
    Embedding,
    GateConfig,
    OwnConfig,
    Parametrization,
    Positions,
    Readout,
    Source,
    TransformerConfig,
)
from coordcheck.records.schema import KINDS

E = TypeVar("E", bound=StrEnum)


def check_gate(gate: GateConfig) -> None:
    """Checks the values of a gate.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    if gate.decay is not None:
        member(Decay, "gate.decay", gate.decay)
    if not 0 < gate.confidence < 1:
        raise ValueError(
            f"`gate.confidence` lies between 0 and 1; got {gate.confidence}. For example gate.confidence=0.95."
        )
    if not 0 <= gate.tolerance.exponent < math.inf:
        raise ValueError(
            f"`gate.tolerance.exponent` is a finite number, zero or more; got {gate.tolerance.exponent}. "
            f"For example gate.tolerance.exponent=0.1."
        )
    for side, tolerances in (("explodes", gate.tolerance.explodes), ("vanishes", gate.tolerance.vanishes)):
        for kind, tolerance in tolerances.items():
            if kind not in KINDS or not 0 <= tolerance < math.inf:
                raise ValueError(
                    f"`gate.tolerance.{side}` has a finite number, zero or more, for each of {list(KINDS)}; got "
                    f"{kind}: {tolerance}. For example gate.tolerance.{side}.delta=0.2."
                )


def member(options: type[E], name: str, value: str) -> E:
    """The member of an enumeration that a user named.

    Raises:
        ValueError: if there is none.
    """
    try:
        return options(value)
    except ValueError as error:
        known = [option.value for option in options]
        raise ValueError(f"`{name}` is one of {known}; got {value!r}. For example {name}={known[0]!r}.") from error


def check_axes(widths: Sequence[int], seeds: Sequence[int], steps: int, kinds: Sequence[str]) -> None:
    """Checks what every check needs, whoever builds the model.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    whole = all(isinstance(width, Integral) and width > 0 for width in widths)
    if not whole or len(set(widths)) < max(3, len(widths)):
        raise ValueError(
            f"`widths` needs at least 3 distinct positive whole numbers to fit a slope with an interval; got "
            f"{list(widths)}. For example widths=[64,128,256]."
        )
    if not all(isinstance(seed, Integral) for seed in seeds) or len(set(seeds)) < max(1, len(seeds)):
        raise ValueError(f"`seeds` needs distinct whole numbers, at least one; got {list(seeds)}. For example seeds=5.")
    if not isinstance(steps, Integral) or steps < 1:
        raise ValueError(
            f"`steps` counts recorded forward passes, a whole number from 1 on; got {steps}. For example steps=4."
        )
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(
            f"`kinds` is a selection of {list(KINDS)}; got {list(kinds)}. For example kinds=[activation,delta]."
        )
    if steps == 1 and "activation" not in kinds:
        raise ValueError(
            f"`steps` is at least 2 where only changes since step 0 or gradients are recorded; got steps=1 "
            f"kinds={list(kinds)}. For example steps=4."
        )


def seeds_of(config: CheckConfig) -> list[int]:
    """The seeds of a check."""
    return list(range(config.first_seed, config.first_seed + config.seeds))


def head_count(model: TransformerConfig, width: int) -> int:
    """Number of attention heads at `width`.

    Raises:
        ValueError: if the heads do not divide the width, or not exactly one of `heads`, `head_size` is given.
    """
    if (model.heads is None) == (model.head_size is None):
        raise ValueError(
            f"give one of `model.heads` (a fixed count of growing heads) and `model.head_size` (a growing count "
            f"of fixed heads) and set the other to null; got heads={model.heads}, head_size={model.head_size}. "
            f"For example model.heads=4 model.head_size=null."
        )
    name, divisor = ("heads", model.heads) if model.heads is not None else ("head_size", model.head_size)
    assert divisor is not None
    if divisor < 1 or width % divisor:
        raise ValueError(
            f"`model.{name}` must divide every width and base_width; {divisor} does not divide {width}. "
            f"For example widths=[64,128,256] model.{name}=16."
        )
    return width // divisor if name == "head_size" else divisor


def validate(config: CheckConfig) -> None:
    """Checks the rules that types do not express, before anything is built.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    check_axes(config.widths, seeds_of(config), config.steps, config.kinds)
    if config.first_seed < 0:
        raise ValueError(f"`first_seed` is zero or more; got {config.first_seed}. For example first_seed=100.")
    if isinstance(config.model, TransformerConfig):
        for width in (*config.widths, config.base_width):
            head_count(config.model, width)
    positive = {
        "base_width": config.base_width,
        **{f"model.{name}": value for name, value in vars(config.model).items() if type(value) is int},
        "data.batch": config.data.batch,
        "data.context": config.data.context,
        "data.vocab_size": config.data.vocab_size,
        "workers": 1 if config.workers is None else config.workers,
    }
    for name, value in positive.items():
        if value < 1:
            raise ValueError(f"`{name}` is at least 1; got {value}. For example {name}=64.")
    spreads = {
        "embedding.std": config.embedding.std,
        "embedding.position_std": config.embedding.position_std,
        "readout.std": config.readout.std or 0.0,
        "optimizer.lr": config.optimizer.lr,
        "optimizer.eps": config.optimizer.eps,
        "optimizer.momentum": config.optimizer.momentum,
        "optimizer.weight_decay": config.optimizer.weight_decay,
    }
    for name, size in spreads.items():
        if not 0 <= size < math.inf:
            raise ValueError(f"`{name}` is a finite number, zero or more; got {size}. For example {name}=0.01.")
    betas = config.optimizer.betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(
            f"`optimizer.betas` are two numbers from 0 to below 1; got {betas}. For example optimizer.betas=[0.9,0.95]."
        )
    check_gate(config.gate)
    check_family(config)
    check_tied_zero(config)


def check_family(config: CheckConfig) -> None:
    """Checks that a model gets no option that it has no use for.

    Raises:
        ValueError: naming the option, who decides instead, and a working example.
    """
    if isinstance(config.model, OwnConfig):
        check_own(config.model)
    name = config.model.name
    rule = FAMILIES[name]
    for option, value, allowed in (
        ("readout", config.readout.name, rule.readouts),
        ("parametrization", config.parametrization.name, rule.parametrizations),
        ("embedding", config.embedding.name, rule.embeddings),
        ("data", config.data.name, rule.data),
    ):
        if value not in allowed:
            raise ValueError(
                f"model={name} takes {option}={_one_of(allowed)}, since {rule.reason}; got {option}={value}. "
                f"For example {option}={allowed[0]}."
            )


@dataclass(frozen=True)
class FamilyRule:
    """The options that a family has a use for, and why no others."""

    reason: str
    parametrizations: Sequence[Parametrization]
    embeddings: Sequence[Embedding]
    readouts: Sequence[Readout]
    data: Sequence[Source]


TEXTS = tuple(source for source in Source if source != Source.scenes)
OURS = FamilyRule(
    reason="it is initialized here and learns text",
    parametrizations=(Parametrization.mup, Parametrization.sp),
    embeddings=(Embedding.untied, Embedding.tied, Embedding.tied_rescaled),
    readouts=(Readout.zero, Readout.constant, Readout.fan_in),
    data=TEXTS,
)
FAMILIES = {
    "gpt": OURS,
    "t5": OURS,
    "post_ln": FamilyRule(
        reason="`model.init` initializes it and it learns scenes",
        parametrizations=(Parametrization.sp,),
        embeddings=(Embedding.untied,),
        readouts=(Readout.own,),
        data=(Source.scenes,),
    ),
    "hf": FamilyRule(
        reason="transformers initializes it and it learns text",
        parametrizations=(Parametrization.sp,),
        embeddings=(Embedding.own, Embedding.untied, Embedding.tied),
        readouts=(Readout.own,),
        data=TEXTS,
    ),
    "own": FamilyRule(
        reason="`model.build` decides this",
        parametrizations=(Parametrization.own,),
        embeddings=(Embedding.own,),
        readouts=(Readout.own,),
        data=TEXTS,
    ),
}


def check_own(model: OwnConfig) -> None:
    """Checks the names of a user's own functions.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    if "." not in model.build.strip("."):
        raise ValueError(
            f"`model.build` is the dotted name of a function from width to a model; got {model.build!r}. For example "
            f"model=own model.build=my_package.my_module.build."
        )
    for option in ("optimizer", "batch", "loss"):
        name = getattr(model, option)
        if name is not None and "." not in name.strip("."):
            raise ValueError(
                f"`model.{option}` is a dotted name, or null; got {name!r}. For example "
                f"model.{option}=my_package.my_module.{option}."
            )
    if model.inputs is not None and (len(model.inputs) != 2 or model.batch is not None):
        raise ValueError(
            f"`model.inputs` are two names, of inputs and targets, for the batches of the group data; got "
            f"{model.inputs} and model.batch={model.batch}. For example model.inputs=[input_ids,labels]."
        )


def _one_of(options: Sequence[str]) -> str:
    """Options in words."""
    *most, last = map(str, options)
    return f"{', '.join(most)} or {last}" if most else last


def check_tied_zero(config: CheckConfig) -> None:
    """A tied readout that starts at zero is a zero embedding: only positions can make the model's input non-zero.

    Raises:
        ValueError: if there are no positions either, for then every activation and every gradient is zero.
    """
    positions = getattr(config.model, "positions", Positions.none)
    without_positions = positions == Positions.none or config.embedding.position_std == 0
    tied = config.embedding.name in (Embedding.tied, Embedding.tied_rescaled)
    if tied and config.readout.name == Readout.zero and without_positions:
        raise ValueError(
            f"embedding={config.embedding.name} readout=zero makes the shared embedding zero, so `model.positions` "
            f"must be learned with a non-zero `embedding.position_std`; got positions={positions}, "
            f"position_std={config.embedding.position_std}. For example "
            f"model.positions=learned embedding.position_std=1."
        )
