"""What Hydra and OmegaConf object to, in one line: the key, the rule of its type, what was given, a working example.

Both raise a class of error for each thing that can go wrong and spread what they know over chained exceptions; their
own words take many lines and never say what would have been right.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from coordcheck.config.schema import MODELS, OPEN, CheckConfig
from coordcheck.records.names import LONGEST_VALUE, one_line, shown

KNOWN = (HydraException, OmegaConfBaseException)  # what `sentence` can say
SINGULAR = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
PLURAL = {int: "whole numbers", float: "numbers", str: "texts"}
Example = Mapping[str, Any]  # by dotted key, values that are right


def read_overrides(texts: Sequence[str], sweep: bool = False) -> list[Override]:
    """What overrides mean, by Hydra's grammar.

    Args:
        texts: Each ``key=value``.
        sweep: Whether several values for a key are a sweep, as with ``-m``.

    Raises:
        ValueError: if one is not of that form, or gives several values where there is no sweep.
    """
    parser = OverridesParser.create()
    found = []
    for text in texts:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            raise ValueError(_unreadable(text)) from error
        if not re.fullmatch(r"[\w@/$.:-]*\w[\w@/$.:-]*", override.key_or_group):
            raise ValueError(_unreadable(text))
        if override.is_sweep_override() and not sweep:
            raise ValueError(_several(text))
        found.append(override)
    return found


def _several(text: str) -> str:
    return (
        f"`{one_line(text)}` gives several values. To check each of them, for example coordcheck -m {one_line(text)}; "
        f"for a list, for example widths=[64,128,256]."
    )


def _unreadable(text: str) -> str:
    return (
        f"`{one_line(text)[:LONGEST_VALUE]}` cannot be read as key=value; brackets and quotes must be closed, and what "
        f"has other signs quoted. For example widths=[64,128,256] or 'name=\"my model\"'."
    )


def sentence(error: BaseException, overrides: Sequence[Override], usual: Example, groups: Mapping[str, Any]) -> str:
    """What an error of Hydra or OmegaConf says, in our words.

    Args:
        error: Raised while the overrides were merged.
        overrides: That were given.
        usual: The values of a check that nobody changed, by dotted key.
        groups: The options of each group.
    """
    if several := re.match(r"Ambiguous value for argument '(.*)'", str(error)):
        return _several(several[1])
    chain = [*_chain(error)]
    for link in chain:
        if isinstance(link, MissingConfigException) and link.missing_cfg_file is not None:
            return _no_option(link, overrides, groups)
    for link in chain:
        key = getattr(link, "full_key", None) or ""
        if isinstance(link, ValidationError) and key:
            return wrong_type(key.split("[")[0], overrides, usual)
        if isinstance(link, ConfigKeyError) or "not in '" in str(link) or "is not in struct" in str(link):
            key = next((o.key_or_group for o in overrides if o.input_line and o.input_line in str(error)), key)
            return unknown_key(_deeper(key, getattr(link, "full_key", None) or ""), usual, groups)
    said = str(error).split("\n")[0].rstrip(".")
    key = next((k for k in (getattr(link, "full_key", None) for link in chain) if k), None)
    culprit = next((o for o in overrides if o.input_line and o.input_line in str(error)), None)
    if key is not None and key.startswith("hydra."):
        # where Hydra stumbles over what an override took away, or over a name that it could not resolve
        key = next((o.key_or_group for o in overrides if o.is_delete() or "${" in (o.input_line or "")), key)
    key = key or (culprit.key_or_group if culprit else "")
    if not key:
        key = next((o.key_or_group for o in overrides if re.search(rf"\b{re.escape(o.key_or_group)}\b", said)), "")
    if said.startswith("Error merging override") and type_of(key, str(usual.get("model.name"))) is not None:
        return wrong_type(key, overrides, usual)
    if "does not exist" in said:
        return unknown_key(key, usual, groups)
    return f"`{key}`: {one_line(said)}. {_example(key, usual, groups)}" if key else f"{one_line(said)}. {HELP}"


HELP = "For example coordcheck widths=[64,128,256] seeds=3; coordcheck --help lists all keys."


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _deeper(one: str, other: str) -> str:
    """The longer of two keys, if it lies below the other."""
    return other if other.startswith(f"{one}.") else one


def unknown_key(key: str, usual: Example, groups: Iterable[str] = ()) -> str:
    """The sentence for a key that there is not, with the nearest that there is."""
    known = list(dict.fromkeys([*usual, *groups]))
    key = key.lstrip("+~")
    last = key.rpartition(".")[2]
    near = [k for k in known if k.rpartition(".")[2] == last][:2]
    near = near or get_close_matches(key, known, 2, 0.75)
    inside = [k for k in known if "." in key and k.rpartition(".")[0] == key.rpartition(".")[0]]
    near = near or get_close_matches(key, inside, 2, 0.3) or inside[:12]
    near = near or [k for k in known if k.rpartition(".")[2] in get_close_matches(last, _last(known), 2, 0.6)][:3]
    hint = f"did you mean {' or '.join(f'`{k}`' for k in near)}?" if near else "all keys stand in coordcheck --help."
    return f"`{key}` is no key of the configuration; {hint} {_example(near[0], usual, {}) if near else HELP}"


def _last(keys: Iterable[str]) -> list[str]:
    return [key.rpartition(".")[2] for key in keys]


def _no_option(error: MissingConfigException, overrides: Sequence[Override], groups: Mapping[str, Any]) -> str:
    missing = str(error.missing_cfg_file)
    group, _, option = missing.rpartition("/")
    group = next((o.key_or_group for o in overrides if missing == f"{o.key_or_group}/{o.value()}"), group)
    option = missing.removeprefix(f"{group}/")
    options = [o for o in groups.get(group) or error.options or [] if not o.endswith("_schema")]
    if not options:
        return f"{one_line(str(error).splitlines()[0])}. {HELP}"
    return not_an_option(group, option, options)


def not_an_option(key: str, value: object, options: Sequence[str]) -> str:
    """The sentence for a value that is none of the options."""
    near = get_close_matches(str(value).lower(), options, 1, 0.4) or options[:1]
    return f"`{key}` is one of {list(options)}; got {shown(value)}. For example {key}={near[0]}."


def wrong_type(key: str, overrides: Sequence[Override], usual: Example, value: object = None) -> str:
    """The sentence for a value of a wrong type.

    Args:
        key: Dotted.
        overrides: Among which the value is looked for; the last one counts.
        usual: For the example.
        value: That was given where no override says it.
    """
    kind = type_of(key, str(usual.get("model.name", "")))
    given = next((o for o in reversed(overrides) if o.key_or_group == key), None)
    got = _as_written(given) if given is not None else _quoted(value)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        text = got.strip("'")
        return not_an_option(key, text, [option.value for option in kind]).replace(shown(text), got)
    return f"`{key}` is {in_words(kind)}; got {got}. {_example(key, usual, {})}"


def _as_written(override: Override) -> str:
    """A value as on the command line, texts in quotes."""
    value = override.value()
    simple = value is None or isinstance(value, str | int | float)
    return _quoted(value) if simple else one_line(override.input_line).partition("=")[2]


def _quoted(value: object) -> str:
    """A value in a message, as YAML has it."""
    return shown(value) if isinstance(value, str) or not (value is None or isinstance(value, bool)) else _written(value)


def type_of(key: str, model: str) -> Any:
    """The type that the schema gives a key; None for one that it leaves open."""
    kind: Any = CheckConfig
    for i, part in enumerate(key.split(".")):
        if i == 1 and kind is Any:
            kind = MODELS.get(model)
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif is_dataclass(kind) and part in {field.name for field in fields(kind)}:
            assert isinstance(kind, type)
            kind = get_type_hints(kind)[part]
        else:
            return None
    return kind


def in_words(kind: Any) -> str:
    """A type in words.

    >>> in_words(list[int] | None)
    'a list of whole numbers or null'
    """
    if type(None) in get_args(kind):
        (rest,) = (part for part in get_args(kind) if part is not type(None))
        return f"{in_words(rest)} or null"
    if get_origin(kind) is list:
        return f"a list of {PLURAL[get_args(kind)[0]]}"
    return SINGULAR.get(kind, "a group of keys")


def _example(key: str, usual: Example, groups: Mapping[str, Any]) -> str:
    if key == "executor.args":
        return "For example coordcheck executor=submitit executor.args.slurm_partition=gpu."
    if key.partition(".")[2] in OPEN.values():
        return f"For example {key}.depth=4."
    value = EXAMPLES.get(key, usual.get(key))
    below = next((k for k in usual if k.startswith(f"{key}.")), None)
    if value is None and below is not None:
        key, value = below, usual[below]
    if value is None and groups.get(key):
        value = next(iter(groups[key]))
    return HELP if value is None else f"For example {key}={_written(value)}."


# of keys whose usual value is null, or no example of what may be given
EXAMPLES = {
    "workers": 2,
    "modules": ["blocks.0.*", "lm_head"],
    "widths": [64, 128, 256],
    "plots": "plots",
    "data.path": "book.txt",
    "readout.std": 0.1,
    "name": "mine",
    "model.heads": 4,
    "model.head_size": 32,
    "model.build": "my_package.my_module.build",
    "model.optimizer": "my_package.my_module.optimizer",
    "model.batch": "my_package.my_module.batch",
    "model.loss": "my_package.my_module.loss",
    "model.inputs": ["input_ids", "labels"],
}


def _written(value: object) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, list | tuple):
        return f"[{','.join(_written(item) for item in value)}]"
    return {"True": "true", "False": "false", "None": "null"}.get(repr(value), str(value))
