"""The rules that a value must keep and a type cannot say, checked before anything is built."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

from coordcheck.config.accept import entries
from coordcheck.config.arguments import (
    LARGEST,
    MOST,
    MOST_SEEDS,
    text,
    whole,
)
from coordcheck.config.axes import WIDEST, check_axes, check_budget, check_depths, check_modules
from coordcheck.config.executor import check_executor
from coordcheck.config.schema import (
    AUTO,
    Axis,
    CheckConfig,
    Decay,
    Embedding,
    Expect,
    FlaxConfig,
    GateConfig,
    Optimizer,
    OwnConfig,
    Parametrization,
    Positions,
    Readout,
    Source,
    TransformerConfig,
)
from coordcheck.records.names import shown
from coordcheck.records.schema import KINDS

E = TypeVar("E", bound=StrEnum)
LARGEST_VOCABULARY = 10_000_000  # forty times the largest in use
LARGEST_BATCH = 2**24  # tokens


def check_gate(gate: GateConfig) -> None:
    """Checks the values of a gate.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    if gate.decay is not None:
        member(Decay, "gate.decay", gate.decay)
    entries(gate.accept, "gate.accept")
    if not 0 < gate.confidence < 1:
        raise ValueError(
            f"`gate.confidence` lies between 0 and 1; got {gate.confidence}. For example gate.confidence=0.95."
        )
    if not 0 <= gate.tolerance.exponent < math.inf:
        raise ValueError(
            f"`gate.tolerance.exponent` is a finite number, zero or more; got {gate.tolerance.exponent}. "
            f"For example gate.tolerance.exponent=0.1."
        )
    for name, value in vars(gate.diagnosis).items():
        if not 0 <= value < math.inf:
            raise ValueError(
                f"`gate.diagnosis.{name}` is a finite number, zero or more; got {value}. "
                f"For example gate.diagnosis.{name}=0.1."
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
    known = [option.value for option in options]
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"`{name}` is one of {known}; got {shown(value)}. For example {name}={known[0]!r}.")
    return options(value)


def seeds_of(config: CheckConfig) -> list[int] | str:
    """The seeds of a check; "auto" where their number is not given."""
    if config.seeds == AUTO:
        return AUTO
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
    if config.seeds != AUTO:
        whole("seeds", config.seeds, 5, at_most=MOST_SEEDS)
    check_budget(config.budget)
    room = WIDEST * MOST_SEEDS if config.seeds == AUTO else config.seeds
    whole("first_seed", config.first_seed, 100, at_least=0, at_most=LARGEST - room + 1)
    check_axes(config.widths, seeds_of(config), config.steps, config.kinds)
    check_depths(config.depths)
    check_modules(config.modules)
    for name in ("name", "runs", "device"):
        text(name, getattr(config, name), {"name": "mine", "runs": "checks/runs", "device": "auto"}[name])
    if config.plots is not None:
        text("plots", config.plots, "plots")
    check_sizes(config)
    check_numbers(config)
    betas = config.optimizer.betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(
            f"`optimizer.betas` are two numbers from 0 to below 1; got {betas}. For example optimizer.betas=[0.9,0.95]."
        )
    check_gate(config.gate)
    check_executor(config.executor, "model=flax" if isinstance(config.model, FlaxConfig) else "")
    check_family(config)
    check_tied_zero(config)
    check_axis(config)


def check_axis(config: CheckConfig) -> None:
    """Checks that depth is varied where a model has one, and held against what says something of it.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    if config.axis == Axis.width:
        return
    if config.model.name not in BY_DEPTH:
        raise ValueError(
            f"axis=depth takes model={_one_of(BY_DEPTH)}, whose blocks are one list; got model={config.model.name}. "
            f"For example model=gpt."
        )
    check_gate_in_depth(config.gate, "gate.")


def refuse_depth(config: CheckConfig, command: str) -> None:
    """Makes sure that width varies, for a command that knows nothing of depth.

    Raises:
        ValueError: if depth does.
    """
    if config.axis == Axis.depth:
        raise ValueError(
            f"{command} goes by exponents of width; got axis=depth. For example coordcheck axis=depth, or axis=width."
        )


def check_gate_in_depth(gate: GateConfig, where: str = "") -> None:
    """Checks that a gate asks for nothing that is known of widths alone.

    Args:
        gate: The gate.
        where: What stands before the names of its values, where they were given.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    if gate.expect not in (Expect.mup, Expect.completep):
        raise ValueError(
            f"`{where}expect` is completep where depth varies, for other parametrizations say nothing of it; got "
            f"{gate.expect}. For example {where}expect=completep."
        )
    if gate.accept:
        raise ValueError(
            f"`{where}accept` names what an audit finds, and there is none where depth varies; got "
            f"{shown(gate.accept)}. For example {where}accept=[]."
        )


BY_DEPTH = ("gpt", "hf", "own")


