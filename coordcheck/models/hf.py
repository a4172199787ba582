"""Any configuration of Hugging Face transformers as a model that grows with width, in its own initialization.

Sizes are the defaults of a configuration class, scaled by the rules of :data:`FIELDS`; weights come from
transformers' own ``_init_weights``. Nothing is read from the hub. transformers is an optional dependency that takes
a second to import, so it is imported by the functions that need it.
"""

import math
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from coordcheck.config.schema import Embedding
from coordcheck.models.configured import ConfiguredCell
from coordcheck.run.device import to_device

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# What a field is: the width, what keeps its ratio to the width, the count of heads, what keeps its ratio to that, the
# size of a head, the count of blocks, of tokens or of positions, or what does not follow the width at all.
_FIELDS = {
    "width": "hidden_size n_embd d_model word_embed_proj_dim emb_dim embedding_dim",
    "ratio": (
        "intermediate_size ffn_dim n_inner d_ff d_inner dff encoder_ffn_dim decoder_ffn_dim ffn_hidden_size "
        "feed_forward_size dense_intermediate_size intermediate_size_mlp moe_intermediate_size "
        "shared_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size "
        "shared_experts_intermediate_size expert_ffn_hidden_size attention_hidden_size lru_width"
    ),
    "heads": (
        "num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads decoder_attention_heads "
        "num_encoder_attention_heads num_decoder_attention_heads"
    ),
    "kv_heads": "num_key_value_heads num_kv_heads",
    "head_size": "head_dim d_kv d_head kv_channels",
    "depth": (
        "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers "
        "num_decoder_layers"
    ),
    "vocab_size": "vocab_size decoder_vocab_size src_vocab_size tgt_vocab_size",
    "context": (
        "max_position_embeddings n_positions n_ctx max_seq_len max_source_positions max_target_positions "
        "max_encoder_position_embeddings max_decoder_position_embeddings"
    ),
    "fixed": "sliding_window index_topk",
}
RULES = tuple(_FIELDS)
FIELDS = {field: rule for rule, fields in _FIELDS.items() for field in fields.split()}
_generator_in_use = Lock()  # torch's global generator belongs to all threads, and several runs may be built at a time


