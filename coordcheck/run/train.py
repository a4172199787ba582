"""One run: a model at one width and one seed, trained for a few steps on one batch while it is recorded."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from threading import Event
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from coordcheck.config.schema import Precision
from coordcheck.observe.recorder import Recorder
from coordcheck.run.loss import check_scalar, check_trainable
from coordcheck.run.theirs import theirs

RECOMPUTES = "recomputes"  # among the attrs of records: whether the backward pass computed activations again


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
        Records, see :meth:`coordcheck.observe.recorder.Recorder.records`.

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
                value = check_scalar(loss(model, batch))
            recorder.record_loss(value)
            if step < plan.steps - 1:
                with theirs("the backward pass"):
                    check_trainable(value).backward()  # type: ignore[no-untyped-call]
                with theirs(f"`optimizer` {type(optimizer).__name__}, in its step,"):
                    optimizer.step()
                optimizer.zero_grad(set_to_none=True)  # here, so that no gradient takes memory in the next forward pass
            recorder.step()
    records = recorder.records()
    if recorder.recomputes:
        records.attrs[RECOMPUTES] = True
    return records
