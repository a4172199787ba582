"""The runs of a cell: widths times seeds, longest first, several at a time, finished ones kept.

A run that fails for want of memory is reported and loses nothing else; one that diverges is data. On CPU the runs of
a configured cell share the cores, see :func:`share_cores`: the numbers are then the same bit for bit whatever the
number of workers or the order of runs.
"""

import gc
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Event, Lock
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from coordcheck.records.schema import CLASSES
from coordcheck.records.store import RunStore
from coordcheck.run.cell import Cell
from coordcheck.run.estimate import (
    LONG,
    Estimate,
    available_memory,
    dry_run,
    makespan,
    memory_of_run,
    seconds_by_width,
    useful_workers,
)
from coordcheck.run.theirs import is_out_of_memory
from coordcheck.run.train import RECOMPUTES, Cancelled, RunPlan, run

ROOM = 0.8  # of a device's memory, for all runs that go on at a time
BUILDING = Lock()  # what makes a model or a batch may draw from torch's global generator, which all threads share


@dataclass(frozen=True)
class Finished:
    """What came of the runs.

    Attributes:
        records: Of all runs at widths that fit into memory, with the cell's columns first, in the order of width
            and seed.
        skipped: One sentence for each width that could not run.
    """

    records: pd.DataFrame
    skipped: list[str]


