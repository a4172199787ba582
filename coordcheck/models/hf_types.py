"""Which configuration class of Hugging Face transformers a name stands for, and what its model learns.

Nothing is read from the hub. transformers is an optional dependency that takes a second to import, so the functions
that need it import it.
"""

import re
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# XLNet permutes tokens, and CPM-Ant attends to all of a text whose prompt is not marked as such.
_SEES_ITS_TARGETS = ("xlnet", "cpmant")


def kind_of_model(config: "PretrainedConfig") -> str:
    """What the model of a configuration learns.

    Returns:
        "seq2seq", "masked" or "causal". A type that transformers has as a masked and as a causal model, as BERT, is
        masked unless it is a decoder.

    Raises:
        ValueError: if transformers has no model for it that learns from tokens alone.
    """
    transformers = import_transformers()
    cls = type(config)
    if config.is_encoder_decoder:
        if cls not in transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
            raise refusal(cls, "transformers has no model for it that reads a text and writes a text")
        return "seq2seq"
    if config.model_type in _SEES_ITS_TARGETS:
        raise refusal(cls, "given token ids alone, its model sees the tokens that it is to predict")
    if cls in transformers.MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        return "masked"
    if cls not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        register = f"AutoModelForCausalLM.register({cls.__name__}, MyModel)"
        raise refusal(cls, f"transformers lists no language model for it; one of your own needs {register}")
    return "causal"


def config_class(config: str) -> "type[PretrainedConfig]":
    """The configuration class of a model type or of a dotted name.

    Raises:
        ValueError: if transformers is missing or there is no such class.
    """
    transformers = import_transformers()
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


def language_config(config: str) -> "PretrainedConfig":
    """The defaults of a configuration class, or of the language model in it where other models stand beside that.

    Raises:
        ValueError: if transformers is missing, there is no such class, or it has no defaults.
    """
    cls = config_class(config)
    try:
        default = cls()
    except Exception as error:  # of any configuration class, which may miss a file, a package or a value
        raise refusal(cls, f"it does not accept its own defaults, {in_line(error)}") from error
    if cls.sub_configs and not any(name in vars(default) for name in cls.sub_configs):
        raise refusal(cls, "it is put together from other configurations and has no sizes of its own")
    text: PretrainedConfig | None = getattr(default, "text_config", None)
    if text is not None:
        return text
    other = [name for name in cls.sub_configs if re.fullmatch("(vision|audio)_config|audio_encoder", name)]
    if other:
        raise refusal(cls, f"its model has parts that do not follow the width: {', '.join(other)}")
    return default


def import_transformers() -> Any:
    """The package transformers.

    Raises:
        ValueError: if it is missing.
    """
    try:
        return import_module("transformers")
    except ImportError as error:
        raise ValueError(
            f'model=hf needs the package transformers ({error}). For example pip install "coordcheck[hf]".'
        ) from error


def refusal(config: type, reason: str) -> ValueError:
    """The error of a configuration class that is not supported."""
    return ValueError(f"{config.__name__} is not supported: {reason}. For example model.config=llama.")


def in_line(error: Exception) -> str:
    """The type and text of an error in one line, without the stop at its end."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".: ")


def typed(overrides: Mapping[str, Any]) -> str:
    """Overrides as they can be typed on the command line.

    Example:
        >>> typed({"my_width": "width", "layers": ["a", None]})
        "'model.overrides={my_width: width, layers: [a, null]}'"
    """

    def plain(value: Any) -> str:
        if isinstance(value, list):
            return f"[{', '.join(map(plain, value))}]"
        return {None: "null", True: "true", False: "false"}.get(value, str(value)) if value != 1 else "1"

    return "'model.overrides={" + ", ".join(f"{name}: {plain(value)}" for name, value in overrides.items()) + "}'"
