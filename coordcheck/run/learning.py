"""Runs that learn: many steps, each on a batch of its own, of which only the loss is kept.

How well a model learns at a learning rate is all that a search for the best one asks. Nothing is recorded of its
layers, so a step costs what training costs.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from coordcheck.config.schema import Precision
from coordcheck.records.schema import LOSS, LOSS_MODULE
from coordcheck.run.cell import Cell
from coordcheck.run.estimate import dry_run, memory_of_run, seconds_by_width
from coordcheck.run.loss import check_scalar, check_trainable
from coordcheck.run.one import Trainer
from coordcheck.run.queue import BUILDING, RunQueue
from coordcheck.run.theirs import theirs
from coordcheck.run.train import Cancelled, RunPlan
from coordcheck.run.wrapped import Wrapped


class AtRate(Wrapped):
    """A cell with every learning rate multiplied by one number.

    Args:
        cell: Whose learning rates.
        factor: By which they are multiplied, at every width.
    """

    def __init__(self, cell: Cell, factor: float):
        super().__init__(cell, {"rate": factor})
        self.factor = factor

    def optimizer(self, model: nn.Module, width: int) -> torch.optim.Optimizer:
        """The cell's optimizer with its learning rates multiplied."""
        optimizer = self.cell.optimizer(model, width)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * self.factor
        return optimizer


@dataclass
class LearningQueue(RunQueue):
    """The runs of a cell that learn, ``plan.steps`` updates each.

    A seed is of the weights. Batches are those of ``batch_seed`` at each step, the same for all runs.
    """

    @property
    def trainer(self) -> Trainer:
        """Training on a batch of its own at each step."""
        return self.train

    def train(self, model: nn.Module, optimizer: torch.optim.Optimizer, width: int, seed: int) -> pd.DataFrame:
        """The losses of a run whose model is built."""
        first = (self.batch_seed or 0) * self.plan.steps

        def batch(step: int) -> Any:
            with BUILDING:
                return self.cell.batch(first + step, self.plan.device)

        return losses(model, optimizer, batch, self.cell.loss, self.plan, width=width, seed=seed, stop=self._stop)


@dataclass
class Rehearsal(LearningQueue):
    """A few steps at narrow widths, which tell what many runs of all steps will take.

    Attributes:
        whole: Steps of a run that is to come.
        to_come: How many are, by width.
    """

    whole: int = 1
    to_come: Mapping[int, int] = field(default_factory=dict)

    def measure(self) -> dict[int, float]:
        """Seconds of a whole run at two narrow widths."""
        return {width: seconds * self.whole / self.plan.steps for width, seconds in super().measure().items()}

    def estimate(self, measured: Mapping[int, float]) -> tuple[list[float], int]:
        """Seconds of each run that is to come, and the bytes that the widest needs."""
        dry = {width: dry_run(self.cell, width, self.batch_seed or 0) for width in {*measured, *self.to_come}}
        seconds = seconds_by_width(dry, measured, self.whole, self.plan.device)
        expected = [seconds[width] for width, count in self.to_come.items() for _ in range(count)]
        return expected, memory_of_run(dry[max(dry)], self._state)


def losses(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Callable[[int], Any],
    loss: Callable[[nn.Module, Any], Tensor],
    plan: RunPlan,
    *,
    width: int,
    seed: int,
    stop: Event | None = None,
) -> pd.DataFrame:
    """Trains, and records the loss before each update; one that is not finite ends the run.

    Args:
        model: On ``plan.device``.
        optimizer: Of the model's parameters.
        batch: From step to what `loss` takes, on the same device.
        loss: From model and batch to a scalar.
        plan: Steps, device and precision.
        width: For the records.
        seed: For the records.
        stop: Ends the run before its next step when set.

    Returns:
        One record of the module "(loss)" for each step.

    Raises:
        Cancelled: if `stop` was set.
        ValueError: if a loss is negative, for records hold sizes.
    """
    model.train()
    autocast = torch.autocast(plan.device.type, torch.bfloat16) if plan.precision == Precision.bf16 else nullcontext()
    seen: list[float] = []
    for step in range(plan.steps):
        if stop is not None and stop.is_set():
            raise Cancelled
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            value = check_scalar(loss(model, batch(step)))
        seen.append(float(value.detach()))
        if seen[-1] < 0:
            raise ValueError(
                f"a loss that is compared between learning rates is zero or more; got {seen[-1]:g}. "
                f"For example add a constant, loss=lambda model, batch: my_loss(model, batch) + 10."
            )
        if not torch.isfinite(value):
            break
        with theirs("the backward pass"):
            check_trainable(value).backward()  # type: ignore[no-untyped-call]
        with theirs(f"`optimizer` {type(optimizer).__name__}, in its step,"):
            optimizer.step()
    sizes = pd.Series(seen, dtype=float)
    finite = sizes.where(sizes.abs() < float("inf"))
    return pd.DataFrame(
        {
            "width": width,
            "seed": seed,
            "step": range(len(seen)),
            "module": LOSS_MODULE,
            "order": 0,
            "role": LOSS,
            "kind": "activation",
            "l1": sizes,
            "rms": sizes,
            "max": sizes,
            "nonfinite": finite.isna().astype(int),
            "count": 1,
        }
    )
