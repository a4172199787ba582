"""What recording costs a flax model: a recorded step against the bare one, both compiled, and compile time apart.

    python benchmarks/jax_speed.py [WIDTH ...]   by default 64 128 256 512; writes benchmarks/jax_speed.md

All times are of the processor, since other programs may use it too. Last, whether several seeds in one program (vmap)
take less than one after the other.
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import coordcheck.jax as cj
from coordcheck.jax import gpt
from coordcheck.jax.cell import JaxCell

ROUNDS, STEPS, SEEDS = 5, 2, 4  # a round takes some steps of each in turn, so that what else the machine does meets all
KINDS: dict[str, tuple[str, ...]] = {
    "bare": (),
    "activation": ("activation",),
    "default kinds": ("activation", "delta", "effective_update"),
}


def step_of(cell: JaxCell, width: int, kinds: tuple[str, ...], seeds: int = 1) -> tuple[Callable[[], Any], float]:
    """A function that takes some steps of training, and the seconds that their program took to compile."""
    transformation = cell.optimizer(width)
    batch = cell.batch(0)
    parameters, rest, state = cell.begun(width, 0)
    loss = cell.loss(width)
    graded = cj.value_and_grad(loss, kinds) if kinds else None

    def step(parameters: Any, state: Any, start: Any) -> Any:
        if graded is None:
            told, gradients = jax.value_and_grad(loss)(parameters, rest, batch)
        else:
            (_, told), gradients = graded(parameters, rest, batch, start=start)
        updates, state = transformation.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state, told

    start = None
    if graded is not None and "delta" in kinds:
        shapes = jax.eval_shape(lambda p: graded(p, rest, batch)[0][1].copies, parameters)
        start = parameters, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    if seeds > 1:
        step = jax.vmap(step)
        parameters, state, start = jax.tree.map(lambda x: jnp.stack([x] * seeds), (parameters, state, start))
    begin = time.process_time()
    compiled = jax.jit(step).lower(parameters, state, start).compile()
    seconds = time.process_time() - begin

    def some_steps() -> Any:
        now, after = parameters, state
        for _ in range(STEPS):
            now, after, told = compiled(now, after, start)
        return jax.block_until_ready((now, told))

    return some_steps, seconds


def seconds_of(programs: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of one step of each, taken in turn."""
    found: dict[str, list[float]] = {name: [] for name in programs}
    for round_ in range(ROUNDS + 1):
        for name, some_steps in programs.items():
            begin = time.process_time()
            some_steps()
            if round_:
                found[name].append((time.process_time() - begin) / STEPS)
    return found


def recorded(cell: JaxCell, width: int) -> str:
    """A row: what recording adds to a step, and to compiling it."""
    programs = {name: step_of(cell, width, kinds) for name, kinds in KINDS.items()}
    found = seconds_of({name: steps for name, (steps, _) in programs.items()})
    more = {
        name: statistics.median(a / b for a, b in zip(of, found["bare"], strict=True)) - 1 for name, of in found.items()
    }
    shown = [f"{1e3 * min(found['bare']):.1f} ms", f"{more['activation']:+.0%}", f"{more['default kinds']:+.0%}"]
    shown += [f"{programs[name][1]:.1f} s" for name in KINDS]
    return f"| {width} | {' | '.join(shown)} |"


def batched(cell: JaxCell, width: int) -> str:
    """A row: the step of the default kinds for one seed, and for several at once."""
    kinds = KINDS["default kinds"]
    programs = {seeds: step_of(cell, width, kinds, seeds) for seeds in (1, SEEDS)}
    found = seconds_of({str(seeds): steps for seeds, (steps, _) in programs.items()})
    ms = [1e3 * statistics.median(found[str(seeds)]) / seeds for seeds in (1, SEEDS)]
    return f"| {width} | {ms[0]:.1f} ms | {ms[1]:.1f} ms | {programs[1][1]:.1f} s | {programs[SEEDS][1]:.1f} s |"


def main(widths: list[int]) -> None:
    """Measures, prints and writes the tables."""
    tokens = np.random.default_rng(0).integers(0, 256, (8, 65)).astype(np.int32)
    cell = JaxCell(gpt.build, (tokens[:, :-1], tokens[:, 1:]), gpt.optimizer, None, (64, 128, 256))
    lines = ["| width | step, bare | activation | default kinds | compile, bare | activation | default kinds |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for width in widths:
        lines.append(recorded(cell, width))
        print(lines[-1], flush=True)
    lines += ["", f"| width | a seed's step, alone | of {SEEDS} seeds at once | compile, alone | {SEEDS} at once |"]
    lines += ["|---|---|---|---|---|"]
    for width in (min(widths), max(widths)):
        lines.append(batched(cell, width))
        print(lines[-1], flush=True)
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main([int(width) for width in sys.argv[1:]] or [64, 128, 256, 512])
