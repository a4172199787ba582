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
PARAMETERS = "parameters"  # which a check adds to its configuration: how many there are, by width
# keys that say how a check is run and kept, and those that no recorded number depends on
BOOKKEEPING = frozenset({"name", "audit", "workers", "resume", "runs", "plots", PARAMETERS})
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


class Readout(StrEnum):
    """How the readout is initialized."""

    zero = "zero"
    constant = "constant"
    fan_in = "fan_in"
    own = "own"


class Norm(StrEnum):
    """What normalizes."""

    layer = "layer"
    rms = "rms"


class FeedForward(StrEnum):
    """Nonlinearity and structure of a feed-forward layer."""

    relu = "relu"
    gelu = "gelu"
    gelu_tanh = "gelu_tanh"
    geglu = "geglu"
    swiglu = "swiglu"


class Init(StrEnum):
    """How hidden weights are initialized."""

    fan_in = "fan_in"
    gpt2 = "gpt2"


class Scheme(StrEnum):
    """Who initializes the kernels of a post-LN transformer."""

    lecun_normal = "lecun_normal"
    xavier_separate = "xavier_separate"
    xavier_packed = "xavier_packed"
    torch_layers = "torch_layers"
    t_fixup = "t_fixup"


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
    scenes = "scenes"


class Precision(StrEnum):
    """Arithmetic of the forward and backward pass; statistics are float32 in either case."""

    fp32 = "fp32"
    bf16 = "bf16"


@dataclass
class ModelConfig:
    """A transformer, all but its width: what every family has."""

    name: str
    head_size: int | None
    heads: int | None


@dataclass
class GPTConfig(ModelConfig):
    """A decoder of this project, see :class:`coordcheck.models.GPT`."""

    depth: int
    bias: bool
    positions: Positions
    norm: Norm
    feed_forward: FeedForward
    queries_per_key: int
    qk_norm: bool
    init: Init


@dataclass
class T5Config(ModelConfig):
    """An encoder-decoder of this project, see :class:`coordcheck.models.T5`."""

    encoder_depth: int
    decoder_depth: int
    feed_forward: FeedForward


@dataclass
class PostLNConfig(ModelConfig):
    """The post-LN encoder-decoder of DETR, see :class:`coordcheck.models.PostLN`."""

    encoder_depth: int
    decoder_depth: int
    feed_forward_ratio: int
    queries: int
    eps: float
    init: Scheme


@dataclass
class HFConfig(ModelConfig):
    """A model of Hugging Face transformers, see :mod:`coordcheck.models.hf`."""

    config: str
    depth: int
    overrides: dict[str, Any]


MODELS: dict[str, type[ModelConfig]] = {"gpt": GPTConfig, "t5": T5Config, "post_ln": PostLNConfig, "hf": HFConfig}


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

    name: Readout
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
    decay_embedding: bool


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
class DiagnosisConfig:
    """What a diagnosis takes for certain, for the same, and for nothing."""

    certain: float
    same: float
    exact: float
    rounding: float
    initial_loss: float


@dataclass
class GateConfig:
    """What turns slopes into verdicts."""

    expect: Parametrization
    confidence: float
    tolerance: Tolerance
    diagnosis: DiagnosisConfig


@dataclass
class CheckConfig:
    """One check of one cell."""

    name: str
    model: Any  # a ModelConfig, of the class that MODELS has for its name
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
    config.model = model_from(config.model)
    validate(config)
    return config


def model_from(values: Mapping[str, Any]) -> ModelConfig:
    """A model from plain values, of the class that belongs to its name.

    Raises:
        ValueError: if the name is unknown, a key is unknown or missing, or a value has the wrong type.
    """
    if values.get("name") not in MODELS:
        name = values.get("name")
        raise ValueError(f"`model.name` is one of {list(MODELS)}; got {name!r}. For example model=gpt.")
    schema = OmegaConf.create({"model": OmegaConf.structured(MODELS[values["name"]])})
    try:
        model = OmegaConf.to_object(OmegaConf.merge(schema, {"model": values}).model)
    except OmegaConfBaseException as error:
        raise ValueError(f"`model` does not fit its schema: {error}") from error
    assert isinstance(model, ModelConfig)
    return model


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
    return gate_from(_group("gate/default.yaml"))


def default_model(name: str) -> dict[str, Any]:
    """The values of ``configs/model/NAME.yaml``."""
    values: dict[str, Any] = _group(f"model/{name}.yaml")
    return values


def _group(path: str) -> Any:
    text = files("coordcheck.configs").joinpath(path).read_text()
    return OmegaConf.to_container(OmegaConf.create(text))


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
    library = {"hf": "transformers initializes", "post_ln": "`model.init` initializes"}.get(config.model.name)
    if (library is not None) != (config.readout.name == Readout.own):
        reason = f"{library} it" if library else "it is initialized here"
        raise ValueError(
            f"model={config.model.name} takes readout={'own' if library else 'zero, constant or fan_in'}, since "
            f"{reason}; got readout={config.readout.name}. For example readout={'own' if library else 'zero'}."
        )
    if library is not None and config.parametrization.name != Parametrization.sp:
        raise ValueError(
            f"model={config.model.name} exists in standard parametrization alone, since {library} it; got "
            f"parametrization={config.parametrization.name}. For example parametrization=sp gate.expect=sp."
        )
    if (config.model.name == "post_ln") != (config.data.name == Source.scenes):
        raise ValueError(
            f"model=post_ln learns scenes and every other model tokens; got model={config.model.name} "
            f"data={config.data.name}. For example experiment=attention_qkv_init."
        )
    may_tie = {"gpt": [*Embedding], "t5": [*Embedding], "hf": [Embedding.untied, Embedding.tied]}
    if config.embedding.name not in may_tie.get(config.model.name, [Embedding.untied]):
        raise ValueError(
            f"model={config.model.name} cannot have embedding={config.embedding.name}. For example embedding=untied."
        )


def check_tied_zero(config: CheckConfig) -> None:
    """A tied readout that starts at zero is a zero embedding: only positions can make the model's input non-zero.

    Raises:
        ValueError: if there are no positions either, for then every activation and every gradient is zero.
    """
    positions = getattr(config.model, "positions", Positions.none)
    without_positions = positions == Positions.none or config.embedding.position_std == 0
    tied = config.embedding.name != Embedding.untied
    if tied and config.readout.name == Readout.zero and without_positions:
        raise ValueError(
            f"embedding={config.embedding.name} readout=zero makes the shared embedding zero, so `model.positions` "
            f"must be learned with a non-zero `embedding.position_std`; got positions={positions}, "
            f"position_std={config.embedding.position_std}. For example "
            f"model.positions=learned embedding.position_std=1."
        )
