"""Transfer: models trained at several learning rates and widths, to see where the best learning rate goes.

:func:`transfer` does it for a user's functions, :func:`transfer_config` for what a configuration names,
:func:`transfer_cell` for either.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from coordcheck.auditing import in_training
from coordcheck.config.arguments import MOST, MOST_SEEDS, MOST_STEPS, directory, whole
from coordcheck.config.axes import check_widths
from coordcheck.config.call import check_options
from coordcheck.config.executor import check_executor
from coordcheck.config.rules import member, refuse_depth
from coordcheck.config.schema import AUTO, CheckConfig, FlaxConfig, Parametrization, Precision
from coordcheck.judge.cure import CureTable
from coordcheck.judge.transfer import (
    FEWEST,
    TAIL,
    TransferCurves,
    losses_of,
    missing_runs,
    optima_of,
    outcome,
    seeds_for,
)
from coordcheck.records.files import write_text
from coordcheck.records.store import RunStore, current_versions

if TYPE_CHECKING:
    from torch import Tensor, nn, optim

    from coordcheck.run.cell import Cell
    from coordcheck.run.learning import LearningQueue, Rehearsal
    from coordcheck.run.train import RunPlan

TABLE, OPTIMA, PICTURE = "transfer.csv", "optima.csv", "transfer.png"
REHEARSED = 10  # steps, from which the time of all is known
PROBED = 3  # steps, by which a user's functions are known again
SEARCHED, AROUND = 2, 5  # learning rates that a width needs with one seed to find the lowest loss, and with all there
TWIN_SEEDS = 2  # at each width, of a control: that its best learning rate moves shows with few
IN_SP = "standard parametrization"
UNCURED = "before the cure"


@dataclass(frozen=True, repr=False)
class Transfer:
    """Whether a learning rate transfers.

    Attributes:
        curves: What the model says, see :class:`coordcheck.judge.transfer.TransferCurves`.
        control: What the same model in standard parametrization says, or before its cure; None where there is none.
        skipped: A sentence for each width that could not run.
        config: What was asked for.
    """

    curves: TransferCurves
    control: TransferCurves | None
    skipped: list[str]
    config: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        """Of the model: "pass" if its learning rate transfers, "fail" if not, else "inconclusive"."""
        return self.curves.verdict

    @property
    def exponent(self) -> float:
        """By which power of width the model's best learning rate moves."""
        return self.curves.exponent

    def __repr__(self) -> str:
        lines = [f"{self.curves.name}: {self.curves.sentence()}", self.curves.wider_sentence()]
        lines += [] if self.control is None else [f"{self.control.name}: {self.control.sentence()}"]
        return "\n".join([*lines, *self.skipped])

    def frame(self, name: str) -> pd.DataFrame:
        """The ``losses`` or the ``optima`` of the model and its control, with the column ``model`` first."""
        tables = [(curves.name, getattr(curves, name)) for curves in (self.curves, self.control) if curves is not None]
        frames = [table.assign(model=model) for model, table in tables]
        joined: pd.DataFrame = pd.concat(frames, ignore_index=True)[["model", *tables[0][1].columns]]
        return joined

    def plot(self, path: str | Path) -> None:
        """Writes the picture, a PNG: loss against learning rate, and the best learning rate against width."""
        from coordcheck.report.figures.style import save_figure
        from coordcheck.report.figures.transfer import transfer_figure

        save_figure(transfer_figure(self.curves, self.control), Path(path), self.config)

    def save(self, directory: str | Path) -> None:
        """Writes ``transfer.csv`` (all losses), ``optima.csv`` and ``transfer.png``."""
        directory = Path(directory)
        write_text(directory / TABLE, self.frame("losses").to_csv(index=False))
        write_text(directory / OPTIMA, self.frame("optima").to_csv(index=False))
        self.plot(directory / PICTURE)


