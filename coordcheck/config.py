"""What a check can be told: the schema of ``configs/`` as dataclasses, and the rules a value must keep.

Hydra merges the YAML files into these classes, so a misspelt key or a wrong type fails with its full name.
The files hold every value; the classes hold none, so there is one place to read. What a type cannot say is
checked by :func:`validate`, before anything is built. This module imports neither torch nor pandas:
``coordcheck --help`` must answer at once.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from numbers import Integral
from typing import Any, TypeVar

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

LONGEST_NAME = 200  # bytes; file systems take 255, and a suffix is still to come
E = TypeVar("E", bound=StrEnum)
KINDS = ("activation", "delta", "effective_update", "gradient")
ROOT = "(model)"  # stands for the name of the whole model, which torch leaves empty
# keys of CheckConfig that say how a check is run and kept, and those that no recorded number depends on
BOOKKEEPING = frozenset({"name", "audit", "workers", "resume", "runs", "plots"})
NO_NUMBERS = BOOKKEEPING | {"seeds", "first_seed", "gate", "control", "device"}


class Parametrization(StrEnum):
    """How init, multipliers and learning rates scale with width."""

    mup = "mup"
    sp = "sp"


class Positions(StrEnum):
    """Position embeddings of a model."""

    learned = "learned"
    none = "none"


class Embedding(StrEnum):
    """Whether the readout has its own weight or the embedding's."""

    untied = "untied"
    tied = "tied"
    tied_rescaled = "tied_rescaled"


class Init(StrEnum):
    """How the readout is initialized."""

    zero = "zero"
    constant = "constant"
    fan_in = "fan_in"


class Optimizer(StrEnum):
    """Which optimizer trains."""

    adam = "adam"
    adamw = "adamw"
    sgd = "sgd"


class Source(StrEnum):
    """Where tokens come from."""

    stdlib = "stdlib"
    file = "file"
    tokens = "tokens"
    zipf = "zipf"


class Precision(StrEnum):
    """Arithmetic of the forward and backward pass; statistics are float32 in either case."""

    fp32 = "fp32"
    bf16 = "bf16"


@dataclass
class ModelConfig:
    """A transformer, all but its width."""

    name: str
    depth: int
    head_size: int | None
    heads: int | None
    bias: bool
    positions: Positions


@dataclass
class ParametrizationConfig:
    """A parametrization."""

    name: Parametrization


@dataclass
class EmbeddingConfig:
    """Token and position embeddings."""

    name: Embedding
    std: float
    position_std: float


@dataclass
class ReadoutConfig:
    """The layer from width to vocabulary."""

    name: Init
    std: float | None
    multiplier: float


@dataclass
class OptimizerConfig:
    """An optimizer."""

    name: Optimizer
    lr: float
    betas: list[float]
    eps: float
    momentum: float
    weight_decay: float


@dataclass
class DataConfig:
    """Token batches."""

    name: Source
    path: str | None
    dtype: str
    vocab_size: int
    batch: int
    context: int


@dataclass
class Tolerance:
    """How far outside the expected range an interval may reach, per kind, in units of the exponent."""

    explodes: dict[str, float]
    vanishes: dict[str, float]
    exponent: float


@dataclass
class GateConfig:
    """What turns slopes into verdicts."""

    expect: Parametrization
    confidence: float
    tolerance: Tolerance


@dataclass
class CheckConfig:
    """One check of one cell."""

    name: str
    model: ModelConfig
    parametrization: ParametrizationConfig
    embedding: EmbeddingConfig
    readout: ReadoutConfig
    optimizer: OptimizerConfig
    data: DataConfig
    gate: GateConfig
    widths: list[int]
    base_width: int
    seeds: int
    first_seed: int
    steps: int
    kinds: list[str]
    modules: list[str] | None
    control: bool
    audit: bool
    device: str
    precision: Precision
    workers: int | None
    resume: bool
    runs: str
    plots: str | None


