"""The loss of a batch as Hugging Face and plain torch models give it."""

import math
from typing import Any, cast

from torch import Tensor, nn

from coordcheck.run.batches import batch_loss, misfit


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
    advice = (
        "give the batch labels, or `loss`. For example batch={'input_ids': ids, 'labels': ids} or "
        "loss=lambda model, batch: model(**batch).logits.mean()."
    )
    return cast(Tensor, batch_loss(model, batch, _cross_entropy, lambda part: isinstance(part, Tensor), advice))


def _cross_entropy(logits: Any, targets: Any) -> Tensor:
    shape = tuple(getattr(logits, "shape", ()))
    integers = isinstance(targets, Tensor) and not (targets.is_floating_point() or targets.is_complex())
    if len(shape) < 2 or not integers or targets.numel() != math.prod(shape[:-1]):
        example = "loss=lambda model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1])"
        raise misfit(logits, targets, example)
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
