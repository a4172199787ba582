"""What does recording cost, and how long does mup's own recorder take for the same sweep?

    python benchmarks/speed.py small wide --repetitions 5

Contenders take turns, each in a process of its own on the same two cores, on the same sweep: GPT of 3 layers in muP,
8 x 64 tokens, 4 recorded steps of Adam. Reported are the medians over the repetitions, from the first build to
the frame of records (of the bare loop, to its last step), and the largest memory of the process.

mup         ``mup.coord_check.get_coord_data`` as released: base shapes from a file, no progress bar, l1 of outputs only
bare        our models, batches and optimizer steps with nothing recorded
activation  coordcheck, activations only; and with more kinds, and in bfloat16
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

SWEEPS = {"small": ([64, 128, 256, 512], 5), "wide": ([128, 256, 512, 1024, 2048], 1)}
CORES = 2
STEPS = 4
COORDCHECK = {
    "activation": (["activation"], "fp32"),
    "+ delta": (["activation", "delta"], "fp32"),
    "+ effective_update": (["activation", "delta", "effective_update"], "fp32"),
    "+ gradient": (["activation", "delta", "effective_update", "gradient"], "fp32"),
    "activation, bf16": (["activation"], "bf16"),
}
CONTENDERS = ("mup", "bare", *COORDCHECK)
PHASES = ("build", "forward", "backward", "optimizer")


def cell_of(*overrides: str) -> Any:
    """The default GPT."""
    from coordcheck.config import load
    from coordcheck.families import make_cell

    cell = make_cell(load(overrides))
    _ = cell.roles
    return cell


def pin() -> None:
    """Leaves this process the same two cores as all others."""
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:CORES]))


def run_mup(widths: list[int], seeds: int) -> dict[str, float]:
    """Mup's own recorder, on all threads."""
    import mup
    import torch
    from mup.coord_check import get_coord_data

    torch.set_num_threads(CORES)
    cell = cell_of()
    with tempfile.TemporaryDirectory() as directory:
        file = f"{directory}/base.bsh"
        base, delta = (cell.on_meta(factor * cell.config.base_width) for factor in (1, 2))
        mup.make_base_shapes(base, delta, file)

        def lazy(width: int) -> Callable[[], torch.nn.Module]:
            return lambda: mup.set_base_shapes(cell.structure(width), file)

        inputs, targets = cell.batch(0, torch.device("cpu"))
        start = time.perf_counter()
        get_coord_data(
            {width: lazy(width) for width in widths},
            [(inputs, targets.flatten())],
            optimizer="adam",
            lr=cell.config.optimizer.lr,
            nsteps=STEPS,
            nseeds=seeds,
            cuda=False,
            flatten_output=True,
            lossfn="xent",
            show_progress=False,
        )
        return {"seconds": time.perf_counter() - start}


def bare_run(cell: Any, width: int, seed: int, spent: dict[str, float], steps: int = STEPS) -> None:
    """One run with nothing recorded."""
    import torch

    marks = [time.perf_counter()]

    def lap(phase: str) -> None:
        marks.append(time.perf_counter())
        spent[phase] = spent.get(phase, 0.0) + marks[-1] - marks[-2]

    cpu = torch.device("cpu")
    model = cell.build(width, seed, cpu)
    optimizer, batch = cell.optimizer(model, width), cell.batch(seed, cpu)
    lap("build")
    for step in range(steps):
        loss = cell.loss(model, batch)
        lap("forward")
        if step < steps - 1:
            loss.backward()
            lap("backward")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            lap("optimizer")


def run_bare(widths: list[int], seeds: int) -> dict[str, float]:
    """The same runs as ours, as many at a time."""
    import torch

    from coordcheck.sweep import share_cores

    workers, threads = share_cores(torch.device("cpu"), seeds)
    torch.set_num_threads(threads)
    cell, spent = cell_of(), dict.fromkeys(PHASES, 0.0)
    start = time.perf_counter()
    runs = sorted(((w, s) for w in widths for s in range(seeds)), reverse=True)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda run: bare_run(cell, *run, spent), runs))
    seconds = time.perf_counter() - start
    return {"seconds": seconds, **spent, "products": seconds_of_products(cell, runs)}


