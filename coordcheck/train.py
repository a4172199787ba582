"""One run: a model at one width and one seed, trained for a few steps on one batch while it is recorded."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from threading import Event
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from coordcheck.config import Precision
from coordcheck.record import Recorder


class Cancelled(Exception):
    """The run was asked to stop."""


@dataclass(frozen=True)
class RunPlan:
    """What all runs of a check have in common.

    Attributes:
        steps: Forward passes recorded; the last needs no backward pass and no update.
        kinds: What is recorded.
        modules: Patterns of module names to record, None for all.
        device: Where to train.
        precision: Of the forward and backward pass.
    """

    steps: int
    kinds: Sequence[str]
    modules: Sequence[str] | None
    device: torch.device
    precision: Precision


def run(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Any,
    loss: Callable[[nn.Module, Any], Tensor],
    plan: RunPlan,
    *,
    width: int,
    seed: int,
    roles: Mapping[str, str],
    stop: Event | None = None,
) -> pd.DataFrame:
    """Trains and records.

    Args:
        model: On ``plan.device``.
        optimizer: Of the model's parameters.
        batch: What `loss` takes, on the same device; the same at every step.
        loss: From model and batch to a scalar.
        plan: Steps and kinds.
        width: For the records.
        seed: For the records.
        roles: Role of each parameter, by name.
        stop: Ends the run before its next step when set.

    Returns:
        Records, see :meth:`coordcheck.record.Recorder.records`.

    Raises:
        Cancelled: if `stop` was set.
    """
    model.train()
    optimizer.zero_grad(set_to_none=True)
    recorder = Recorder(model, width=width, seed=seed, kinds=plan.kinds, modules=plan.modules, roles=roles)
    autocast = torch.autocast(plan.device.type, torch.bfloat16) if plan.precision == Precision.bf16 else nullcontext()
    with recorder:
        for step in range(plan.steps):
            if stop is not None and stop.is_set():
                raise Cancelled
            with autocast:
                value = _scalar(loss(model, batch))
            recorder.record_loss(value)
            if step < plan.steps - 1:
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)  # here, so that no gradient takes memory in the next forward pass
            recorder.step()
    return recorder.records()


def default_loss(model: nn.Module, batch: Any) -> Tensor:
    """The loss of a batch as Hugging Face and plain torch models give it.

    Args:
        model: Called as ``model(**batch)`` for a dict, else ``model(inputs)``.
        batch: A dict, or (inputs, targets).

    Returns:
        ``output.loss`` (or ``output["loss"]``) where there is one, else the mean cross entropy of the output, or its
        ``logits``, or the first tensor of a tuple, shape (..., classes), with integer targets (...).

    Raises:
        ValueError: if the batch is neither, a dict batch gives no loss, or targets do not fit the output.
    """
    loss: Tensor | None
    if isinstance(batch, Mapping):
        loss = _part(model(**batch), "loss")
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
    loss = _part(output, "loss")
    return _cross_entropy(_logits(output), targets) if loss is None else loss


def _part(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


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
            f"of {shape or type(logits).__name__} and targets {got}. For another loss, for example "
            f"loss=lambda model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1])."
        )
    return nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten().long())


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"a loss is a tensor with one entry; got {got}. For example "
            f"loss=lambda model, batch: (model(batch[0]) - batch[1]).square().mean()."
        )
    return loss


def to_device(batch: Any, device: torch.device) -> Any:
    """`batch` with every tensor in it moved to `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        moved = [to_device(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch


def pick_device(name: str) -> torch.device:
    """The device that `name` asks for; "auto" is a GPU if there is one.

    Raises:
        ValueError: if it is not there, or cannot train.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device, requires_grad=True).sum().backward()  # type: ignore[no-untyped-call]
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"`device` must be one that this machine and this torch can train on; got {name!r} ({reason}). "
            f"For example device=auto or device=cpu."
        ) from error
    return device