def transfer(
    build: "Callable[[int], nn.Module | tuple[nn.Module, optim.Optimizer]]",
    batch: Any,
    widths: Sequence[int] = (64, 128, 256),
    optimizer: "Callable[[nn.Module], optim.Optimizer] | None" = None,
    *,
    seeds: int | str = AUTO,
    steps: int = 100,
    loss: "Callable[[nn.Module, Any], Tensor] | None" = None,
    cure: CureTable | None = None,
    control: bool = True,
    device: str = "auto",
    precision: str = "fp32",
    name: str | None = None,
    store: str | Path | None = None,
    workers: int | None = None,
    first_seed: int = 0,
) -> Transfer:
    """Trains a model of yours at several learning rates and widths, and shows where the best one goes.

    Each run multiplies all learning rates of your optimizer by one number.

    Args:
        build: As for :func:`coordcheck.coord_check`.
        batch: A function from seed to a batch, of which each step has its own; or one batch for all steps.
        widths: d_model, at least three distinct values.
        optimizer: As for :func:`coordcheck.coord_check`.
        seeds: Of the weights, how many at each width; "auto" for 8, 6, 4, 3 at widths that double.
        steps: Updates.
        loss: From model and batch to a scalar, zero or more; by default :func:`coordcheck.run.loss.default_loss`.
        cure: Applied to the model, which is then compared with itself as it was.
        control: Whether the model before its cure is trained too.
        device: As for :func:`coordcheck.coord_check`.
        precision: Likewise.
        name: Likewise.
        store: Likewise.
        workers: Likewise.
        first_seed: Of the seeds and of the batches.

    Returns:
        The verdict, the exponent with its interval, the losses; ``plot`` and ``save`` write files.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    from coordcheck.models.cured import Cured
    from coordcheck.models.own import OwnCell, default_optimizer
    from coordcheck.run.device import pick_device
    from coordcheck.run.train import RunPlan

    wanted, updates, count = check_widths(widths), check_learning_steps(steps), check_count(seeds)
    given = {"name": name, "control": control, "store": store, "workers": workers}
    check_options(**given, audit=True, rerun=True, try_advice=False)
    first = whole("first_seed", first_seed, 100, at_least=0, at_most=MOST)
    plan = RunPlan(updates, [], None, pick_device(device), member(Precision, "precision", precision))
    with in_training(plan.device):
        chosen = default_optimizer() if optimizer is None else optimizer
        own = OwnCell(build, batch, chosen, loss, wanted, name=name)
        cell, twin = (own, None) if cure is None else (Cured(own, cure), (own, UNCURED) if control else None)
        config = {"widths": wanted, "steps": updates, "seeds": count, "first_seed": first}
        told = f"{_name_of(own)}{', cured' * (cure is not None)}"
        return transfer_cell(cell, told, twin, plan, wanted, count, first, store=store, workers=workers, config=config)


def transfer_config(config: CheckConfig, cure: CureTable | None = None) -> Transfer:
    """The same for what a configuration names, with a cure applied where one is given.

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    from coordcheck.models.cured import Cured
    from coordcheck.models.families import make_cell
    from coordcheck.run.device import pick_device
    from coordcheck.run.train import RunPlan

    if isinstance(config.model, FlaxConfig):
        raise ValueError("coordcheck-transfer trains torch models; got model=flax. For example model=gpt or model=own.")
    refuse_depth(config, "coordcheck-transfer")
    check_executor(config.executor, "coordcheck-transfer")
    directory("runs", config.runs, "checks/runs")
    plan = RunPlan(check_learning_steps(config.steps), [], None, pick_device(config.device), config.precision)
    with in_training(plan.device):
        cell = made = make_cell(config)
        twin = None
        if cure is not None:
            cell, twin = Cured(made, cure), (made, UNCURED)
        elif config.parametrization.name not in (Parametrization.sp, Parametrization.own):
            in_sp = made.in_sp()
            twin = None if in_sp is None else (in_sp, IN_SP)
        return transfer_cell(
            cell,
            f"{_name_of(made)}{', cured' * (cure is not None)}",
            twin if config.control else None,
            plan,
            config.widths,
            check_count(config.seeds),
            config.first_seed,
            store=config.runs,
            reuse=config.resume,
            workers=config.workers,
            config=dataclasses.asdict(config),
        )


