"""One run wherever it takes place, and what is sent to whoever makes it.

A run is (cell, width, seed). :func:`run_one` is what an executor calls: it makes the cell anew from what describes it,
trains at one width and one seed, and leaves the records in the store. Nothing else goes from process to process, and
the store is where processes meet: a run that somebody has finished is not done again.
"""

import contextlib
import os
import pickle
import platform
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from threading import Event, Lock
from typing import Any

import cloudpickle
import pandas as pd
import torch
from torch import Tensor, nn

from coordcheck.observe.blocks import by_place
from coordcheck.records.store import RunStore, code_hash, current_versions
from coordcheck.run.cell import Cell
from coordcheck.run.device import release
from coordcheck.run.theirs import describe, is_out_of_memory
from coordcheck.run.train import RECOMPUTES, RunPlan, run

# from a model that is built, its optimizer, width and seed to records
Trainer = Callable[[nn.Module, torch.optim.Optimizer, int, int], pd.DataFrame]
_one_at_a_time = Lock()  # in a process: runs share torch's global generator and its number of threads


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        records: None where it does not fit into memory, or raised.
        drew: Whether it drew random numbers, or may have where its backward pass computed activations again.
        state: Bytes of optimizer state for each byte of parameters.
        error: What it raised in another process, one sentence; empty where it raised nothing.
        trace: Where it did.
    """

    records: pd.DataFrame | None
    drew: bool = False
    state: float = 0.0
    error: str = ""
    trace: str = ""


@dataclass(frozen=True)
class Arithmetic:
    """What a process has set that bears on the rounding of sums."""

    threads: int = field(default_factory=torch.get_num_threads)
    dtype: torch.dtype = field(default_factory=torch.get_default_dtype)
    matmul: str = field(default_factory=torch.get_float32_matmul_precision)
    deterministic: bool = field(default_factory=torch.are_deterministic_algorithms_enabled)

    def adopt(self) -> None:
        """Sets the same in this process."""
        torch.set_num_threads(self.threads)
        torch.set_default_dtype(self.dtype)
        torch.set_float32_matmul_precision(self.matmul)
        torch.use_deterministic_algorithms(self.deterministic)


@dataclass(frozen=True)
class Task:
    """What all runs of a queue have in common, as it is sent.

    Attributes:
        cell: What is built.
        plan: Whose device is a type: the process says which one it has.
        batch_seed: Of the batch that all runs train on; None where each seed has its own.
        store: Where runs are kept; None keeps nothing.
        determinants: Of the cell, which must come out the same where it is made anew.
        arithmetic: Of the process that asks.
        software: What makes the numbers there.
    """

    cell: Cell
    plan: RunPlan
    batch_seed: int | None
    store: RunStore | None
    determinants: Mapping[str, Any]
    arithmetic: Arithmetic = field(default_factory=Arithmetic)
    software: Mapping[str, str] = field(default_factory=lambda: software())


def software() -> dict[str, str]:
    """Versions of what makes numbers, and a hash of this package's part of it."""
    return {**current_versions(), "code": code_hash()}


def pack(cell: Cell, plan: RunPlan, batch_seed: int | None, store: RunStore | None) -> bytes:
    """A task as bytes, with the paths under which its modules and files are found.

    Raises:
        ValueError: naming what cannot be sent.
    """
    plan = replace(plan, device=torch.device(plan.device.type))
    task = Task(cell, plan, batch_seed, store, cell.determinants)
    try:
        return pickle.dumps((os.getcwd(), [*sys.path], cloudpickle.dumps(task)))
    except Exception as error:  # whatever a user's object raises that cannot be pickled
        raise ValueError(
            f"{_culprit(cell)} cannot be sent to another process ({describe(error)}): it is, or refers to, something "
            f"that lives in this process alone. For example make open files, locks and generators inside the function; "
            f"or executor='threads'."
        ) from error


