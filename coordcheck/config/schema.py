"""The schema of ``configs/`` as dataclasses: every key, its type and its options.

Hydra merges the YAML files into these classes, so a misspelt key or a wrong type fails with its full name. The files
hold every value; the classes hold none, so there is one place to read. What a type cannot say is in
:mod:`coordcheck.config.rules`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

AUTO = "auto"  # of seeds: as many runs as a check needs
PARAMETERS = "parameters"  # which a check adds to its configuration: how many there are, by width
# keys that say how a check is run and kept
BOOKKEEPING = frozenset(
    {"name", "audit", "rerun", "try_advice", "workers", "executor"} | {"resume", "runs", "plots", "verbose", PARAMETERS}
)
NO_NUMBERS = BOOKKEEPING | {"seeds", "budget", "first_seed", "gate", "control", "device"}


class Parametrization(StrEnum):
    """How init, multipliers and learning rates scale with width."""

    mup = "mup"
    sp = "sp"
    sp_full_align = "sp_full_align"
    ntk = "ntk"
    mean_field = "mean_field"
    umup = "umup"
    completep = "completep"
    own = "own"


class Axis(StrEnum):
    """What differs between the models of a check."""

    width = "width"
    depth = "depth"


class Expect(StrEnum):
    """Whose exponents slopes are held against."""

    mup = "mup"
    sp = "sp"
    sp_full_align = "sp_full_align"
    ntk = "ntk"
    mean_field = "mean_field"
    umup = "umup"
    completep = "completep"


class Positions(StrEnum):
    """Position embeddings of a model."""

    learned = "learned"
    none = "none"


class Embedding(StrEnum):
    """Whether the readout has its own weight or the embedding's."""

    untied = "untied"
    tied = "tied"
    tied_rescaled = "tied_rescaled"
    own = "own"


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
    adafactor = "adafactor"
    muon = "muon"
    lion = "lion"


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
    """A model, all but its width: what every family has."""

    name: str


@dataclass
class TransformerConfig(ModelConfig):
    """A transformer: heads of a fixed size whose count grows with width, or the reverse."""

    head_size: int | None
    heads: int | None


@dataclass
class GPTConfig(TransformerConfig):
    """A decoder of this project, see :class:`coordcheck.models.gpt.GPT`."""

    depth: int
    bias: bool
    positions: Positions
    norm: Norm
    feed_forward: FeedForward
    queries_per_key: int
    qk_norm: bool
    init: Init


@dataclass
class T5Config(TransformerConfig):
    """An encoder-decoder of this project, see :class:`coordcheck.models.t5.T5`."""

    encoder_depth: int
    decoder_depth: int
    feed_forward: FeedForward


@dataclass
class PostLNConfig(TransformerConfig):
    """The post-LN encoder-decoder of DETR, see :class:`coordcheck.models.post_ln.PostLN`."""

    encoder_depth: int
    decoder_depth: int
    feed_forward_ratio: int
    queries: int
    eps: float
    init: Scheme


@dataclass
class HFConfig(TransformerConfig):
    """A model of Hugging Face transformers, see :mod:`coordcheck.models.hf`."""

    config: str
    depth: int
    overrides: dict[str, Any]


@dataclass
class OwnConfig(ModelConfig):
    """A user's own model by the dotted names of functions, see :mod:`coordcheck.models.own`."""

    build: str
    args: dict[str, Any]
    optimizer: str | None
    batch: str | None
    inputs: list[str] | None
    loss: str | None


@dataclass
class FlaxConfig(ModelConfig):
    """A user's own JAX model by the dotted names of functions, see :mod:`coordcheck.jax.configured`."""

    build: str
    args: dict[str, Any]
    optimizer: str | None
    batch: str | None
    loss: str | None


MODELS: dict[str, type[ModelConfig]] = {
    "gpt": GPTConfig,
    "t5": T5Config,
    "post_ln": PostLNConfig,
    "hf": HFConfig,
    "own": OwnConfig,
    "flax": FlaxConfig,
}
OPEN = {"hf": "overrides", "own": "args", "flax": "args"}  # by model, the key that takes any key below it


class ExecutorName(StrEnum):
    """Who makes the runs of a check."""

    auto = "auto"
    threads = "threads"
    processes = "processes"
    submitit = "submitit"
    ray = "ray"
    dask = "dask"


@dataclass
class ExecutorConfig:
    """Who makes the runs of a check, and what that engine is told, see :mod:`coordcheck.run.executors`."""

    name: ExecutorName
    args: dict[str, Any]


ENGINES = ("submitit", "ray", "dask")  # executors whose args take any key


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


class Decay(StrEnum):
    """How weight decay should scale with width."""

    independent = "independent"
    root = "width^-1/2"
    constant = "constant"
    off = "off"


@dataclass
class GateConfig:
    """What turns slopes into verdicts."""

    expect: Expect
    decay: str | None
    accept: list[str]
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
    axis: Axis
    widths: list[int]
    depths: list[int]
    base_width: int
    base_depth: int
    seeds: Any  # a whole number, or AUTO
    budget: float
    first_seed: int
    steps: int
    kinds: list[str]
    modules: list[str] | None
    control: bool
    audit: bool
    rerun: bool
    try_advice: bool
    device: str
    precision: Precision
    workers: int | None
    executor: ExecutorConfig
    resume: bool
    runs: str
    plots: str | None
    verbose: bool
