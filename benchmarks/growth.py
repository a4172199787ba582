"""How do time and memory grow, and does the estimate before a sweep come true?

    python benchmarks/growth.py measure picture    # one axis at a time: width, depth, seeds, steps, recorded modules
    python benchmarks/growth.py estimate           # what was announced against what it took

Each point is a process of its own on the same two cores, a run on one of them: the bare loop and the default kinds
take turns, 3 to 15 times. What an axis does not say stays at width 256, 3 layers, one seed, 4 steps and all modules.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
from speed import CORES, bare_run, cell_of, pin

AXES: dict[str, list[int]] = {
    "width": [64, 128, 256, 512, 1024, 2048],
    "depth": [1, 2, 4, 8, 16],
    "seeds": [1, 2, 4, 8],
    "steps": [2, 4, 8, 16],
    "modules": [1, 10, 20, 30, 41],
}
SEEDS = 5
USUAL = {"width": 256, "depth": 3, "seeds": 1, "steps": 4, "modules": 41}
LABELS = {"width": "width", "depth": "layers", "seeds": "seeds", "steps": "steps", "modules": "recorded modules"}
KINDS = ["activation", "delta", "effective_update"]
REPETITIONS = 3, 15  # at least and at most
ENOUGH = 6.0  # seconds
POINTS = Path(__file__).parent / "growth.csv"
PICTURE = Path(__file__).parent.parent / "plots" / "gallery" / "growth.png"
SWEEPS = {
    "the default": [],
    "widths 128 to 2048, 3 seeds": ["widths=[128,256,512,1024,2048]", "seeds=3"],
    "12 layers, widths 128 to 1024, 3 seeds": ["widths=[128,256,512,1024]", "model.depth=12", "seeds=3"],
    "T5, widths 64 to 512": ["model=t5", "widths=[64,128,256,512]"],
    "post-LN, widths 64 to 512, 3 seeds": ["experiment=attention_qkv_init", "widths=[64,128,256,512]", "seeds=3"],
    "transformers' GPT-2, widths 64 to 1024, 3 seeds": [
        "experiment=hf_single_init",
        "model.config=gpt2",
        "widths=[64,128,256,512,1024]",
        "seeds=3",
    ],
}


def resident() -> float:
    """Largest memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def point(width: int, depth: int, seeds: int, steps: int, modules: int) -> dict[str, float]:
    """Seconds and memory of the bare loop and of a recorded one, in this process."""
    pin()
    import torch

    from coordcheck.config.schema import Precision
    from coordcheck.run.queue import RunQueue
    from coordcheck.run.train import RunPlan

    cpu, workers = torch.device("cpu"), min(CORES, seeds)
    torch.set_num_threads(1)
    cell = cell_of(f"model.depth={depth}")
    names = [name or "(model)" for name, _ in cell.on_meta(width).named_modules() if not name.endswith("blocks")]
    chosen = None if modules == USUAL["modules"] else names[:: max(1, len(names) // modules)][:modules]

    def bare() -> None:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda seed: bare_run(cell, width, seed, cpu, steps), range(seeds)))

    def recorded() -> None:
        plan = RunPlan(steps, KINDS, chosen, cpu, Precision.fp32)
        RunQueue(cell, plan, [width], range(seeds), workers=workers).finish()

    def timed(work: Any) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    imported = resident()
    bare()
    memory = resident() - imported
    recorded()
    with_records = resident() - imported
    fewest, most = REPETITIONS
    turns = [(timed(bare), timed(recorded)) for _ in range(fewest)]
    while len(turns) < most and sum(b + r for b, r in turns) < ENOUGH:
        turns.append((timed(bare), timed(recorded)))
    return {
        "bare": statistics.median(b for b, _ in turns),
        "recorded": statistics.median(r for _, r in turns),
        "share": statistics.median(r / b for b, r in turns) - 1,
        "bare_memory": memory,
        "recorded_memory": with_records,
    }


