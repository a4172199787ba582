"""Sizes of a Hugging Face configuration that follow the width: its defaults, scaled by a rule for each field.

A rule is found by the name of a field, see :mod:`coordcheck.models.hf_fields`, or is given as an override. Which class
a name stands for and what its model learns is said in :mod:`coordcheck.models.hf_types`.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from inspect import signature
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from coordcheck.models.hf_fields import FILLED, NEED_NO_DEFAULT, OPEN, RULES, SIZE_OF, rule_of
from coordcheck.models.hf_types import in_line, kind_of_model, language_config, refusal, typed

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Given:
    """What the sizes follow.

    A size that must be a whole number is rounded at `base_width`, where there are `base_heads` heads, and grows from
    there in exact ratio. A table of positions has `offset` places more than the context.
    """

    width: int
    heads: int
    base_width: int
    base_heads: int
    depth: int
    vocab_size: int
    context: int
    offset: int

    @property
    def head_size(self) -> int:
        """The size of a head."""
        return self.width // self.heads


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
    base_width: int | None = None,
    base_heads: int | None = None,
) -> "PretrainedConfig":
    """A configuration whose sizes follow the width, without dropout and without a cache.

    Args:
        config: A model type of transformers ("gpt2", "t5") or the dotted name of a configuration class. Of a model
            that also reads images or sound, its language model's configuration is taken.
        width: d_model.
        heads: Number of attention heads at this width.
        depth: Number of blocks, of encoder and decoder each. Where the default lists what each block is, blocks are
            taken at even distances, from the first to the last.
        vocab_size: Number of tokens; special tokens beyond it become None.
        context: Longest sequence.
        tied: Whether the readout's weight is the embedding's; None for what the class does by default.
        overrides: By field, its value or the rule of :data:`coordcheck.models.hf_fields.RULES` that it follows.
        base_width: Width at which sizes are rounded to whole numbers; at its multiples they are multiples. None for
            `width`.
        base_heads: Number of attention heads at `base_width`; None for `heads`.

    Returns:
        A new configuration.

    Raises:
        ValueError: if transformers is missing, `config` or an override is unknown, heads do not divide, a field that
            may follow the width has no rule, or the class refuses the sizes.

    Example:
        >>> small = scaled_config("llama", 64, heads=4, depth=2, vocab_size=256, context=32)
        >>> small.hidden_size, small.intermediate_size, small.head_dim
        (64, 172, 16)
    """
    if heads < 1 or width % heads:
        raise ValueError(
            f"the number of heads must divide the width; {heads} does not divide {width}. For example model.heads=4 "
            f"model.head_size=null."
        )
    original = language_config(config)
    cls, default = type(original), original.to_dict()
    _check_overrides(cls.__name__, default, overrides)
    rules = {name: value for name, value in overrides.items() if value in RULES}
    rules |= {name: "fixed" for name in overrides if name not in rules}
    _check_open(cls.__name__, default, overrides, depth)
    for name in {"is_decoder", "is_encoder_decoder"} & overrides.keys():
        setattr(original, name, overrides[name])  # they decide what its model learns
    kind = kind_of_model(original) if cls.__module__.startswith("transformers.") else None
    offset = _first_place(default, vocab_size) if kind in ("masked", "seq2seq") or "is_decoder" in overrides else 0
    given = Given(width, heads, base_width or width, base_heads or heads, depth, vocab_size, context, offset)
    # T5Config takes the argument as "do not multiply the readout's input by d_model^-1/2", right for an untied head,
    # but from transformers 5.1 on ties all the same; only the attribute unties.
    tie = {} if tied is None else {"tie_word_embeddings": tied}
    values = _scaled(cls.__name__, default, given, rules, None) | {"use_cache": False}
    if kind == "causal" and default.get("is_decoder") is False:  # then it would attend in both directions
        values["is_decoder"] = True
    usual = cls().to_dict()  # a language model within a larger one has defaults of its own
    values = {name: value for name, value in default.items() if value != usual.get(name)} | values
    values = {name: value for name, value in values.items() if name in _declared(cls)}
    values |= tie | {name: value for name, value in overrides.items() if value not in RULES}
    scaled = _construct(cls, values, [name for name in values if _is_token(name)], vocab_size)
    for name, value in tie.items():
        setattr(scaled, name, value)
    return scaled


def _scaled(
    config: str, default: Mapping[str, Any], given: Given, overrides: Mapping[str, str], outer: int | None
) -> dict[str, Any]:
    """The fields of a configuration that differ from their defaults.

    Args:
        config: Name of its class.
        default: By field, its default.
        given: What sizes follow.
        overrides: By field, its rule.
        outer: The default width of the configuration around this one, if there is one.
    """
    rules = {name: overrides.get(name, rule_of(name, default)) for name in default}
    nested = {name: value for name, value in default.items() if _is_model(name, value)}
    base_width = _first("width", default, rules) or outer
    if base_width is None and not any(_has_width(value) for value in nested.values()):
        raise _unknown("width", config, default)
    if base_width is not None:
        _check_known(config, base_width, default, rules)
    values: dict[str, Any] = {}
    for name, size in default.items():
        rule = rules[name]
        if name in nested:
            known = {inner: value for inner, value in size.items() if value is not None}
            values[name] = {**known, **_scaled(f"{config}.{name}", size, given, overrides, base_width)}
        elif type(size) is int or (size is None and (name in overrides or rule in FILLED) and rule in NEED_NO_DEFAULT):
            values |= {name: _size(name, rule, given, base_width, default, rules)} if rule else {}
        elif isinstance(size, list) and len(size) == _first("depth", default, rules):
            values[name] = [
                _entry(name, entry, rule, given, base_width) for entry in _at_even_distances(size, given.depth)
            ]
        elif isinstance(size, list) and rule == "ratio":
            values[name] = [_entry(name, entry, rule, given, base_width) for entry in size]
    if "qk_nope_head_dim" in default and "qk_rope_head_dim" in default:
        values["qk_head_dim"] = values["qk_nope_head_dim"] + values["qk_rope_head_dim"]
    if "axial_pos_shape" in default:  # Reformer's, whose product is the length of a sequence
        values["axial_pos_shape"] = [1, given.context]
    if "attention_layers" in values and "attention_types" in default:  # GPT-Neo's: patterns and how often each comes
        values["attention_types"] = [[values["attention_layers"], 1]]
    return values | _without_noise(default) | _without_tokens_beyond(given.vocab_size, default)


def _size(
    name: str,
    rule: str,
    given: Given,
    base_width: int | None,
    default: Mapping[str, Any],
    rules: Mapping[str, str | None],
) -> int:
    """What a rule makes of a field."""
    size: int = default[name]
    if rule == "ratio" and base_width is not None:
        return _ratio(name, size, given, base_width)
    if rule == "kv_heads":
        return _kv_heads(name, size, given, _first("heads", default, rules))
    if rule == "inner_heads" and base_width is not None:
        return _inner_heads(name, given, base_width, default)
    if rule == "groups" and base_width is not None:
        counts = [_inner_heads(other, given, base_width, default) for other in rules if rules[other] == "inner_heads"]
        groups: int = math.gcd(size, *(count * given.base_heads // given.heads for count in counts))
        return groups
    if rule == "some_blocks":
        # a block that shares keys needs an earlier one of its own type, which few blocks do not have
        return 0 if name == "num_kv_shared_layers" else min(size, given.depth // 2)
    if rule == "context":
        return given.context + given.offset
    given_size: int = getattr(given, rule, size)
    return given_size


def _ratio(name: str, size: int, given: Given, base_width: int) -> int:
    """A size in its default ratio to the width; at least one, unless it is zero.

    Grouped matrix products of experts want rows of 16 bytes, eight numbers in bfloat16.
    """
    multiple = 8 if re.search("moe|expert", name) else 1
    whole = max(multiple * round(size * given.base_width / base_width / multiple), multiple)
    return max(multiple * round(whole * given.width / given.base_width / multiple), multiple) if size else 0


def _entry(name: str, entry: Any, rule: str | None, given: Given, base_width: int | None) -> Any:
    """An entry of a list: in ratio to the width if the list is, else as it is."""
    return _ratio(name, entry, given, base_width) if rule == "ratio" and type(entry) is int and base_width else entry


def _kv_heads(name: str, default: int | None, given: Given, default_heads: int | None) -> int:
    """Heads of keys and values: as many queries for each as by default, or the nearest number that divides."""
    if default == 1:
        return 1
    queries = (default_heads or 1) / default if default else 1.0
    divisors = [i for i in range(1, given.base_heads + 1) if given.base_heads % i == 0]
    nearest = min(divisors, key=lambda divisor: abs(math.log(divisor / queries)))
    if given.heads % nearest:
        raise ValueError(
            f"`{name}` keeps {nearest} queries for each key, which must divide the number of heads; it does not "
            f"divide {given.heads} at width {given.width}. For example {typed({name: 'heads'})}."
        )
    return given.heads // nearest


def _inner_heads(name: str, given: Given, base_width: int, default: Mapping[str, Any]) -> int:
    """Heads of another layer than attention, whose count times size keeps its ratio to the width."""
    size, default_count = default.get(SIZE_OF.get(name, "")), int(default[name])
    if type(size) is not int:
        return default_count
    head_size = given.base_width // given.base_heads
    count = max(1, round(default_count * size * given.base_width / base_width / head_size))
    return max(1, count * given.heads // given.base_heads)


def _first_place(default: Mapping[str, Any], vocab_size: int) -> int:
    """How many places of a table of positions are left out if they are counted from behind the padding token."""
    pad = default.get("pad_token_id")
    ahead = 1 if "ngram" in default else 0  # ProphetNet's second stream reads one place further
    return pad + 1 + ahead if type(pad) is int and 0 <= pad < vocab_size else 0


def _at_even_distances(entries: list[Any], depth: int) -> list[Any]:
    """So many entries of a list, the first and the last among them."""
    last = len(entries) - 1
    return [entries[round(block * last / max(1, depth - 1))] for block in range(depth)]


def _declared(cls: type) -> set[str]:
    """The fields that a class takes as arguments, not those that it computes."""
    found = {field.name for field in fields(cls)} if is_dataclass(cls) else set()
    return found.union(
        *(signature(vars(base)["__init__"]).parameters for base in cls.__mro__ if "__init__" in vars(base))
    )


def _construct(
    cls: "type[PretrainedConfig]", values: Mapping[str, Any], tokens: Iterable[str], vocab_size: int
) -> "PretrainedConfig":
    """A configuration of these values; special tokens that must be in the vocabulary become its last."""
    last = {name: vocab_size - 1 for name in tokens if values[name] is None}
    try:
        return cls(**values)
    except Exception as error:  # of any configuration class, ZeroDivisionError to its own validation
        try:
            return cls(**{**values, **last})
        except Exception:  # the first error says more
            raise refusal(cls, f"it does not accept sizes that follow the width, {in_line(error)}") from error


def _check_overrides(config: str, default: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Checks that every override has a field, and one that names a rule a number to scale."""
    for name, value in overrides.items():
        if name not in default:
            near = (get_close_matches(name, default, 1, 0.0) or ["vocab_size"])[0]
            raise ValueError(
                f"`overrides` has {name!r}, which {config} has not; its fields are {sorted(default)}. "
                f"For example model.overrides.{near}=..."
            )
        if value not in RULES or type(default[name]) is int or (default[name] is None and value in NEED_NO_DEFAULT):
            continue
        raise ValueError(
            f"`overrides` has {name}={value!r}, a rule for whole numbers, but {config} has {name}={default[name]!r} by "
            f"default; give a value. For example {typed({name: 64})}."
        )