def check_learning_steps(steps: Any) -> int:
    """The number of updates.

    Raises:
        ValueError: if there are too few to learn anything.
    """
    return whole("steps", steps, 100, at_least=TAIL, at_most=MOST_STEPS)


def check_count(seeds: Any) -> int | None:
    """Seeds at each width; None for as many as each width should have.

    Raises:
        ValueError: if a width would have none or one, which says nothing of the noise.
    """
    if isinstance(seeds, str) and seeds == AUTO:
        return None
    return whole("seeds", seeds, 3, at_least=FEWEST, at_most=MOST_SEEDS)


def transfer_cell(
    cell: "Cell",
    name: str,
    twin: "tuple[Cell, str] | None",
    plan: "RunPlan",
    widths: Sequence[int],
    count: int | None,
    first_seed: int,
    *,
    store: str | Path | None = None,
    reuse: bool = True,
    workers: int | None = None,
    config: Mapping[str, Any],
) -> Transfer:
    """Trains a cell and its control from the narrowest width to the widest, and judges both.

    Each width is searched around the best learning rate of the width before it.
    """
    from coordcheck.run.estimate import fitting, least_memory, not_silent
    from coordcheck.run.queue import announce, finish_together, threads_of_runs

    seeds = seeds_for(widths, count, first_seed)
    with threads_of_runs(plan.device, AROUND) as share, not_silent(widths) as begun:
        fit, skipped = fitting(lambda width: least_memory(cell, width, first_seed), sorted(widths), plan.device)
        searches = [Search(cell, name, plan, {width: seeds[width] for width in fit}, first_seed)]
        if twin is not None:
            few = {width: seeds[width][:TWIN_SEEDS] for width in fit}
            searches.append(Search(twin[0], twin[1], plan, few, first_seed))
        together = min(search.prepare(store, reuse, workers or share) for search in searches)
        rehearsal = searches[0].rehearsal(searches, together)
        if rehearsal is not None:
            announce([rehearsal])
            together = rehearsal.workers
        begun()
        for width in fit:
            while queues := [queue for search in searches for queue in search.missing(width)]:
                queues[0].workers = together
                finish_together(queues, f"width {width} at {len(queues)} learning rates")
                if any(width in queue.too_large for queue in queues):
                    skipped = [*skipped, f"width {width} skipped: out of memory"]
                    break
    judged = [search.judge() for search in searches]
    return Transfer(judged[0], judged[1] if twin is not None else None, skipped, config)


def _name_of(cell: "Cell") -> str:
    """A cell in a few words."""
    return " ".join(str(value) for name, value in cell.columns.items() if name in ("model", "parametrization"))


def _start(losses: pd.DataFrame, width: int) -> float:
    """The octave at which a width's search begins: the best one of the next narrower width; 0 for the narrowest."""
    narrower = losses[losses["width"] < width]
    found = optima_of(narrower[narrower["width"] == narrower["width"].max()])
    return float(round(found["octave"].mean())) if len(found) else 0.0