@dataclass
class RunQueue:
    """The runs of one cell.

    Attributes:
        cell: What is built.
        plan: What all runs have in common.
        widths: d_model.
        seeds: One run at each width for each; or by width, for as many runs as each needs.
        batch_seed: Of the batch that all runs train on; None where each seed has its own.
        store: Where finished runs are kept; None keeps nothing.
        workers: Runs at a time.
        title: Shown before the progress bar.
    """

    cell: Cell
    plan: RunPlan
    widths: Sequence[int]
    seeds: Sequence[int] | Mapping[int, Sequence[int]]
    store: RunStore | None = None
    workers: int = 1
    title: str = "check"
    batch_seed: int | None = None
    _stop: Event = field(default_factory=Event, init=False)
    _too_large: set[int] = field(default_factory=set, init=False)
    _frames: dict[tuple[int, int], pd.DataFrame] = field(default_factory=dict, init=False)
    _state: float = field(default=0.0, init=False)
    _recomputes: bool = field(default=False, init=False)

    def runs(self) -> list[tuple[int, int]]:
        """Width and seed of every run, longest first."""
        of = self.seeds
        by_width = of if isinstance(of, Mapping) else dict.fromkeys(self.widths, of)
        every = {(width, seed) for width, seeds in by_width.items() for seed in seeds}
        return sorted(every, key=lambda run: (-run[0], run[1]))

    def try_out(self) -> str:
        """Trains the two narrowest models anew, whatever is stored.

        What a user's functions do cannot be read, so it stands in the key of stored runs: two widths, for a change of
        how something scales shows at one of them at least.

        Returns:
            A hash of their records.
        """
        digest = hashlib.sha256()
        first = dict(self.runs()[::-1])
        for width in sorted(self.widths)[:2]:
            records = self._one(width, first[width])
            if records is not None:
                self._frames[width, first[width]] = records
                digest.update(records.to_csv(index=False).encode())
        self.cell.tried_out(self._recomputes)
        return digest.hexdigest()

    def left(self) -> list[tuple[int, int]]:
        """Width and seed of the runs that are neither stored nor done, longest first."""
        every = self.runs()
        done = self._frames if self.store is None else {*self._frames, *filter(self.store.__contains__, every)}
        return [run for run in every if run not in done]

    def measure(self) -> dict[int, float]:
        """Finishes runs at two narrow widths, alone, after one that does not count.

        The narrowest is one. The other is wide enough for what it costs to be that of wider ones, and at most a quarter
        as wide as the widest, so that it takes a sixteenth of its time.

        Returns:
            Seconds of a run by width; nothing where few runs are left.
        """
        left = self.left()[::-1]
        widths = sorted({width for width, _ in left})
        narrow = widths[:1] + ([w for w in widths[1:] if 4 * w <= widths[-1]][-1:] or widths[1:2])
        runs = [next(run for run in left if run[0] == width) for width in narrow]
        warm_up = [run for run in left if run[0] == narrow[0] and run not in runs][:1]
        if len(left) <= len(runs) + len(warm_up):
            return {}
        seconds: dict[int, float] = {}
        for width, seed in [*warm_up, *runs]:
            start = time.perf_counter()
            records = self._one(width, seed)
            seconds[width] = time.perf_counter() - start
            if records is not None:
                self._frames[width, seed] = records
        return seconds

    def estimate(self, measured: Mapping[int, float]) -> tuple[list[float], int]:
        """What is left to do.

        Args:
            measured: Seconds of a run by width, see :meth:`measure`.

        Returns:
            Seconds of each run, and the bytes that the widest needs.
        """
        left = self.left()
        seed = self.runs()[0][1] if self.batch_seed is None else self.batch_seed
        dry = {width: dry_run(self.cell, width, seed) for width in {*measured, *(width for width, _ in left)}}
        seconds = seconds_by_width(dry, measured, self.plan.steps, self.plan.device)
        return [seconds[width] for width, _ in left], memory_of_run(dry[max(dry)], self._state)

    def finish(self) -> Finished:
        """Runs what is not stored yet. More seeds may be given afterwards; what is done is not done again.

        Returns:
            The records of all runs.

        Raises:
            KeyboardInterrupt: on Ctrl-C; finished runs are stored.
        """
        finish_together([self], self.title)
        return Finished(self._collect(self.done()), self._skipped())

    def done(self) -> dict[tuple[int, int], pd.DataFrame]:
        """The records of each run that is done, in the order of :meth:`runs`."""
        return {run: self._frames[run] for run in self.runs() if run in self._frames}

    def _one(self, width: int, seed: int, begins: Callable[[], object] = lambda: None) -> pd.DataFrame | None:
        """The records of one run, stored or new; None if it does not fit into memory."""
        if self._stop.is_set():
            raise CancelledError
        stored = self.store.get(width, seed) if self.store is not None else None
        if stored is not None:
            return stored
        if width in self._too_large:
            return None
        begins()
        try:
            records = self._train(width, seed)
        except Cancelled as error:
            raise CancelledError from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._too_large.add(width)
            _release(self.plan.device)
            return None
        if self.store is not None:
            self.store.put(width, seed, records)
        return records

    def _train(self, width: int, seed: int) -> pd.DataFrame:
        with BUILDING:
            model = self.cell.build(width, seed, self.plan.device)
            optimizer = self.cell.optimizer(model, width)
        records = self.train(model, optimizer, width, seed)
        self._recomputes = records.attrs.pop(RECOMPUTES, False) or self._recomputes
        self._state = _bytes(optimizer.state.values()) / max(1, sum(p.nbytes for p in model.parameters()))
        return records

    def train(self, model: nn.Module, optimizer: torch.optim.Optimizer, width: int, seed: int) -> pd.DataFrame:
        """The records of a run whose model is built."""
        with BUILDING:
            batch = self.cell.batch(seed if self.batch_seed is None else self.batch_seed, self.plan.device)
        return run(
            model,
            optimizer,
            batch,
            self.cell.loss,
            self.plan,
            width=width,
            seed=seed,
            roles=self.cell.roles,
            stop=self._stop,
        )

    def _collect(self, frames: dict[tuple[int, int], pd.DataFrame]) -> pd.DataFrame:
        """One frame of the widths that ran with every seed, the same whatever the order in which runs ended."""
        fitting = sorted(key for key in frames if key[0] not in self._too_large)
        if not fitting:
            raise ValueError(
                f"no run of widths {list(self.widths)} fits into the memory of {self.plan.device}. "
                f"For example narrower widths or a smaller batch."
            )
        records = pd.concat([frames[key] for key in fitting], ignore_index=True)
        for position, (name, value) in enumerate(self.cell.columns.items()):
            records.insert(position, name, value)
        if not self.cell.cross_entropy:
            records.attrs.pop(CLASSES, None)
        return records

    @property
    def too_large(self) -> set[int]:
        """Widths that did not fit into memory."""
        return self._too_large

    def _skipped(self) -> list[str]:
        return [f"width {width} skipped: out of memory" for width in sorted(self._too_large)]


