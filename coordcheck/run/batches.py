"""The loss of a batch where a user gives none, whatever library the model is of. Without torch."""

from collections.abc import Callable, Mapping
from typing import Any


def batch_loss(
    model: Callable[..., Any],
    batch: Any,
    cross_entropy: Callable[[Any, Any], Any],
    is_array: Callable[[Any], bool],
    advice: str,
) -> Any:
    """The loss that a model returns, or the cross entropy of what it returns.

    Args:
        model: Called as ``model(**batch)`` for a dict, else ``model(inputs)``.
        batch: A dict, or (inputs, targets).
        cross_entropy: Of logits (..., classes) and targets (...).
        is_array: Whether a part of a tuple may be the logits.
        advice: What to give where a dict batch gives no loss.

    Returns:
        ``output.loss`` (or ``output["loss"]``, or the one number in a tuple) where there is one, else the cross
        entropy of the output, or its ``logits``, or the first array of a tuple.

    Raises:
        ValueError: if the batch is neither, or a dict batch gives no loss.
    """
    if isinstance(batch, Mapping):
        loss = _loss_in(model(**batch), is_array)
        if loss is None:
            raise ValueError(f"the model's output has no loss for a dict batch; {advice}")
        return loss
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        raise ValueError(
            f"`batch` is (inputs, targets), a dict for model(**batch), or a function of the seed that returns "
            f"either; got {type(batch).__name__}. For example batch=(tokens[:, :-1], tokens[:, 1:])."
        )
    inputs, targets = batch
    output = model(inputs)
    loss = _loss_in(output, is_array)
    return cross_entropy(_logits(output, is_array), targets) if loss is None else loss


def misfit(logits: Any, targets: Any, example: str) -> ValueError:
    """The error of targets that are not those of a cross entropy of these logits.

    Args:
        logits: What the model returned.
        targets: Of the batch.
        example: Of another loss.
    """
    is_typed = hasattr(targets, "dtype")
    got = f"{targets.dtype} of shape {tuple(targets.shape)}" if is_typed else type(targets).__name__
    return ValueError(
        f"the default loss is cross entropy of an output (..., classes) with integer targets (...); got an output "
        f"of {tuple(getattr(logits, 'shape', ())) or type(logits).__name__} and targets {got}. A model that takes "
        f"its targets gets a dict, for example batch={{'idx': tokens[:, :-1], 'targets': tokens[:, 1:]}}; another loss "
        f"is given, for example {example}."
    )


def _part(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _loss_in(output: Any, is_array: Callable[[Any], bool]) -> Any:
    """The loss that a model returns itself, by name or, as nanoGPT's does, in a tuple with its logits."""
    loss = _part(output, "loss")
    if loss is None and isinstance(output, list | tuple):
        loss = next((part for part in output if is_array(part) and part.ndim == 0), None)
    return loss


def _logits(output: Any, is_array: Callable[[Any], bool]) -> Any:
    logits = _part(output, "logits")
    if logits is None and isinstance(output, list | tuple):
        logits = next((part for part in output if is_array(part)), None)
    return output if logits is None else logits