def _check_open(config: str, default: Mapping[str, Any], overrides: Mapping[str, Any], depth: int) -> None:
    """Checks that no field is null that the model needs."""
    values = OPEN | {"layer_types": [OPEN["layer_types"]] * depth}
    missing = {name: value for name, value in values.items() if default.get(name, "") is None and name not in overrides}
    if missing:
        raise ValueError(f"{config} has no default for {list(missing)}; give values. For example {typed(missing)}.")


def _first(rule: str, default: Mapping[str, Any], rules: Mapping[str, str | None]) -> int | None:
    """The default of the first whole number with a rule, None if there is none."""
    return next((size for name, size in whole_numbers(default).items() if rules.get(name) == rule), None)


def _is_model(name: str, value: Any) -> bool:
    """Whether a field is the configuration of a model within the model; those for sound are not built."""
    return isinstance(value, dict) and "model_type" in value and not re.search("audio|depth_decoder", name)


def _has_width(default: Mapping[str, Any]) -> bool:
    return _first("width", default, {name: rule_of(name, default) for name in default}) is not None


def _unknown(rule: str, config: str, default: Mapping[str, Any]) -> ValueError:
    sizes = whole_numbers(default)
    name = max(sizes, key=lambda name: "width" in name, default=f"my_{rule}")
    return ValueError(
        f"no field of {config} is known to be its {rule}; it has the whole numbers {sizes}. Say which is, for example "
        f"{typed({name: rule})}; the rules are {list(RULES)}."
    )


