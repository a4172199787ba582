"""The loss of a batch where a user gives none."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp


def default_loss(model: Callable[..., Any], batch: Any) -> Any:
    """The mean cross entropy of (inputs, targets), or the loss that a model returns.

    Args:
        model: Called as ``model(**batch)`` for a dict, else ``model(inputs)``.
        batch: A dict, or (inputs, targets).

    Returns:
        ``output["loss"]`` or ``output.loss`` where there is one, else the mean cross entropy of the output, its
        ``logits`` or the first array of a tuple, shape (..., classes), with integer targets (...).

    Raises:
        ValueError: if there is neither.
    """
    if isinstance(batch, Mapping):
        loss = _part(model(**batch), "loss")
        if loss is None:
            raise ValueError(
                "the model's output has no loss for a dict batch; give `loss`. For example "
                "loss=lambda model, batch: model(**batch).mean()."
            )
        return loss
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        raise ValueError(
            f"`batch` is (inputs, targets), a dict for model(**batch), or a function of the seed that returns either; "
            f"got {type(batch).__name__}. For example batch=(tokens[:, :-1], tokens[:, 1:])."
        )
    inputs, targets = batch
    output = model(inputs)
    loss = _part(output, "loss")
    return cross_entropy(_logits(output), targets) if loss is None else loss


def cross_entropy(logits: Any, targets: Any) -> Any:
    """The mean over all positions.

    Args:
        logits: (..., classes).
        targets: Integers (...).

    Raises:
        ValueError: if they do not fit.
    """
    shape = tuple(getattr(logits, "shape", ()))
    integers = hasattr(targets, "dtype") and jnp.issubdtype(targets.dtype, jnp.integer)
    if len(shape) < 2 or not integers or targets.size != math.prod(shape[:-1]):
        got = (
            f"{targets.dtype} of shape {tuple(targets.shape)}" if hasattr(targets, "dtype") else type(targets).__name__
        )
        raise ValueError(
            f"the default loss is cross entropy of an output (..., classes) with integer targets (...); got an output "
            f"of {shape or type(logits).__name__} and targets {got}. For another loss, for example "
            f"loss=lambda model, batch: ((model(batch[0]) - batch[1]) ** 2).mean()."
        )
    logs = jax.nn.log_softmax(logits.reshape(-1, shape[-1]).astype(jnp.float32))
    return -jnp.take_along_axis(logs, targets.reshape(-1, 1), axis=-1).mean()


def _part(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _logits(output: Any) -> Any:
    logits = _part(output, "logits")
    if logits is None and isinstance(output, list | tuple):
        logits = next((part for part in output if hasattr(part, "shape")), None)
    return output if logits is None else logits