def finish_together(queues: Sequence[RunQueue], title: str) -> None:
    """Runs what none of these queues has done or stored yet, longest first, as many at a time as the first one says.

    Args:
        queues: Of one device.
        title: Shown before the progress bar.

    Raises:
        KeyboardInterrupt: on Ctrl-C; finished runs are stored.
    """
    left = [(queue, run) for queue in queues for run in queue.runs() if run not in queue.done()]
    left.sort(key=lambda entry: -entry[1][0])
    with _progress(title) as progress, ThreadPoolExecutor(queues[0].workers) as pool:
        bar = progress.add_task(title, total=sum(cost(width) for _, (width, _) in left), run="")
        futures: dict[Future[pd.DataFrame | None], tuple[RunQueue, tuple[int, int]]] = {}
        for queue, (width, seed) in left:
            told = partial(progress.update, bar, run=f"width {width} seed {seed}")
            futures[pool.submit(queue._one, width, seed, told)] = queue, (width, seed)
        try:
            for future in as_completed(futures):
                records, (queue, of) = future.result(), futures[future]
                if records is not None:
                    queue._frames[of] = records
                progress.advance(bar, cost(of[0]))
        except BaseException:  # Ctrl-C too: whatever ends this ends the other runs, and is raised again
            for queue in queues:
                queue._stop.set()
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def threads_of_runs(device: torch.device, seeds: int) -> Iterator[int]:
    """Gives torch the threads of one run, see :func:`share_cores`; yields how many runs may go on at a time."""
    before = torch.get_num_threads()
    workers, threads = share_cores(device, seeds)
    torch.set_num_threads(threads)
    try:
        yield workers
    finally:
        torch.set_num_threads(before)


def share_cores(device: torch.device, seeds: int) -> tuple[int, int]:
    """How runs share a device.

    The widest runs take most of the time, and there are as many of them as seeds: each gets its share of the CPU cores
    that this process may use. With one core for each operations need not wait for one another.

    Args:
        device: Where they run.
        seeds: Runs at each width.

    Returns:
        Runs at a time, one on any device but the CPU, and threads for each.
    """
    if device.type != "cpu":
        return 1, torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // seeds)
    return max(1, cores // threads), threads


def announce(queues: Sequence[RunQueue]) -> None:
    """Says how long queues of one model will take, if long, and how much memory; does the first runs to find out.

    As many runs go on at a time as the memory has room for and as can keep busy.
    """
    device = queues[0].plan.device
    measured = queues[0].measure()
    if not measured:
        return
    estimates = [queue.estimate(measured) for queue in queues]
    needed, available = max(needed for _, needed in estimates), available_memory(device)
    for queue, (runs, _) in zip(queues, estimates, strict=True):
        with_room = int(ROOM * available / needed) if available else queue.workers
        queue.workers = max(1, min(queue.workers, with_room, useful_workers(runs, measured[min(measured)])))
    seconds = sum(makespan(runs, queue.workers) for (runs, _), queue in zip(estimates, queues, strict=True))
    if seconds >= LONG:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        count = sum(len(runs) for runs, _ in estimates)
        print(Estimate(seconds, count, queues[0].workers, needed, available, name), file=sys.stderr, flush=True)


def _bytes(states: Iterable[Mapping[str, Any]]) -> int:
    """Memory of an optimizer's state."""
    return sum(value.nbytes for state in states for value in state.values() if isinstance(value, Tensor))


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def cost(width: int) -> float:
    """Relative time of a run, the same on every machine: matrices grow like width^2, the rest hardly."""
    return 1.0 + (width / 128) ** 2


def _progress(title: str) -> Progress:
    """A progress bar on the terminal, nothing elsewhere."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%  {task.fields[run]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