def register_schema() -> None:
    """Tells Hydra the schema, under the name that ``configs/check.yaml`` lists first, and :func:`file_name`."""
    ConfigStore.instance().store(name="check_schema", node=CheckConfig)
    OmegaConf.register_new_resolver("file_name", file_name, replace=True)


def file_name(text: str) -> str:
    """`text`, shortened so far that file systems take it as a name, and kept apart by a hash.

    >>> file_name("readout=zero")
    'readout=zero'
    >>> len(file_name("x" * 999))
    200
    """
    if len(text.encode()) <= LONGEST_NAME:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return text.encode()[: LONGEST_NAME - len(digest) - 1].decode(errors="ignore") + f"-{digest}"


def load(overrides: Sequence[str] = ()) -> CheckConfig:
    """The configuration that ``coordcheck OVERRIDES`` runs.

    Args:
        overrides: Hydra overrides, for example ``["embedding=tied", "widths=[64,128,256]"]``.

    Raises:
        ValueError: if an override names an unknown key or option, or breaks a rule of :func:`validate`.

    >>> load(["readout=constant"]).readout.name.value
    'constant'
    """
    register_schema()
    try:
        with initialize_config_module("coordcheck.configs", version_base="1.3"):
            return from_hydra(compose("check", overrides=list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(f"overrides {list(overrides)}: {error}") from error


def from_hydra(merged: DictConfig) -> CheckConfig:
    """Turns Hydra's merged configuration into the dataclasses and checks their values.

    Raises:
        ValueError: see :func:`validate`.
    """
    config = OmegaConf.to_object(merged)
    assert isinstance(config, CheckConfig)
    validate(config)
    return config


def flatten(config: Mapping[str, Any], without: Set[str] = frozenset(), prefix: str = "") -> dict[str, Any]:
    """Nested values as one level with dotted keys.

    >>> flatten({"steps": 4, "model": {"depth": 3}, "name": "check"}, without={"name"})
    {'steps': 4, 'model.depth': 3}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if not prefix and key in without:
            continue
        if isinstance(value, Mapping):
            flat |= flatten(value, prefix=f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def default_gate() -> GateConfig:
    """The gate of ``configs/gate/default.yaml``."""
    text = files("coordcheck.configs").joinpath("gate/default.yaml").read_text()
    return gate_from(OmegaConf.to_container(OmegaConf.create(text)))


def gate_from(values: Any) -> GateConfig:
    """A gate from plain values, for example those that a check stored.

    Raises:
        ValueError: if a key is unknown or a value has the wrong type or breaks a rule.
    """
    try:
        gate = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(GateConfig), values))
    except OmegaConfBaseException as error:
        raise ValueError(f"`gate` does not fit its schema: {error}") from error
    assert isinstance(gate, GateConfig)
    check_gate(gate)
    return gate


def check_gate(gate: GateConfig) -> None:
    """Checks the values of a gate.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
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


def head_count(model: ModelConfig, width: int) -> int:
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
    if config.model.name != "gpt":
        raise ValueError(f"`model.name` is one of ['gpt']; got {config.model.name!r}. For example model=gpt.")
    for width in (*config.widths, config.base_width):
        head_count(config.model, width)
    positive = {
        "base_width": config.base_width,
        "model.depth": config.model.depth,
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
    check_tied_zero(config)


def check_tied_zero(config: CheckConfig) -> None:
    """A tied readout that starts at zero is a zero embedding: only positions can make the model's input non-zero.

    Raises:
        ValueError: if there are no positions either, for then every activation and every gradient is zero.
    """
    without_positions = config.model.positions == Positions.none or config.embedding.position_std == 0
    tied = config.embedding.name != Embedding.untied
    if tied and config.readout.name == Init.zero and without_positions:
        raise ValueError(
            f"embedding={config.embedding.name} readout=zero makes the shared embedding zero, so `model.positions` "
            f"must be learned with a non-zero `embedding.position_std`; got positions={config.model.positions}, "
            f"position_std={config.embedding.position_std}. For example "
            f"model.positions=learned embedding.position_std=1."
        )