def check_sizes(config: CheckConfig) -> None:
    """Checks what is counted.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    whole("base_width", config.base_width, 64, at_most=WIDEST)
    whole("base_depth", config.base_depth, 2, at_most=MOST)
    whole("data.vocab_size", config.data.vocab_size, 256, at_most=LARGEST_VOCABULARY)
    sizes = {f"model.{name}": value for name, value in vars(config.model).items() if type(value) is int}
    sizes |= {"data.batch": config.data.batch, "data.context": config.data.context}
    sizes |= {} if config.workers is None else {"workers": config.workers}
    for name, value in sizes.items():
        whole(name, value, SIZES.get(name.rpartition(".")[2], 4), at_most=MOST)
    if (tokens := config.data.batch * config.data.context) > LARGEST_BATCH:
        raise ValueError(
            f"`data.batch` x `data.context` is at most {LARGEST_BATCH} tokens; got {tokens}. "
            f"For example data.batch=8 data.context=64."
        )
    if isinstance(config.model, TransformerConfig):
        for width in (*config.widths, config.base_width):
            head_count(config.model, width)


SIZES = {"head_size": 32, "depth": 3, "batch": 8, "context": 64, "queries_per_key": 1}  # for examples


def check_numbers(config: CheckConfig) -> None:
    """Checks what is measured.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    optimizer = {f"optimizer.{name}": getattr(config.optimizer, name) for name in ("lr", "eps", "momentum")}
    numbers = {
        "embedding.std": config.embedding.std,
        "embedding.position_std": config.embedding.position_std,
        "readout.std": config.readout.std or 0.0,
        **optimizer,
        "optimizer.weight_decay": config.optimizer.weight_decay,
        **{f"model.{name}": value for name, value in vars(config.model).items() if type(value) is float},
    }
    for name, size in numbers.items():
        if not 0 <= size < math.inf:
            raise ValueError(f"`{name}` is a finite number, zero or more; got {size}. For example {name}=0.01.")
    if not 0 < config.readout.multiplier < math.inf:
        raise ValueError(
            f"`readout.multiplier` is a finite number above zero; got {config.readout.multiplier}. "
            f"For example readout.multiplier=1.0."
        )


def check_family(config: CheckConfig) -> None:
    """Checks that a model gets no option that it has no use for.

    Raises:
        ValueError: naming the option, who decides instead, and a working example.
    """
    if isinstance(config.model, OwnConfig | FlaxConfig):
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
    check_optimizer(config)


def check_optimizer(config: CheckConfig) -> None:
    """Checks that a parametrization and an optimizer fit each other and the model.

    Raises:
        ValueError: naming the values, the rule and a working example.
    """
    scheme, optimizer = config.parametrization.name, config.optimizer.name
    if scheme not in PLAIN and config.embedding.name != Embedding.untied:
        raise ValueError(
            f"parametrization={scheme} has a learning rate for the embedding and one for the readout, so they take "
            f"embedding=untied; got embedding={config.embedding.name}. For example embedding=untied."
        )
    if scheme == Parametrization.umup and optimizer not in (Optimizer.adam, Optimizer.adamw, Optimizer.lion):
        raise ValueError(
            f"parametrization=umup knows the learning rates of Adam; got optimizer={optimizer}. "
            f"For example optimizer=adamw."
        )
    if optimizer == Optimizer.muon and isinstance(config.model, OwnConfig) and config.model.optimizer is None:
        raise ValueError(
            f"optimizer=muon trains hidden matrices with Muon, and which those are only {config.model.build} knows. "
            f"For example model.optimizer=my_package.my_module.optimizer, which may return two optimizers."
        )


PLAIN = (Parametrization.mup, Parametrization.sp, Parametrization.own)


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
THEIRS = FamilyRule(
    reason="`model.build` decides this",
    parametrizations=(Parametrization.own,),
    embeddings=(Embedding.own,),
    readouts=(Readout.own,),
    data=TEXTS,
)
FAMILIES = {
    "gpt": replace(OURS, parametrizations=[name for name in Parametrization if name != Parametrization.own]),
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
    "own": THEIRS,
    "flax": THEIRS,
}


def check_own(model: OwnConfig | FlaxConfig) -> None:
    """Checks the names of a user's own functions.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    if not _is_dotted(model.build):
        raise ValueError(
            f"`model.build` is the dotted name of a function from width to a model; got {model.build!r}. For example "
            f"model={model.name} model.build=my_package.my_module.build."
        )
    for option in ("optimizer", "batch", "loss"):
        name = getattr(model, option)
        if name is not None and not _is_dotted(name):
            raise ValueError(
                f"`model.{option}` is a dotted name, or null; got {name!r}. For example "
                f"model.{option}=my_package.my_module.{option}."
            )
    if isinstance(model, FlaxConfig):
        return
    if model.inputs is not None and (len({*model.inputs}) != 2 or len(model.inputs) != 2 or model.batch is not None):
        raise ValueError(
            f"`model.inputs` are two different names, of inputs and targets, for the batches of the group data; got "
            f"{model.inputs} and model.batch={model.batch}. For example model.inputs=[input_ids,labels]."
        )


def _is_dotted(name: str) -> bool:
    """Whether Python can take this for the name of something in a module."""
    return "." in name and all(part.isidentifier() for part in name.split("."))


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
