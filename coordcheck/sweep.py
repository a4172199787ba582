"""The runs of a cell: widths times seeds, longest first, several at a time, finished ones kept.

A run that fails for want of memory is reported and loses nothing else; one that diverges is data. On CPU every
run of a configured cell uses one thread, and runs share the cores: the numbers are then the same bit for bit
whatever the number of workers or the order of runs.
"""

import gc
import os
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from threading import Event, Lock

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from coordcheck.cell import Cell
from coordcheck.initial_loss import CLASSES
from coordcheck.storage import RunStore
from coordcheck.train import Cancelled, RunPlan, run


@dataclass(frozen=True)
class Sweep:
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
        seeds: One run at each width for each.
        store: Where finished runs are kept; None keeps nothing.
        workers: Runs at a time.
        title: Shown before the progress bar.
    """

    cell: Cell
    plan: RunPlan
    widths: Sequence[int]
    seeds: Sequence[int]
    store: RunStore | None = None
    workers: int = 1
    title: str = "check"
    _building: Lock = field(default_factory=Lock, init=False)
    _stop: Event = field(default_factory=Event, init=False)
    _too_large: set[int] = field(default_factory=set, init=False)

    def finish(self) -> Sweep:
        """Runs what is not stored yet.

        Returns:
            The records of all runs.

        Raises:
            KeyboardInterrupt: on Ctrl-C; finished runs are stored.
        """
        runs = sorted(((w, s) for w in self.widths for s in self.seeds), key=lambda r: (-r[0], r[1]))
        frames: dict[tuple[int, int], pd.DataFrame] = {}
        with _progress(self.title) as progress, ThreadPoolExecutor(self.workers) as pool:
            bar = progress.add_task(self.title, total=sum(_cost(width) for width, _ in runs), run="")
            futures: dict[Future[pd.DataFrame | None], tuple[int, int]] = {}
            for width, seed in runs:
                futures[pool.submit(self._one, width, seed, progress, bar)] = (width, seed)
            try:
                for future in as_completed(futures):
                    records = future.result()
                    if records is not None:
                        frames[futures[future]] = records
                    progress.advance(bar, _cost(futures[future][0]))
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        return Sweep(self._collect(frames), self._skipped())

    def _one(self, width: int, seed: int, progress: Progress, bar: object) -> pd.DataFrame | None:
        """The records of one run, stored or new; None if it does not fit into memory."""
        if self._stop.is_set():
            raise CancelledError
        stored = self.store.get(width, seed) if self.store is not None else None
        if stored is not None:
            return stored
        if width in self._too_large:
            return None
        progress.update(bar, run=f"width {width} seed {seed}")  # type: ignore[arg-type]
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
        device = self.plan.device
        with self._building:
            # a constructor may draw from torch's global generator, which all threads share
            model = self.cell.build(width, seed, device)
        return run(
            model,
            self.cell.optimizer(model, width),
            self.cell.batch(seed, device),
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

    def _skipped(self) -> list[str]:
        return [f"width {width} skipped: out of memory" for width in sorted(self._too_large)]


def default_workers(device: torch.device) -> int:
    """Runs at a time: one per CPU core that this process may use, one on any other device."""
    return len(os.sched_getaffinity(0)) if device.type == "cpu" and hasattr(os, "sched_getaffinity") else 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; only CUDA's allocator has a type of its own for that."""
    said = ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")  # CPU; MPS; cuBLAS and cuDNN
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in said)


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _cost(width: int) -> float:
    """Relative time of a run, for the time left: matrices grow like width^2, the rest hardly."""
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
