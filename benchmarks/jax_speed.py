"""What recording costs a flax model: a recorded step against the bare one, both compiled, and compile time apart.

python benchmarks/jax_speed.py [WIDTH ...]   by default 64 128 256 512; writes benchmarks/jax_speed.md
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import coordcheck.jax as cj
from coordcheck.jax import gpt
from coordcheck.jax.cell import JaxCell

ROUNDS, STEPS = 7, 4  # a round takes some steps of each in turn, so that what else the machine does meets all
KINDS: dict[str, tuple[str, ...]] = {
    "bare": (),
    "activation": ("activation",),
    "default kinds": ("activation", "delta", "effective_update"),
}


def step_of(cell: JaxCell, width: int, kinds: tuple[str, ...]) -> tuple[Callable[[], Any], float]:
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
        start = parameters, jax.jit(lambda p: graded(p, rest, batch)[0][1].copies)(parameters)
    begin = time.perf_counter()
    compiled = jax.jit(step).lower(parameters, state, start).compile()
    seconds = time.perf_counter() - begin

    def some_steps() -> Any:
        now, after = parameters, state
        for _ in range(STEPS):
            now, after, told = compiled(now, after, start)
        return jax.block_until_ready((now, told))

    return some_steps, seconds


def main(widths: list[int]) -> None:
    """Measures, prints and writes the table."""
    tokens = np.random.default_rng(0).integers(0, 256, (8, 65)).astype(np.int32)
    cell = JaxCell(gpt.build, (tokens[:, :-1], tokens[:, 1:]), gpt.optimizer, None, (64, 128, 256))
    lines = ["| width | step, bare | activation | default kinds | compile, bare | activation | default kinds |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for width in widths:
        programs = {name: step_of(cell, width, kinds) for name, kinds in KINDS.items()}
        seconds: dict[str, list[float]] = {name: [] for name in KINDS}
        for round_ in range(ROUNDS + 1):
            for name, (some_steps, _) in programs.items():
                begin = time.process_time()
                some_steps()
                if round_:
                    seconds[name].append((time.process_time() - begin) / STEPS)
        least = {name: min(of) for name, of in seconds.items()}
        ratio = {
            name: statistics.median(a / b for a, b in zip(of, seconds["bare"], strict=True)) - 1
            for name, of in seconds.items()
        }
        shown = [f"{1e3 * least['bare']:.1f} ms", f"{ratio['activation']:+.0%}", f"{ratio['default kinds']:+.0%}"]
        shown += [f"{programs[name][1]:.1f} s" for name in KINDS]
        lines.append(f"| {width} | {' | '.join(shown)} |")
        print(lines[-1], flush=True)
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main([int(width) for width in sys.argv[1:]] or [64, 128, 256, 512])