class Search:
    """The runs of one cell, a queue for each learning rate.

    Args:
        cell: What is trained.
        name: Of the cell, in reports.
        plan: What all runs have in common.
        seeds: By width.
        batch_seed: Of the batches.
    """

    def __init__(self, cell: "Cell", name: str, plan: "RunPlan", seeds: Mapping[int, Sequence[int]], batch_seed: int):
        self.cell = cell
        self.name = name
        self.plan = plan
        self.seeds = seeds
        self.batch_seed = batch_seed
        self.queues: dict[float, LearningQueue] = {}
        self._outcomes: dict[tuple[float, int, int], float] = {}
        self._seeds: dict[float, dict[int, Sequence[int]]] = {}
        self._store: tuple[Path, dict[str, Any], bool] | None = None

    def prepare(self, store: str | Path | None, reuse: bool, workers: int) -> int:
        """Says where finished runs are kept; returns how many runs may go on at a time, of so many at most."""
        behaviour = self._behaviour() if not self.cell.readable and (store is not None or workers > 1) else None
        if store is not None:
            plan = {**vars(self.plan), "device": self.plan.device.type}
            told = {"plan": plan, "behaviour": behaviour, "versions": current_versions(), "batch_seed": self.batch_seed}
            self._store = Path(store), told, reuse
        disturb = self.cell.shares or (self.cell.draws is not False and not self.cell.readable)
        return 1 if disturb else workers

    def _behaviour(self) -> str:
        """A hash of what a user's functions do in a few recorded steps, for stored runs to be known by."""
        from coordcheck.run.queue import RunQueue

        plan = dataclasses.replace(self.plan, steps=PROBED, kinds=["activation"])
        seeds = {width: of[:1] for width, of in self.seeds.items()}
        return RunQueue(self.cell, plan, list(seeds), seeds, batch_seed=self.batch_seed).try_out()

    def rehearsal(self, searches: "Sequence[Search]", workers: int) -> "Rehearsal | None":
        """What tells how long all searches will take; None where they have begun before."""
        from coordcheck.run.learning import Rehearsal

        first = {width: of[:1] for width, of in self.seeds.items()}
        narrowest = min(first)
        store = self._queue(0.0).store
        if store is not None and (narrowest, first[narrowest][0]) in store:
            return None
        to_come = {w: sum(SEARCHED + AROUND * len(search.seeds[w]) for search in searches) for w in first}
        plan = dataclasses.replace(self.plan, steps=min(REHEARSED, self.plan.steps))
        return Rehearsal(
            self.cell,
            plan,
            list(first),
            first,
            workers=workers,
            batch_seed=self.batch_seed,
            whole=self.plan.steps,
            to_come=to_come,
        )

    def missing(self, width: int) -> "list[LearningQueue]":
        """Queues with what is to be run next at a width; none where its lowest loss is known."""
        losses = self.losses()
        octaves, seeds = missing_runs(losses, width, self.seeds[width], _start(losses, width))
        queues = [self._queue(octave) for octave in octaves]
        for octave, queue in zip(octaves, queues, strict=True):
            self._seeds[octave] = queue.seeds = {**self._seeds.get(octave, {}), width: seeds}
        return queues

    def _queue(self, octave: float) -> "LearningQueue":
        from coordcheck.run.learning import AtRate, LearningQueue

        if octave not in self.queues:
            cell = AtRate(self.cell, 2.0**octave)
            queue = LearningQueue(cell, self.plan, list(self.seeds), {}, batch_seed=self.batch_seed)
            if self._store is not None:
                place, told, reuse = self._store
                queue.store = RunStore(place, {**cell.determinants, **told}, reuse=reuse)
            self.queues[octave] = queue
        return self.queues[octave]

    def losses(self) -> pd.DataFrame:
        """What each run so far came to, see :func:`coordcheck.judge.transfer.losses_of`."""
        for octave, queue in self.queues.items():
            for (width, seed), records in queue.done().items():
                if (octave, width, seed) not in self._outcomes:
                    came_to = outcome(records["l1"].to_numpy(dtype=float), self.plan.steps)
                    self._outcomes[octave, width, seed] = came_to
        return losses_of(self._outcomes)

    def judge(self) -> TransferCurves:
        """What the runs say."""
        import torch

        narrowest = min(self.seeds)
        model = self.cell.build(narrowest, self.seeds[narrowest][0], torch.device("cpu"))
        rates = [float(group["lr"]) for group in self.cell.optimizer(model, narrowest).param_groups]
        return TransferCurves.of(self.name, self.losses(), max(rates))
