"""The loss of a batch as Hugging Face and plain torch models give it."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def default_loss(model: nn.Module, batch: Any) -> Tensor:
    """The loss of a batch as Hugging Face and plain torch models give it.

    Args:
        model: Called as ``model(**batch)`` for a dict, else ``model(inputs)``.
        batch: A dict, or (inputs, targets).

    Returns:
        ``output.loss`` (or ``output["loss"]``, or the one number in a tuple) where there is one, else the mean cross
        entropy of the output, or its ``logits``, or the first tensor of a tuple, shape (..., classes), with integer
        targets (...).

    Raises:
        ValueError: if the batch is neither, a dict batch gives no loss, or targets do not fit the output.
    """
    loss: Tensor | None
    if isinstance(batch, Mapping):
        loss = _loss_in(model(**batch))
        if loss is None:
            raise ValueError(
                "the model's output has no loss for a dict batch; give the batch labels, or `loss`. For example "
                "batch={'input_ids': ids, 'labels': ids} or loss=lambda model, batch: model(**batch).logits.mean()."
            )
        return loss
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        raise ValueError(
            f"`batch` is (inputs, targets), a dict for model(**batch), or a function of the seed that returns "
            f"either; got {type(batch).__name__}. For example batch=(tokens[:, :-1], tokens[:, 1:])."
        )
    inputs, targets = batch
    output = model(inputs)
    loss = _loss_in(output)
    return _cross_entropy(_logits(output), targets) if loss is None else loss


def _part(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _loss_in(output: Any) -> Tensor | None:
    """The loss that a model returns itself, by name or, as nanoGPT's does, in a tuple with its logits."""
    loss: Tensor | None = _part(output, "loss")
    if loss is None and isinstance(output, list | tuple):
        loss = next((part for part in output if isinstance(part, Tensor) and part.ndim == 0), None)
    return loss


def _logits(output: Any) -> Any:
    logits = _part(output, "logits")
    if logits is None and isinstance(output, list | tuple):
        logits = next((part for part in output if isinstance(part, Tensor)), None)
    return output if logits is None else logits


def _cross_entropy(logits: Any, targets: Any) -> Tensor:
    shape = tuple(getattr(logits, "shape", ()))
    integers = isinstance(targets, Tensor) and not (targets.is_floating_point() or targets.is_complex())
    if len(shape) < 2 or not integers or targets.numel() != math.prod(shape[:-1]):
        got = (
            f"{targets.dtype} of shape {tuple(targets.shape)}"
            if isinstance(targets, Tensor)
            else type(targets).__name__
        )
        raise ValueError(
            f"the default loss is cross entropy of an output (..., classes) with integer targets (...); got an output "
            f"of {shape or type(logits).__name__} and targets {got}. A model that takes its "
            f"targets gets a dict, for example batch={{'idx': tokens[:, :-1], 'targets': tokens[:, 1:]}}; another loss "
            f"is given, for example loss=lambda model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1])."
        )
    if not targets.numel():
        raise ValueError(
            "`batch` has no entries: its targets are empty. For example batch=(tokens[:, :-1], tokens[:, 1:])."
        )
    return nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten().long())


def check_scalar(loss: Any) -> Tensor:
    """The loss, if it is one real number.

    Raises:
        ValueError: if it is none.
    """
    example = "For example loss=lambda model, batch: (model(batch[0]) - batch[1]).square().mean()."
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"a loss is a tensor with one entry; got {got}. {example}")
    if not loss.is_floating_point():
        raise ValueError(f"a loss is a real number with a fraction; got {loss.dtype}. {example}")
    return loss


def check_trainable(loss: Tensor) -> Tensor:
    """The loss, if a gradient can be taken of it.

    Raises:
        ValueError: if it does not depend on anything that is trained.
    """
    if loss.grad_fn is None:
        raise ValueError(
            "the loss depends on no parameter that is trained, so there is no gradient; it was detached, or made of "
            "numbers. For example loss=lambda model, batch: (model(batch[0]) - batch[1]).square().mean()."
        )
    return loss