def _culprit(cell: Cell) -> str:
    """Which part of a cell cannot be pickled."""
    inner = getattr(cell, "cell", None)
    if isinstance(inner, Cell):
        return _culprit(inner)
    for name, part in cell.parts().items():
        try:
            cloudpickle.dumps(part)
        except Exception:  # the one that is looked for
            return f"`{name}`"
    return "the model"


def run_one(packed: bytes, width: int, seed: int) -> Outcome:
    """One run in whatever process this is.

    Args:
        packed: See :func:`pack`.
        width: d_model.
        seed: Of the run.

    Returns:
        Its records, or what it raised: errors of a run are data, so that what an executor raises tells of workers.
    """
    directory, paths, task = pickle.loads(packed)
    sys.path.extend(path for path in paths if path not in sys.path)
    there = contextlib.chdir(directory) if os.path.isdir(directory) else nullcontext()
    with _one_at_a_time, there:
        try:
            return _run(_unpacked(task), width, seed)
        except Exception as error:  # of a user's code or ours: sent back as words, which any process can read
            said = str(error) if isinstance(error, ValueError) else describe(error)
            return Outcome(None, error=said or describe(error), trace=traceback.format_exc())


@lru_cache(maxsize=4)  # a check, its control, and the one that tells why it fails
def _unpacked(packed: bytes) -> Task:
    """A task whose cell is made anew.

    Raises:
        ValueError: if it would not make the same numbers here.
    """
    try:
        task: Task = pickle.loads(packed)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{platform.node()} cannot import what the model is made of ({describe(error)}). For example start where "
            f"its module lies, on a directory that all machines see, or install it there."
        ) from error
    here = software()
    if different := [
        f"{name} {here.get(name)} for {value}" for name, value in task.software.items() if here.get(name) != value
    ]:
        raise ValueError(
            f"{platform.node()} has {', '.join(different)}, so its records would not be the same. For example the same "
            f"environment on all machines."
        )
    if task.cell.determinants != task.determinants:
        raise ValueError(
            f"{platform.node()} has another text than the process that asks for this run. For example data.path on a "
            f"directory that all machines see."
        )
    return task


def _run(task: Task, width: int, seed: int) -> Outcome:
    stored = None if task.store is None else task.store.get(width, seed)
    if stored is not None:
        return Outcome(stored)
    task.arithmetic.adopt()
    with torch.inference_mode(False), torch.enable_grad():
        outcome = train_one(task.cell, task.plan, width, seed, task.batch_seed)
    if task.store is not None and outcome.records is not None:
        task.store.put(width, seed, outcome.records)
    return outcome


def train_one(
    cell: Cell,
    plan: RunPlan,
    width: int,
    seed: int,
    batch_seed: int | None,
    building: AbstractContextManager[Any] | None = None,
    stop: Event | None = None,
    train: Trainer | None = None,
) -> Outcome:
    """Builds a model and trains it.

    Args:
        cell: What is built.
        plan: Steps and kinds.
        width: d_model.
        seed: Of the weights.
        batch_seed: Of the batch; None for that of the run.
        building: Held while anything may draw from torch's global generator, which all threads share.
        stop: Ends the run before its next step when set.
        train: What trains the model, with batches of its own; None to record its layers.

    Raises:
        Cancelled: if `stop` was set.
    """
    try:
        with building or nullcontext():
            model = cell.build(width, seed, plan.device)
            optimizer = cell.optimizer(model, width)
            batch = cell.batch(seed if batch_seed is None else batch_seed, plan.device) if train is None else None
        of = {"width": width, "seed": seed}
        if train is None:
            recorded = replace(plan, modules=None) if cell.lists else plan
            records = run(model, optimizer, batch, cell.loss, recorded, **of, roles=cell.roles, stop=stop)
            records = by_place(records, model, cell.lists, plan.modules) if cell.lists else records
        else:
            records = train(model, optimizer, width, seed)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        release(plan.device)
        return Outcome(None)
    drew = records.attrs.pop(RECOMPUTES, False) or cell.drew
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return Outcome(records, drew, sum(tensor.nbytes for tensor in tensors) / max(1, weights))
