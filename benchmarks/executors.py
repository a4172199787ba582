"""What it costs and gains to spread the runs of a check: set-up of a worker, two processes on two cores, 64 GPUs.

    python benchmarks/executors.py setup      # seconds from asking for a worker to its first outcome, by executor
    python benchmarks/executors.py speed      # the same runs in threads and in processes, narrow ones and wide ones
    python benchmarks/executors.py simulate   # 64 GPUs as a scheduler would fill them, with the times of RUNS
    python benchmarks/executors.py            # all three; executors.md is the output
    python benchmarks/executors.py --rounds 1 # once each, where three times take too long

Engines that are not installed are left out. Wall-clock times want a free machine: where others are at work, two
processes get twice the share of one, and that looks like a gain. So they are set against two threads; processor times
and the load stand beside them.
"""

import argparse
import heapq
import importlib.util
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from coordcheck.config.call import executor_of
from coordcheck.config.load import load
from coordcheck.judge.looks import pilot, seeds_at
from coordcheck.models.families import make_cell
from coordcheck.report.tables import markdown_table
from coordcheck.run.executors import Engine, engine_of
from coordcheck.run.one import pack, run_one
from coordcheck.run.queue import RunQueue
from coordcheck.run.train import RunPlan

CPU = torch.device("cpu")
ENGINES = {
    "processes": {},
    "submitit": {"cluster": "local"},
    "ray": {"num_cpus": 2},
    "dask": {"dashboard_address": ":0", "n_workers": 2},
}
SWEEPS = {"narrow": ((32, 64, 128), 8), "wide": ((512,), 4)}  # widths, and runs at each
GPUS = (1, 8, 64)
# a run at the first four is measured; at twice the width it takes four times as long where a device is always full
WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096)


def queue_of(widths: Sequence[int], seeds: int) -> RunQueue:
    """The runs of the default GPT."""
    config = load(["base_width=32"])
    plan = RunPlan(config.steps, config.kinds, None, CPU, config.precision)
    return RunQueue(make_cell(config), plan, widths, range(seeds))