def _check_known(config: str, base_width: int, default: Mapping[str, Any], rules: Mapping[str, str | None]) -> None:
    """Checks that nothing that may follow the width keeps its default, for it would not grow."""
    sizes = whole_numbers(default)
    unknown = [name for name, size in sizes.items() if size == base_width and rules[name] is None]
    if unknown:
        raise ValueError(
            f"{unknown} of {config} may follow the width, whose default is {base_width}, but have no rule. It has the "
            f"whole numbers {sizes}. Give each a rule of {list(RULES)} or a value, for example "
            f"{typed(dict.fromkeys(unknown, 'width'))}."
        )


def whole_numbers(default: Mapping[str, Any]) -> dict[str, int]:
    """The fields that could be sizes."""
    return {name: value for name, value in default.items() if type(value) is int}


def _without_noise(default: Mapping[str, Any]) -> dict[str, float]:
    """Zero for every probability of dropout and amplitude of jitter."""
    return {
        name: type(value)(0)
        for name, value in default.items()
        if ("drop" in name or "jitter" in name) and type(value) in (int, float)
    }


def _is_token(name: str) -> bool:
    return name.endswith("_token_id")


def _without_tokens_beyond(vocab_size: int, default: Mapping[str, Any]) -> dict[str, None]:
    """None for every special token that is not in the vocabulary."""
    special = {name: value for name, value in default.items() if _is_token(name) and value is not None}
    return {
        name: None
        for name, value in special.items()
        if any(not 0 <= token < vocab_size for token in (value if isinstance(value, list) else [value]))
    }
