"""The runs of a cell: widths times seeds, longest first, several at a time, finished ones kept.

A run that fails for want of memory is reported and loses nothing else, nor does one whose worker dies; one that
diverges is data. On CPU the runs of a configured cell share the cores, see :func:`share_cores`: the numbers are then
the same bit for bit whoever makes the runs, whatever the number of workers or the order.
"""

import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Event, Lock

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from coordcheck.records.names import one_line
from coordcheck.records.schema import CLASSES
from coordcheck.records.store import RunStore
from coordcheck.run.cell import Cell
from coordcheck.run.device import release
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
from coordcheck.run.executors import TRIES, Engine, cores
from coordcheck.run.one import Outcome, Trainer, pack, run_one, train_one
from coordcheck.run.spread import Run, spread
from coordcheck.run.train import Cancelled, RunPlan

LONGEST = 300  # characters of what a worker died of
NAMED = 4  # runs that a progress bar has room for
CONTEXT = 2**30  # bytes of a GPU for each process: CUDA's own some 500 MiB, and workspaces of its libraries
ROOM = 0.8  # of a device's memory, for all runs that go on at a time
BUILDING = Lock()  # what makes a model or a batch may draw from torch's global generator, which all threads share


@dataclass(frozen=True)
class Finished:
    """What came of the runs.

    Attributes:
        records: Of all runs at widths that fit into memory, with the cell's columns first, in the order of width
            and seed.
        skipped: One sentence for each width that could not run, and for each run that was lost.
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
        engine: Who makes the runs; None for threads of this process.
    """

    cell: Cell
    plan: RunPlan
    widths: Sequence[int]
    seeds: Sequence[int] | Mapping[int, Sequence[int]]
    store: RunStore | None = None
    workers: int = 1
    title: str = "check"
    batch_seed: int | None = None
    engine: Engine | None = None
    _stop: Event = field(default_factory=Event, init=False)
    _too_large: set[int] = field(default_factory=set, init=False)
    _lost: dict[Run, str] = field(default_factory=dict, init=False)
    _frames: dict[Run, pd.DataFrame] = field(default_factory=dict, init=False)
    _state: float = field(default=0.0, init=False)
    _drew: bool = field(default=False, init=False)

    def runs(self) -> list[Run]:
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
        runs = [(width, first[width]) for width in sorted(self.widths)[:2]]
        if self.engine is not None and self.engine.remote:
            self._make(runs)
        else:
            for run in runs:
                self._take(run, self._outcome(*run))
        for run in runs:
            if run in self._frames:
                digest.update(self._frames[run].to_csv(index=False).encode())
        self.cell.tried_out(self._drew)
        return digest.hexdigest()

    def left(self) -> list[Run]:
        """Width and seed of the runs that are neither stored nor done, longest first."""
        every = self.runs()
        if self.store is not None:
            stored = ((run, self.store.get(*run)) for run in every if run not in self._frames)
            self._frames |= {run: records for run, records in stored if records is not None}
        return [run for run in every if run not in self._frames]

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
            self._take((width, seed), self._outcome(width, seed))
            seconds[width] = time.perf_counter() - start
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
        self._make([run for run in self.left() if run not in self._lost and run[0] not in self._too_large])
        return Finished(self._collect(self.done()), self._skipped())

    def done(self) -> dict[Run, pd.DataFrame]:
        """The records of each run that is done, in the order of :meth:`runs`."""
        return {run: self._frames[run] for run in self.runs() if run in self._frames}

    def _make(self, runs: Sequence[Run]) -> None:
        """Makes runs and keeps their records."""
        if not runs:
            return
        call, tries = self._call()
        engine = Engine(ThreadPoolExecutor) if self.engine is None else self.engine
        at_a_time = None if engine.queues else self.workers
        try:
            with _progress() as progress:
                bar = progress.add_task(self.title, total=sum(self.cell.cost(width) for width, _ in runs), run="")
                working = partial(_tell, progress, bar)
                for run, outcome in spread(engine.executor(self.workers), call, runs, at_a_time, working, tries):
                    self._take(run, outcome)
                    progress.advance(bar, self.cell.cost(run[0]))
        except BaseException:  # Ctrl-C too: whatever ends this ends the other runs, and is raised again
            self._stop.set()
            engine.stop()
            raise
        if self.engine is None:
            engine.stop()

    def _call(self) -> tuple[Callable[[int, int], Outcome], int]:
        """What makes a run, and how often it is tried where workers die."""
        if self.engine is None:
            return self._outcome, 1
        try:
            return partial(run_one, pack(self.cell, self.plan, self.batch_seed, self.store)), TRIES
        except ValueError as error:
            if not self.engine.automatic:
                raise
            print(f"runs go on one by one on one GPU, since {one_line(error)}", file=sys.stderr, flush=True)
            self.engine, self.workers = None, 1
            return self._outcome, 1

    def _take(self, run: Run, outcome: Outcome | BaseException) -> None:
        """Keeps what came of a run.

        Raises:
            ValueError: what the run raised in another process.
            BaseException: what it raised in this one.
        """
        width, seed = run
        if isinstance(outcome, BaseException):
            if self.engine is None or not isinstance(outcome, Exception):
                raise outcome
            died = f"{type(outcome).__name__}: {one_line(outcome)}"[:LONGEST]
            self._lost[run] = f"run of width {width}, seed {seed} lost: its worker died {TRIES} times ({died})"
        elif outcome.error:
            error = ValueError(outcome.error)
            error.add_note(outcome.trace)
            raise error
        elif outcome.records is None:
            self._too_large.add(width)
        else:
            self._drew = outcome.drew or self._drew
            self._state = max(self._state, outcome.state)
            self._frames[run] = outcome.records

    def _outcome(self, width: int, seed: int) -> Outcome:
        """One run in a thread of this process."""
        if self._stop.is_set():
            raise CancelledError
        stored = None if self.store is None else self.store.get(width, seed)  # by another command, in the meantime
        if stored is not None:
            return Outcome(stored)
        if width in self._too_large:
            return Outcome(None)
        try:
            how = self.batch_seed, BUILDING, self._stop, self.trainer
            outcome = train_one(self.cell, self.plan, width, seed, *how)
        except Cancelled as error:
            raise CancelledError from error
        if self.store is not None and outcome.records is not None:
            self.store.put(width, seed, outcome.records)
        return outcome

    @property
    def trainer(self) -> Trainer | None:
        """What trains a model that is built; None where its layers are recorded."""
        return None

    def _collect(self, frames: dict[tuple[int, int], pd.DataFrame]) -> pd.DataFrame:
        """One frame of the widths that ran with every seed, the same whatever the order in which runs ended."""
        fitting = sorted(key for key in frames if key[0] not in self._too_large)
        if not fitting and self._lost:
            raise ValueError(
                f"no run came back: {next(iter(self._lost.values()))}. For example executor=threads, which makes them "
                f"in this process."
            )
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
        too_large = [f"width {width} skipped: out of memory" for width in sorted(self._too_large)]
        return [*too_large, *(said for run, said in sorted(self._lost.items()) if run in {*self.runs()})]


