"""The runs of a cell: one compiled step a width, all seeds through it, finished runs kept."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from coordcheck.jax.cell import JaxCell, times
from coordcheck.jax.records import records
from coordcheck.jax.told import DELTA, UPDATE, Told, value_and_grad
from coordcheck.records.schema import CLASSES, LOSS
from coordcheck.records.store import RunStore
from coordcheck.run.theirs import theirs

SINCE = (DELTA, UPDATE)  # kinds that need a step before


@dataclass(frozen=True)
class Plan:
    """What all runs of a check have in common.

    Attributes:
        steps: Forward passes recorded.
        kinds: What is recorded.
        modules: Patterns of module names to record, None for all.
    """

    steps: int
    kinds: Sequence[str]
    modules: Sequence[str] | None


@dataclass
class Runs:
    """The runs of one cell.

    Attributes:
        cell: What is built.
        plan: What all runs have in common.
        widths: d_model.
        seeds: One run at each width for each.
        store: Where finished runs are kept; None keeps nothing.
        title: Shown before the progress bar.
        compiling: Seconds that each width took to compile.
    """

    cell: JaxCell
    plan: Plan
    widths: Sequence[int]
    seeds: Sequence[int]
    store: RunStore | None = None
    title: str = "check"
    compiling: dict[int, float] = field(default_factory=dict)
    _done: dict[tuple[int, int], pd.DataFrame] = field(default_factory=dict)

    def try_out(self) -> str:
        """A hash of what the two narrowest models do: a user's functions cannot be read."""
        digest = hashlib.sha256()
        for width in sorted(self.widths)[:2]:
            self._done[width, self.seeds[0]] = self._train(width, self.seeds[0])
            digest.update(self._done[width, self.seeds[0]].to_csv(index=False).encode())
        return digest.hexdigest()

    def finish(self) -> pd.DataFrame:
        """The records of all runs, with the cell's columns first, in the order of width and seed."""
        every = [(width, seed) for width in sorted(self.widths) for seed in self.seeds]
        with _progress() as progress:
            bar = progress.add_task(self.title, total=len(every), run="")
            for width, seed in every:
                took = f", compiled in {self.compiling[width]:.0f} s" if width in self.compiling else ""
                took = took if any(key[0] == width for key in self.cell.programs) else ", compiling"
                progress.update(bar, run=f"width {width} seed {seed}{took}")
                self._done[width, seed] = self._one(width, seed)
                progress.advance(bar)
        frame = pd.concat([self._done[run] for run in every], ignore_index=True)
        for position, (name, value) in enumerate(self.cell.columns.items()):
            frame.insert(position, name, value)
        if not self.cell.cross_entropy:
            frame.attrs.pop(CLASSES, None)
        return frame

    def _one(self, width: int, seed: int) -> pd.DataFrame:
        if (width, seed) in self._done:
            found = self._done[width, seed]
        else:
            stored = self.store.get(width, seed) if self.store is not None else None
            if stored is not None:
                return stored
            found = self._train(width, seed)
        if self.store is not None and (width, seed) not in self.store:
            self.store.put(width, seed, found)
        return found

    def _train(self, width: int, seed: int) -> pd.DataFrame:
        key = width, self.plan.steps, tuple(self.plan.kinds), tuple(self.plan.modules or ())
        if key not in self.cell.programs:
            begin = time.perf_counter()
            with theirs("the model, in a training step,"):
                self.cell.programs[key] = compiled(self.cell, self.plan, width, seed)
            self.compiling[width] = time.perf_counter() - begin
        step, copies = self.cell.programs[key]
        batch, rates = self.cell.batch(seed), self.cell.factors(width)[0]
        parameters, rest, state = self.cell.begun(width, seed)
        start = parameters, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), copies)
        told: list[Told] = []
        for _ in range(self.plan.steps):
            parameters, state, said = step(parameters, rest, state, start, batch, rates)
            if not told:
                start = start[0], said.copies
            told.append(said.without(() if told else SINCE))
        found = records(told, width=width, seed=seed, roles=self.cell.roles)
        _refuse_nothing(found, self.plan, told[0])
        return found


def compiled(cell: JaxCell, plan: Plan, width: int, seed: int) -> tuple[Any, Any]:
    """A training step of one width, compiled once for all seeds and for the control, and the shapes of its copies.

    Step 0 is the same program: what it compares with itself does not count.
    """
    transformation = cell.optimizer(width)
    loss = value_and_grad(cell.loss(width), plan.kinds, plan.modules)

    def step(parameters: Any, rest: Any, state: Any, start: Any, batch: Any, rates: Any) -> Any:
        (_, told), gradients = loss(parameters, rest, batch, start=start)
        updates, state = transformation.update(gradients, state, parameters)
        return optax.apply_updates(parameters, times(updates, rates)), state, told

    batch = cell.batch(seed)
    begun = jax.eval_shape(lambda: cell.begun(width, seed))
    copies = jax.eval_shape(lambda p, r, b: loss(p, r, b)[0][1].copies, begun[0], begun[1], batch)
    return jax.jit(step).lower(*begun, (begun[0], copies), batch, cell.factors(width)[0]).compile(), copies


def _refuse_nothing(found: pd.DataFrame, plan: Plan, told: Told) -> None:
    """Makes sure that there is something to judge."""
    if found["role"].isin([LOSS]).all():
        raise ValueError(
            f"nothing was recorded but the loss: `modules` {plan.modules} and `kinds` {list(plan.kinds)} select "
            f"nothing that the model computes. Modules of flax are recorded by themselves; elsewhere say "
            f"x = coordcheck.jax.tap('hidden', x). For example modules=['*'], kinds=['activation'] and steps=4."
        )


@contextmanager
def _progress() -> Iterator[Progress]:
    """A progress bar on the terminal, nothing elsewhere."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%  {task.fields[run]}")
    hidden = not console.is_terminal
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, disable=hidden) as progress:
        yield progress
