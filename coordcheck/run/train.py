"""One run: a model at one width and one seed, trained for a few steps on one batch while it is recorded."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from threading import Event
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from coordcheck.config.schema import Precision
from coordcheck.observe.recorder import Recorder
from coordcheck.records.schema import LOSS, ROOT
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
        ValueError: if nothing but the loss was recorded, or nothing that one of ``plan.modules`` selects ran.
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
    _refuse_nothing(records, recorder, plan)
    if recorder.recomputes:
        records.attrs[RECOMPUTES] = True
    return records


def _refuse_nothing(records: pd.DataFrame, recorder: Recorder, plan: RunPlan) -> None:
    """Makes sure that there is something to judge, of each pattern that was asked for."""
    silent = recorder.never_ran()
    for pattern in plan.modules or []:
        selected = [name or ROOT for name in recorder.names if fnmatchcase(name or ROOT, pattern)]
        if {*selected} <= {*silent}:
            inside = any(name.startswith(f"{selected[0]}.") for name, _ in recorder.model.named_modules())
            raise ValueError(
                f"`modules` selects modules that the forward pass calls, which a ModuleList is not; got {pattern!r}, "
                f"of which {', '.join(selected)} never ran. "
                f"For example modules=['{f'{selected[0]}.*' if inside else '*'}']."
            )
    if not len(records) or records["role"].isin([LOSS]).all():
        raise ValueError(
            f"nothing was recorded but the loss: `modules` and `kinds` select "
            f"{', '.join(name or ROOT for name in recorder.names)} and {', '.join(plan.kinds)}, of which there is "
            f"nothing. For example modules=['*'], kinds=['activation'] and steps=4."
        )