def seconds_of_products(cell: Any, runs: list[tuple[int, int]]) -> float:
    """What the matrix products of all passes take at the rate of one large product: no loop is faster."""
    import torch

    from coordcheck.estimate import dry_run

    torch.set_num_threads(CORES)
    x, size = torch.ones(2048, 2048), 2048
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        x @ x
        best = min(best, time.perf_counter() - start)
    of_width = {width: dry_run(cell, width, 0).flops for width, _ in runs}
    return sum(of_width[width] for width, _ in runs) * (3 * STEPS - 2) * best / (2 * size**3)


def run_coordcheck(widths: list[int], seeds: int, kinds: list[str], precision: str) -> dict[str, float]:
    """Our own sweep without its control; the fit, verdict and files are timed apart."""
    import torch

    from coordcheck.config import Precision
    from coordcheck.result import CoordCheck
    from coordcheck.sweep import RunQueue, share_cores
    from coordcheck.train import RunPlan

    cpu = torch.device("cpu")
    workers, threads = share_cores(cpu, seeds)
    torch.set_num_threads(threads)
    cell = cell_of()
    plan = RunPlan(STEPS, kinds, None, cpu, Precision(precision))
    start = time.perf_counter()
    records = RunQueue(cell, plan, widths, range(seeds), workers=workers).finish().records
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        CoordCheck.from_records(records, cell.config.gate).save(Path(directory))
    return {"seconds": seconds, "memory": memory, "report": time.perf_counter() - start}


def run_here(contender: str, sweep: str) -> dict[str, float]:
    """One contender in this process."""
    pin()
    widths, seeds = SWEEPS[sweep]
    if contender == "mup":
        result = run_mup(widths, seeds)
    elif contender == "bare":
        result = run_bare(widths, seeds)
    else:
        result = run_coordcheck(widths, seeds, *COORDCHECK[contender])
    return {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20} | result


def run_apart(contender: str, sweep: str) -> dict[str, float]:
    """One contender in a process of its own."""
    command = [sys.executable, __file__, sweep, "--contender", contender]
    start = time.perf_counter()
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    result: dict[str, float] = json.loads(out.splitlines()[-1])
    return result | {"process": time.perf_counter() - start}


def table(results: pd.DataFrame) -> pd.DataFrame:
    """Medians and ranges of one sweep, and ratios to the bare loop and to mup within each repetition."""
    seconds = results.pivot(index="repetition", columns="contender", values="seconds")
    rows = []
    for contender in CONTENDERS:
        own = results[results["contender"] == contender]
        rows.append(
            {
                "contender": contender,
                "seconds": f"{own['seconds'].median():.2f} ({own['seconds'].min():.2f} to {own['seconds'].max():.2f})",
                "of the bare loop": f"{(seconds[contender] / seconds['bare']).median():.2f}",
                "faster than mup": f"{(seconds['mup'] / seconds[contender]).median():.2f}",
                "whole process": f"{own['process'].median():.1f}",
                "memory, GiB": f"{own['memory'].median():.2f}",
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", nargs="+", choices=SWEEPS)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--contender", choices=CONTENDERS, help="run this one alone, here, and print JSON")
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(run_here(arguments.contender, arguments.sweep[0])))
        return
    from coordcheck.check import current_versions
    from coordcheck.report import markdown_table

    print(platform.processor() or platform.machine(), current_versions())
    for sweep in arguments.sweep:
        rows = [
            {"contender": contender, "repetition": repetition, **run_apart(contender, sweep)}
            for repetition in range(arguments.repetitions)
            for contender in CONTENDERS
        ]
        results = pd.DataFrame(rows)
        widths, seeds = SWEEPS[sweep]
        print(f"\n{sweep}: widths {widths}, {seeds} seeds\n\n{markdown_table(table(results))}")
        bare = results[results["contender"] == "bare"]
        phases, products = bare[list(PHASES)].median(), (bare["products"] / bare["seconds"]).median()
        shares = ", ".join(f"{phase} {100 * phases[phase] / phases.sum():.0f} %" for phase in PHASES)
        report = results[results["contender"] == "+ effective_update"]["report"].median()
        print(
            f"\nThe bare loop's time: {shares}; at the rate of one large product its matrix products alone would take "
            f"{100 * products:.0f} %. Fit, verdict, tables and pictures of the default kinds: {report:.1f} s."
        )


if __name__ == "__main__":
    main()