def finish_together(queues: Sequence[RunQueue], title: str) -> None:
    """Runs what none of these queues has done or stored yet, longest first, as many at a time as the first one says.

    Args:
        queues: Of one device.
        title: Shown before the progress bar.

    Raises:
        KeyboardInterrupt: on Ctrl-C; finished runs are stored.
    """
    left = [(queue, run) for queue in queues for run in queue.left()]
    left.sort(key=lambda entry: -entry[1][0])
    with _progress() as progress, ThreadPoolExecutor(queues[0].workers) as pool:
        bar = progress.add_task(title, total=sum(queue.cell.cost(width) for queue, (width, _) in left), run="")
        futures = {pool.submit(queue._outcome, *run): (queue, run) for queue, run in left}
        try:
            for future in as_completed(futures):
                queue, run = futures[future]
                queue._take(run, future.result())
                progress.advance(bar, queue.cell.cost(run[0]))
                _tell(progress, bar, [run for going, (_, run) in futures.items() if going.running()])
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
    threads = max(1, cores() // seeds)
    return max(1, cores() // threads), threads


def announce(queues: Sequence[RunQueue]) -> None:
    """Says how long queues of one model will take, if long, and how much memory; does the first runs to find out.

    As many runs go on at a time as the memory has room for and as can keep busy.
    """
    device, engine = queues[0].plan.device, queues[0].engine
    measured = {} if engine is not None and engine.remote else queues[0].measure()
    if not measured:
        return
    devices = 1 if engine is None else engine.devices
    if engine is not None:
        release(device)  # what the first runs took is for the workers now
    estimates = [queue.estimate(measured) for queue in queues]
    needed, available = max(needed for _, needed in estimates), available_memory(device)
    of_process = CONTEXT if engine is not None and device.type == "cuda" else 0
    for queue, (runs, _) in zip(queues, estimates, strict=True):
        if engine is None:
            wanted = min(queue.workers, useful_workers(runs, measured[min(measured)]))
        else:
            wanted = max(queue.workers, devices * engine.each)
        with_room = devices * max(1, int(ROOM * available / (needed + of_process))) if available else wanted
        queue.workers = max(1, min(wanted, with_room))
    seconds = sum(makespan(runs, queue.workers) for (runs, _), queue in zip(estimates, queues, strict=True))
    if seconds >= LONG:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        name = f"{devices} {name}" if devices > 1 else name
        count = sum(len(runs) for runs, _ in estimates)
        print(Estimate(seconds, count, queues[0].workers, needed, available, name), file=sys.stderr, flush=True)


def _progress() -> Progress:
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


def _tell(progress: Progress, bar: TaskID, runs: Sequence[Run]) -> None:
    """Shows what all workers are at."""
    said = ", ".join(f"width {width} seed {seed}" for width, seed in runs)
    if len(runs) > NAMED:
        said = f"{len(runs)} runs of widths {min(runs)[0]} to {max(runs)[0]}"
    progress.update(bar, run=said)
