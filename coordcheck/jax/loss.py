"""The loss of a batch where a user gives none, in JAX."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from coordcheck.run.batches import batch_loss, misfit


def default_loss(model: Callable[..., Any], batch: Any) -> Any:
    """The loss that a model returns, or the mean cross entropy of (inputs, targets).

    Args:
        model: Called as ``model(**batch)`` for a dict, else ``model(inputs)``.
        batch: A dict, or (inputs, targets).

    Returns:
        ``output["loss"]`` or ``output.loss`` where there is one, else the mean cross entropy of the output, its
        ``logits`` or the first array of a tuple, shape (..., classes), with integer targets (...).

    Raises:
        ValueError: if there is neither.
    """
    advice = "give `loss`. For example loss=lambda model, batch: model(**batch).mean()."
    return batch_loss(model, batch, cross_entropy, lambda part: hasattr(part, "shape"), advice)


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
        raise misfit(logits, targets, "loss=lambda model, batch: ((model(batch[0]) - batch[1]) ** 2).mean()")
    logs = jax.nn.log_softmax(logits.reshape(-1, shape[-1]).astype(jnp.float32))
    return -jnp.take_along_axis(logs, targets.reshape(-1, 1), axis=-1).mean()