def apart(*arguments: str) -> dict[str, float]:
    """The last line that this program prints with `arguments`, in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    values: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return values


def measure() -> None:
    """Every point of every axis."""
    rows = []
    for axis, values in AXES.items():
        for value in values:
            at = {**USUAL, axis: value}
            rows.append({"axis": axis, "value": value, **apart("point", json.dumps(at))})
            print(rows[-1], flush=True)
    pd.DataFrame(rows).round(4).to_csv(POINTS, index=False)


def picture() -> None:
    """Seconds above, memory below, a column for each axis; over the points what recording adds."""
    import matplotlib.pyplot as plt

    frame = pd.read_csv(POINTS)
    figure, axes = plt.subplots(2, len(AXES), figsize=(15, 6.2), sharex="col", sharey="row", layout="constrained")
    for column, axis in enumerate(AXES):
        rows = frame[frame["axis"] == axis]
        for row, (bare, recorded, label) in enumerate(
            (("bare", "recorded", "seconds"), ("bare_memory", "recorded_memory", "GiB more than after imports"))
        ):
            panel = axes[row, column]
            panel.plot(rows["value"], rows[bare], "o-", color="#0072B2", label="training alone")
            panel.plot(rows["value"], rows[recorded], "s--", color="#D55E00", label="with the default kinds recorded")
            if axis != "modules":
                panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(rows["value"], [str(value) for value in rows["value"]])
            panel.minorticks_off()
            panel.tick_params(axis="x", labelsize=8)
            panel.grid(alpha=0.3)
            panel.margins(x=0.12, y=0.18)
            if column == 0:
                panel.set_ylabel(label)
        for _, at in rows.iterrows():
            axes[0, column].annotate(
                f"{100 * at['share']:+.0f} %",
                (at["value"], at["recorded"]),
                xytext=(0, 8),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        axes[1, column].set_xlabel(LABELS[axis])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(PICTURE, dpi=110)


def announced(overrides: list[str]) -> dict[str, float]:
    """A sweep without its control, in this process: what was estimated after its first runs, and what it took."""
    pin()
    import torch

    from coordcheck.run.estimate import GIB, makespan, useful_workers
    from coordcheck.run.queue import RunQueue, share_cores
    from coordcheck.run.train import RunPlan

    cpu = torch.device("cpu")
    cell = cell_of(*overrides)
    config = cell.config
    workers, threads = share_cores(cpu, SEEDS)
    torch.set_num_threads(threads)
    plan = RunPlan(config.steps, config.kinds, None, cpu, config.precision)
    imported = resident()
    queue = RunQueue(cell, plan, config.widths, range(SEEDS), workers=workers)
    measured = queue.measure()
    left, needed = queue.estimate(measured)
    queue.workers = workers = min(workers, useful_workers(left, min(measured.values())))
    start = time.perf_counter()
    queue.finish()
    took = time.perf_counter() - start
    result = {"estimated": makespan(left, workers), "took": took, "estimated_memory": needed / GIB}
    return result | {"memory": resident() - imported, "at_a_time": workers}


def estimate() -> None:
    """The table of what was announced."""
    from coordcheck.report.tables import markdown_table

    rows = []
    for name, overrides in SWEEPS.items():
        seen = apart("announced", json.dumps(overrides))
        rows.append(
            {
                "sweep": name,
                "estimated, s": f"{seen['estimated']:.1f}",
                "took, s": f"{seen['took']:.1f}",
                "widest run, GiB": f"{seen['estimated_memory']:.2f}",
                "memory of all runs at a time, GiB": f"{seen['memory']:.2f} ({seen['at_a_time']:.0f})",
            }
        )
    print(f"{CORES} cores\n\n{markdown_table(pd.DataFrame(rows))}")


def main(*commands: str) -> None:
    """Runs `commands`, or a point for the others."""
    if commands[0] == "point":
        print(json.dumps(point(**json.loads(commands[1]))))
    elif commands[0] == "announced":
        print(json.dumps(announced(json.loads(commands[1]))))
    else:
        for command in commands:
            {"measure": measure, "picture": picture, "estimate": estimate}[command]()


if __name__ == "__main__":
    main(*sys.argv[1:])