def set_up(name: str, rounds: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds until a worker has made its first run, of its second run, and processor seconds of all that was begun."""
    queue = queue_of(SWEEPS["narrow"][0], 1)
    packed = pack(queue.cell, queue.plan, None, None)
    first, second, processor = [], [], []
    for _ in range(rounds):
        before = _processor(resource.RUSAGE_CHILDREN)
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            with engine_of(executor_of({"name": name, **ENGINES[name]}), CPU, Path(folder), 1) as engine:
                assert engine is not None
                executor = engine.executor(1)
                for into in (first, second):
                    outcome = executor.submit(run_one, packed, 32, 0).result()
                    assert outcome.records is not None, outcome.error
                    into.append(time.perf_counter() - begun)
                    begun = time.perf_counter()
        processor.append(_processor(resource.RUSAGE_CHILDREN) - before)
    return first, second, processor


def setup(rounds: int) -> str:
    """The table of what workers cost before they work."""
    torch.set_num_threads(1)
    queue = queue_of(SWEEPS["narrow"][0], 1)
    packed = pack(queue.cell, queue.plan, None, None)
    run_one(packed, 32, 0)
    before = _processor()
    run_one(packed, 32, 1)
    alone = _processor() - before
    rows = []
    for name in ENGINES:
        if importlib.util.find_spec({"processes": "loky", "dask": "distributed"}.get(name, name)) is None:
            continue
        first, second, processor = map(statistics.median, set_up(name, rounds))
        own = f"{processor:.1f}" if processor > 0.1 else "-"  # Ray's processes are no children of this one
        rows.append({"executor": name, "first run, s": f"{first:.1f}", "second run, s": f"{second:.1f}", "CPU, s": own})
    return f"A run in this process takes {alone:.2f} s of a processor.\n\n{markdown_table(pd.DataFrame(rows))}"


def speed(rounds: int) -> str:
    """The same runs one by one, in two threads, and in two processes that are there already."""
    rows = []
    for name, (widths, seeds) in SWEEPS.items():
        taken: dict[str, list[tuple[float, float]]] = {"one by one": [], "two threads": [], "two processes": []}
        torch.set_num_threads(1)
        with engine_of(executor_of("processes"), CPU, None, None) as engine:
            assert engine is not None
            for _ in range(1 + rounds):
                for kind, made in taken.items():
                    queue = queue_of(widths, seeds)
                    queue.workers = 1 if kind == "one by one" else 2
                    queue.engine = engine if kind == "two processes" else None
                    made.append(_finished(queue, engine))
        wall, processor = ({k: statistics.median(r[i] for r in of[1:]) for k, of in taken.items()} for i in (0, 1))
        rows.append(
            {
                "runs": f"{name}: widths {', '.join(map(str, widths))}, {seeds} at each",
                **{f"{kind}, s": f"{wall[kind]:.1f}" for kind in taken},
                **{f"{kind}, CPU s": f"{processor[kind]:.1f}" for kind in taken},
                "two threads / two processes": f"{wall['two threads'] / wall['two processes']:.2f}",
            }
        )
    said = f"Medians of {rounds} round{'s' * (rounds > 1)} in turn, one thread a run."
    return f"{said}\n\n{markdown_table(pd.DataFrame(rows))}"


def _finished(queue: RunQueue, engine: Engine) -> tuple[float, float]:
    """Seconds and processor seconds of a queue, those of its workers with them."""

    def processor() -> float:
        workers = engine.executor(2)
        at_work = [workers.submit(_processor_after, 0.2) for _ in range(2)]  # so long that both are asked
        return _processor() + sum(future.result() for future in at_work)

    before = processor() if queue.engine is not None else _processor()
    start = time.perf_counter()
    queue.finish()
    took = time.perf_counter() - start
    return took, (processor() if queue.engine is not None else _processor()) - before


def _processor(whose: int = resource.RUSAGE_SELF) -> float:
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime


def _processor_after(seconds: float) -> float:
    time.sleep(seconds)
    return _processor()


def measured() -> dict[int, float]:
    """Processor seconds of a run of the default GPT by width, the wide ones from the narrow ones."""
    torch.set_num_threads(1)
    queue = queue_of(WIDTHS[:4], 1)
    packed = pack(queue.cell, queue.plan, None, None)
    run_one(packed, WIDTHS[0], 0)
    seconds: dict[int, float] = {}
    for width in WIDTHS:
        if width <= WIDTHS[3]:
            start = _processor()
            run_one(packed, width, 0)
            seconds[width] = _processor() - start
        else:
            seconds[width] = 4 * seconds[width // 2]
    return seconds


def makespan(seconds: Sequence[float], workers: int, set_up: float) -> float:
    """From the first to the last of runs that are given, in this order, to whoever is free."""
    free = [set_up] * workers
    for each in seconds:
        heapq.heappush(free, heapq.heappop(free) + each)
    return max(free)


def simulate(rounds: int) -> str:
    """Makespans on 1, 8 and 64 GPUs against the ideal: all work in equal parts, or the longest run."""
    of = measured()
    before = statistics.median(set_up("processes", rounds)[2]) - 2 * of[WIDTHS[0]]
    sweeps = {
        "a pilot of seeds=auto": [of[width] for width, seeds in seeds_at(pilot(WIDTHS)).items() for _ in seeds],
        "5 seeds": [of[width] for width in WIDTHS for _ in range(5)],
        "20 seeds": [of[width] for width in WIDTHS for _ in range(20)],
    }
    rows = []
    for name, runs in sweeps.items():
        for gpus in GPUS:
            longest_first = makespan(sorted(runs, reverse=True), gpus, before)
            as_listed = makespan(runs, gpus, before)
            ideal = max(sum(runs) / gpus, max(runs))
            rows.append(
                {
                    "runs": f"{name}, {len(runs)}",
                    "GPUs": gpus,
                    "longest first, s": f"{longest_first:.0f}",
                    "narrow ones first, s": f"{as_listed:.0f}",
                    "ideal, s": f"{ideal:.0f}",
                    "longest first / ideal": f"{longest_first / ideal:.2f}",
                }
            )
    said = ", ".join(f"{width}: {seconds:.2f}" for width, seconds in of.items())
    said = f"Seconds of a run by width: {said}. A worker is set up in {before:.1f} s."
    return f"{said}\n\n{markdown_table(pd.DataFrame(rows))}"


PARTS = {"setup": setup, "speed": speed, "simulate": simulate}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="|".join(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for part in arguments.parts or PARTS:
        table = PARTS[part](arguments.rounds)
        print(f"## {part}\n\nLoad average {os.getloadavg()[0]:.1f}. {table}\n", flush=True)