def scaled_config(
    config: str,
    width: int,
    heads: int,
    *,
    depth: int,
    vocab_size: int,
    context: int,
    tied: bool | None = None,
    overrides: Mapping[str, Any] = MappingProxyType({}),
) -> "PretrainedConfig":
    """A configuration whose sizes follow the width, without dropout and without a cache.

    Args:
        config: A model type of transformers ("gpt2", "t5") or the dotted name of a configuration class.
        width: d_model.
        heads: Number of attention heads at this width.
        depth: Number of blocks, of encoder and decoder each.
        vocab_size: Number of tokens; special tokens beyond it become None.
        context: Longest sequence.
        tied: Whether the readout's weight is the embedding's; None for what the class does by default.
        overrides: By field, its value or the rule of :data:`RULES` that it follows.

    Returns:
        A new configuration.

    Raises:
        ValueError: if transformers is missing, `config` or an override is unknown, heads do not divide, or a field
            that may follow the width has no rule.

    Example:
        >>> small = scaled_config("llama", 64, heads=4, depth=2, vocab_size=256, context=32)
        >>> small.hidden_size, small.intermediate_size, small.head_dim
        (64, 172, 16)
    """
    cls = config_class(config)
    default = cls().to_dict()
    _check_overrides(cls.__name__, default, overrides)
    if heads < 1 or width % heads:
        raise ValueError(f"`heads` must divide the width; {heads} does not divide {width}. For example heads=4.")
    rules = FIELDS | {name: value if value in RULES else "fixed" for name, value in overrides.items()}
    base_width = _default_of("width", cls.__name__, default, rules)
    _check_known(cls.__name__, base_width, default, rules)
    given = {"width": width, "heads": heads, "head_size": width // heads, "depth": depth}
    given |= {"vocab_size": vocab_size, "context": context}
    values: dict[str, Any] = {}
    for name, size in default.items():
        rule = rules.get(name)
        if rule in given:
            values[name] = given[rule]
        elif rule == "ratio" and size is not None:
            values[name] = round(size * width / base_width)
        elif rule == "kv_heads" and size is not None:
            values[name] = _kv_heads(name, size, heads, _default_of("heads", cls.__name__, default, rules))
    values |= _without_noise(default) | _without_tokens_beyond(vocab_size, default) | {"use_cache": False}
    # T5Config takes the argument as "do not multiply the readout's input by d_model^-1/2", right for an untied head,
    # but from transformers 5.1 on ties all the same; only the attribute unties.
    tie = {} if tied is None else {"tie_word_embeddings": tied}
    scaled = _construct(cls, values | tie | {name: value for name, value in overrides.items() if value not in RULES})
    for name, value in tie.items():
        setattr(scaled, name, value)
    return scaled


def build(config: "PretrainedConfig", seed: int | None = None) -> "PreTrainedModel":
    """The causal or the encoder-decoder language model of a configuration.

    Args:
        config: For example from :func:`scaled_config`.
        seed: Of torch's global generator, or None to draw on from its present state.

    Returns:
        The model, its weights drawn by transformers from torch's global generator; within
        ``torch.device("meta")`` its structure only.

    Raises:
        ValueError: if transformers has no language model for it, or ties where it should not, or the reverse.
    """
    transformers = _transformers()
    auto, known = "AutoModelForCausalLM", transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if config.is_encoder_decoder:
        auto, known = "AutoModelForSeq2SeqLM", transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    if type(config) not in known:
        name = type(config).__name__
        raise ValueError(
            f"{auto} knows no model for {name}; register it in the module of {name}. "
            f"For example {auto}.register({name}, MyModel)."
        )
    with _generator_in_use:
        if seed is not None:
            torch.manual_seed(seed)
        model: PreTrainedModel = getattr(transformers, auto).from_config(config)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight  # type: ignore[no-untyped-call]
    if tied != config.tie_word_embeddings:
        raise ValueError(
            f"the embeddings of {type(model).__name__} in transformers {transformers.__version__} are "
            f"{'tied' if tied else 'untied'} whatever its configuration says; got "
            f"tie_word_embeddings={config.tie_word_embeddings}. For example scaled_config(..., tied={tied})."
        )
    return model


def make_batch(config: "PretrainedConfig", inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Token ids as the arguments of ``model(**batch)``, with which the model computes a loss.

    Args:
        config: Of the model.
        inputs: (B, L), what a causal model or an encoder reads.
        targets: (B, L), what a causal model predicts at the same positions, or a decoder writes.

    Returns:
        For a causal model, the targets one position later, because it shifts its labels back; the last target is
        lost. For an encoder-decoder, a decoder's input too: the targets behind a start token.
    """
    if not config.is_encoder_decoder:
        return {"input_ids": inputs, "labels": _shifted(targets, inputs[:, :1])}
    ids = (getattr(config, f"{token}_token_id", None) for token in ("decoder_start", "pad", "bos"))
    start = torch.full_like(targets[:, :1], next((i for i in ids if i is not None), 0))
    return {"input_ids": inputs, "decoder_input_ids": _shifted(targets, start), "labels": targets.contiguous()}


def config_class(config: str) -> "type[PretrainedConfig]":
    """The configuration class of a model type or of a dotted name.

    Raises:
        ValueError: if transformers is missing or there is no such class.
    """
    transformers = _transformers()
    if config in transformers.CONFIG_MAPPING:
        found = transformers.CONFIG_MAPPING[config]
    else:
        module, _, name = config.rpartition(".")
        try:
            found = getattr(import_module(module), name, None)
        except (ImportError, ValueError):  # ValueError: no module is named ""
            found = None
    if not (isinstance(found, type) and issubclass(found, transformers.PretrainedConfig)):
        raise ValueError(
            f"`model.config` is a model type of transformers {transformers.__version__} or the dotted name of a "
            f"configuration class; got {config!r}. For example model.config=gpt2."
        )
    return found


def _transformers() -> Any:
    try:
        return import_module("transformers")
    except ImportError as error:
        raise ValueError(
            f'model=hf needs the package transformers ({error}). For example pip install "coordcheck[hf]".'
        ) from error


def _construct(cls: "type[PretrainedConfig]", values: Mapping[str, Any]) -> "PretrainedConfig":
    """A configuration of these values, all others at their defaults."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        return cls(**values)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(
            f"{cls.__name__} does not accept {dict(values)}: {' '.join(str(error).split())}. Give the fields that it "
            f"names, for example overrides={{'pad_token_id': 0}}."
        ) from error


def _check_overrides(config: str, default: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Checks that every override has a field, and one that names a rule a whole number to scale."""
    for name, value in overrides.items():
        if name not in default:
            near = (get_close_matches(name, default, 1, 0.0) or ["vocab_size"])[0]
            raise ValueError(
                f"`overrides` has {name!r}, which {config} has not; its fields are {sorted(default)}. "
                f"For example model.overrides.{near}=..."
            )
        if value in RULES and type(default[name]) is not int:
            raise ValueError(
                f"`overrides` has {name}={value!r}, a rule for whole numbers, but {config} has "
                f"{name}={default[name]!r} by default; give a value. For example overrides={{{name!r}: 64}}."
            )


def _default_of(rule: str, config: str, default: Mapping[str, Any], rules: Mapping[str, str]) -> int:
    """The default of the first field with a rule."""
    for name, size in _whole_numbers(default).items():
        if rules.get(name) == rule:
            return size
    raise ValueError(
        f"no field of {config} is known to be its {rule}; it has the whole numbers {_whole_numbers(default)}. Say "
        f"which is, for example overrides={{'my_{rule}': {rule!r}}}; the rules are {list(RULES)}."
    )


def _check_known(config: str, base_width: int, default: Mapping[str, Any], rules: Mapping[str, str]) -> None:
    """Checks that nothing that may follow the width keeps its default, for it would not grow."""
    sizes = _whole_numbers(default)
    unknown = [name for name, size in sizes.items() if size == base_width and name not in rules]
    unknown += [name for name in default if isinstance(default[name], list) and rules.get(name, "fixed") != "fixed"]
    if unknown:
        raise ValueError(
            f"{unknown} of {config} may follow the width, whose default is {base_width}, but have no rule. It has the "
            f"whole numbers {sizes}. Give each a rule of {list(RULES)} or a value, for example "
            f"overrides={{{unknown[0]!r}: 'width'}}."
        )


def _whole_numbers(default: Mapping[str, Any]) -> dict[str, int]:
    """The fields that could be sizes."""
    return {name: value for name, value in default.items() if type(value) is int}


def _kv_heads(name: str, default: int, heads: int, default_heads: int) -> int:
    """Heads of keys and values in their default ratio to those of queries; one, if one serves all queries."""
    if default == 1:
        return 1
    count, rest = divmod(heads * default, default_heads)
    if rest:
        raise ValueError(
            f"`heads` must keep the default ratio of `{name}`, {default} to {default_heads}; got {heads} heads. For "
            f"example heads={default_heads // math.gcd(default, default_heads)} or overrides={{{name!r}: 'heads'}}."
        )
    return count


def _without_noise(default: Mapping[str, Any]) -> dict[str, float]:
    """Zero for every probability of dropout and amplitude of jitter."""
    return {
        name: 0.0
        for name, value in default.items()
        if ("drop" in name or "jitter" in name) and type(value) in (int, float)
    }


def _without_tokens_beyond(vocab_size: int, default: Mapping[str, Any]) -> dict[str, None]:
    """None for every special token that is not in the vocabulary."""
    special = {name: value for name, value in default.items() if name.endswith("_token_id") and value is not None}
    return {
        name: None
        for name, value in special.items()
        if any(not 0 <= token < vocab_size for token in (value if isinstance(value, list) else [value]))
    }


def _shifted(tokens: Tensor, first: Tensor) -> Tensor:
    """Tokens, (B, L), one position later, behind `first`, (B, 1)."""
    return torch.cat([first, tokens[:, :-1]], dim=1)


class HFCell(ConfiguredCell):
    """A model of Hugging Face transformers, initialized by transformers."""

    def structure(self, width: int) -> nn.Module:
        """The model; transformers writes it too, unless on ``meta``."""
        return self._model(width, None)

    def build(self, width: int, seed: int, device: torch.device) -> nn.Module:
        """A model on `device`, as transformers initializes it."""
        return self._model(width, seed).to(device)

    def _model(self, width: int, seed: int | None) -> nn.Module:
        return build(self._scaled(width), seed)

    def _scaled(self, width: int) -> Any:
        c, model = self.config, self.config.model
        return scaled_config(
            model.config,
            width,
            self.heads(width),
            depth=model.depth,
            vocab_size=c.data.vocab_size,
            context=c.data.context,
            tied=None if self.config.embedding.name == Embedding.own else self.tied,
            overrides=model.overrides,
        )

    def batch(self, seed: int, device: torch.device) -> Any:
        """Arguments of the model: tokens to go on with, or for an encoder-decoder to read and to write."""
        length = self.config.data.context
        config = self._scaled(self.config.base_width)
        if not config.is_encoder_decoder:
            return to_device(make_batch(config, *self._corpus.batch(seed, self.config.data.batch, length)), device)
        tokens, _ = self._corpus.batch(seed, self.config.data.batch, 2 * length)
        return to_device(make_batch(config, tokens[:, :length], tokens[:, length:]), device)
