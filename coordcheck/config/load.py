"""From Hydra's merged configuration, or from plain values, to the dataclasses of the schema."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from coordcheck.config.errors import KNOWN, not_an_option, read_overrides, sentence, unknown_key, wrong_type
from coordcheck.config.rules import check_gate, validate
from coordcheck.config.schema import ENGINES, MODELS, OPEN, Axis, CheckConfig, GateConfig, ModelConfig, OptimizerConfig
from coordcheck.records.names import one_line, printable, shown

LONGEST_NAME = 200  # bytes; file systems take 255, and a suffix is still to come


def register_schema() -> None:
    """Tells Hydra the schema, under the names that ``configs/`` lists, and the functions that make names."""
    store = ConfigStore.instance()
    store.store(name="check_schema", node=CheckConfig)
    for group, option, key in [
        *(("model", model, key) for model, key in OPEN.items()),
        *(("executor", engine, "args") for engine in ENGINES),
    ]:
        # any key below it can be set on the command line, without a plus; elsewhere a misspelt one fails
        node = OmegaConf.create({key: {}})
        OmegaConf.set_struct(node[key], False)
        store.store(group=group, name=f"{option}_schema", node=node)
    OmegaConf.register_new_resolver("file_name", file_name, replace=True)
    OmegaConf.register_new_resolver("cell_name", cell_name, replace=True)


def cell_name(model: DictConfig, *others: str) -> str:
    """What names a check: its model, with what it is built from, and the groups whose options it does not own.

    >>> cell_name(OmegaConf.create({"name": "own", "build": "mine.gpt.build", "args": {"depth": 4}}), "own", "adam")
    'mine.gpt.build-depth=4-adam'
    """
    known = {key: model[key] for key in ("build", "config") if key in model and not OmegaConf.is_missing(model, key)}
    names = [str(model.name), *map(str, known.values())] if "build" not in known else [str(known["build"])]
    given = model.get(OPEN.get(model.name, ""), {})
    arguments = [f"{key}={value}" for key, value in given.items()] if OmegaConf.is_dict(given) else []
    said = (str(other) for other in others if str(other) not in ("own", Axis.width))
    return "-".join([*names, *arguments, *said]).replace("/", "_")


def file_name(text: str) -> str:
    """`text` as a name in a directory: without separators and what does not print, so short that file systems take it.

    What was changed is kept apart by a hash.

    >>> file_name("readout=zero")
    'readout=zero'
    >>> file_name("../../x")
    '.._.._x-9cdf6a50'
    >>> len(file_name("x" * 999))
    200
    """
    name = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in text)
    if name == text and text not in ("", ".", "..") and len(text.encode()) <= LONGEST_NAME:
        return text
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    return name.encode()[: LONGEST_NAME - len(digest) - 1].decode(errors="ignore") + f"-{digest}"


def load(overrides: Sequence[str] = (), name: str = "check") -> CheckConfig:
    """The configuration that ``coordcheck OVERRIDES`` runs.

    Args:
        overrides: Hydra overrides, for example ``["embedding=tied", "widths=[64,128,256]"]``.
        name: Of the file in ``configs/`` that is overridden: "check", or "transfer".

    Raises:
        ValueError: if an override names an unknown key or option, or breaks a rule of :func:`validate`.

    >>> load(["readout=constant"]).readout.name.value
    'constant'
    """
    register_schema()
    with in_one_line(overrides):
        with initialize_config_module("coordcheck.configs", version_base="1.3"):
            merged = compose(name, overrides=list(overrides))
        return from_hydra(merged)


@contextmanager
def in_one_line(overrides: Sequence[str], sweep: bool = False) -> Iterator[None]:
    """Says in our form what Hydra and OmegaConf object to; what no override can mean is refused before they see it.

    Args:
        overrides: That are merged within.
        sweep: Whether several values for a key are a sweep.

    Raises:
        ValueError: one line with the key, the rule and an example.
    """
    read = read_overrides(overrides, sweep)
    for override in read:
        _check_group(override)
    try:
        yield
    except KNOWN as error:
        model = next((o.value() for o in reversed(read) if o.key_or_group == "model"), "gpt")
        raise ValueError(sentence(error, read, usual_values(str(model)), _options())) from error


def _check_group(override: Override) -> None:
    """Objects to what Hydra takes no group of its configuration to be: a number, null, several options."""
    key, options = override.key_or_group, _options().get(override.key_or_group)
    if options is None or override.is_delete() or override.is_sweep_override():
        return
    value = override.value()
    named = isinstance(value, str) and value.strip() and not value.endswith("_schema")
    if not (named or isinstance(value, dict) or (value is None and key == "experiment")):
        raise ValueError(not_an_option(key, value, options))


@cache
def _options() -> dict[str, list[str]]:
    """The options of each group of ``configs/``."""
    home = files("coordcheck.configs")
    groups = {group.name: [*group.iterdir()] for group in home.iterdir() if group.is_dir() and group.name != "hydra"}
    named = {
        group: sorted(o.name[:-5] for o in options if o.name.endswith(".yaml")) for group, options in groups.items()
    }
    return {group: options for group, options in named.items() if options}


@cache
def usual_values(model: str) -> dict[str, Any]:
    """The values of a check of a model that nobody changed, by dotted key."""
    check = _group("check.yaml")
    hydra = {key: check["hydra"][key] for key in ("run", "sweep")}
    defaults = {key: option for entry in check["defaults"] if isinstance(entry, dict) for key, option in entry.items()}
    values = {key: value for key, value in check.items() if key not in ("defaults", "hydra")}
    for group, option in defaults.items():
        if group != "model" and option is not None and group in _options():
            values[group] = _group(f"{group}/{option}.yaml")
    values["model"] = default_model(model if model in MODELS else "gpt")
    opened: dict[str, Any] = {f"model.{OPEN[model]}": {}} if model in OPEN else {}
    return flatten({**values, "hydra": hydra}) | opened


def from_hydra(merged: DictConfig) -> CheckConfig:
    """Turns Hydra's merged configuration into the dataclasses and checks their values.

    Raises:
        ValueError: see :func:`validate`.
    """
    keys = {field.name for field in dataclasses.fields(CheckConfig)}
    if added := sorted(str(key) for key in merged if key not in keys):
        raise ValueError(unknown_key(added[0], usual_values("gpt")))
    if missing := sorted(key for key in keys if key not in merged or OmegaConf.is_missing(merged, key)):
        raise ValueError(wrong_type(missing[0], [], usual_values("gpt")))
    if not OmegaConf.is_dict(merged.model):
        raise ValueError(not_an_option("model", merged.model, _options()["model"]))
    if OmegaConf.is_missing(merged.model, "build"):
        merged.model.build = ""  # which the rules object to in our words
    config = OmegaConf.to_object(merged)
    assert isinstance(config, CheckConfig)
    config.model = model_from(config.model)
    validate(config)
    return config


def model_from(values: Mapping[str, Any]) -> ModelConfig:
    """A model from plain values, of the class that belongs to its name.

    Raises:
        ValueError: if the name is unknown.
        OmegaConfBaseException: if a key is unknown or missing, or a value has the wrong type.
    """
    if values.get("name") not in MODELS:
        name = values.get("name")
        raise ValueError(f"`model.name` is one of {list(MODELS)}; got {shown(name)}. For example model=gpt.")
    schema = OmegaConf.create({"model": OmegaConf.structured(MODELS[values["name"]])})
    model = OmegaConf.to_object(OmegaConf.merge(schema, {"model": values}).model)
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


def default_optimizer_config() -> OptimizerConfig:
    """The optimizer of ``configs/optimizer/adam.yaml``."""
    values = OmegaConf.merge(OmegaConf.structured(OptimizerConfig), _group("optimizer/adam.yaml"))
    config = OmegaConf.to_object(values)
    assert isinstance(config, OptimizerConfig)
    return config


def default_model(name: str) -> dict[str, Any]:
    """The values of ``configs/model/NAME.yaml``."""
    values: dict[str, Any] = _group(f"model/{name}.yaml")
    values.pop("defaults", None)
    return values


def _group(path: str) -> Any:
    text = files("coordcheck.configs").joinpath(path).read_text(encoding="utf-8")
    return OmegaConf.to_container(OmegaConf.create(text))


def gate_from(values: Any) -> GateConfig:
    """A gate from plain values, for example those that a check stored; they are data, so nothing in them is resolved.

    Raises:
        ValueError: if a key is unknown or a value has the wrong type or breaks a rule.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"`gate` has named values; got {printable(repr(values), 80)}. For example {{expect: mup}}.")
    lines = (f"{name}: {value}" for name, value in flatten(values).items())
    if found := next((line for line in lines if "${" in line), ""):
        raise ValueError(
            f"`gate` holds plain values, which nothing is put in place of; got {printable(found, 80)}. For example "
            f"expect: mup."
        )
    try:
        unsaid: dict[str, Any] = {"decay": None, "accept": []}  # by a check that was stored before there were such keys
        gate = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(GateConfig), unsaid, values))
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise ValueError(
            f"`gate` does not fit its schema: {printable(one_line(error), 300)}. For example the values of "
            f"configs/gate/default.yaml."
        ) from error
    assert isinstance(gate, GateConfig)
    for side, table in (("explodes", gate.tolerance.explodes), ("vanishes", gate.tolerance.vanishes)):
        if wrong := [kind for kind, value in table.items() if not isinstance(value, int | float)]:
            raise ValueError(
                f"`gate.tolerance.{side}` has numbers; got others for {printable(wrong, 80)}. For example "
                f"gate.tolerance.{side}.delta=0.2."
            )
    check_gate(gate)
    return gate
