"""What does recording cost, and how long does mup's own recorder take for the same sweep?

    python benchmarks/speed.py small wide --repetitions 5              # on two CPU cores
    python benchmarks/speed.py small wide deep --device cuda           # on a GPU
    python benchmarks/speed.py launches                                # operations that a GPU would be told; needs none

Contenders take turns, each in a process of its own (on a CPU on the same two cores), on the same sweep: GPT in muP,
8 x 64 tokens, 4 recorded steps of Adam. Reported are the medians over the repetitions, from the first build to
the frame of records (of the bare loop, to its last step), and the largest memory of the process, or on the GPU.

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
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

if TYPE_CHECKING:
    import torch


class Sweep(NamedTuple):
    """GPTs of `depth` layers, at each of `widths` as many runs as `seeds`."""

    widths: list[int]
    seeds: int
    depth: int

    @property
    def runs(self) -> list[tuple[int, int]]:
        """Width and seed, longest first."""
        return sorted(((width, seed) for width in self.widths for seed in range(self.seeds)), reverse=True)


SWEEPS = {
    "small": Sweep([64, 128, 256, 512], 5, 3),
    "wide": Sweep([128, 256, 512, 1024, 2048], 1, 3),
    # 8192 would take 155 GB for weights, gradients and Adam's state alone
    "deep": Sweep([256, 512, 1024, 2048, 4096], 1, 12),
}
CORES = 2
STEPS = 4
COORDCHECK = {
    "activation": (["activation"], "fp32"),
    "+ delta": (["activation", "delta"], "fp32"),
    "+ effective_update": (["activation", "delta", "effective_update"], "fp32"),
    "+ gradient": (["activation", "delta", "effective_update", "gradient"], "fp32"),
    "activation, bf16": (["activation"], "bf16"),
}
DEFAULT = "+ effective_update"
CONTENDERS = ("mup", "bare", *COORDCHECK)
PHASES = ("build", "forward", "backward", "optimizer")


def cell_of(*overrides: str) -> Any:
    """The default GPT."""
    from coordcheck.config.load import load
    from coordcheck.models.families import make_cell

    cell = make_cell(load(overrides))
    _ = cell.roles
    return cell


def pin() -> None:
    """Leaves this process the same two cores as all others."""
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:CORES]))


def synchronize(device: "torch.device") -> None:
    """Waits for a GPU; a CPU is always done."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run_mup(sweep: Sweep, device: "torch.device") -> dict[str, float]:
    """Mup's own recorder, on all threads, its models made where they are trained."""
    import mup
    import torch
    from mup.coord_check import get_coord_data

    torch.set_num_threads(CORES)
    cell = cell_of(f"model.depth={sweep.depth}")
    with tempfile.TemporaryDirectory() as directory:
        file = f"{directory}/base.bsh"
        base, delta = (cell.on_meta(factor * cell.config.base_width) for factor in (1, 2))
        mup.make_base_shapes(base, delta, file)

        def lazy(width: int) -> Callable[[], torch.nn.Module]:
            def build() -> torch.nn.Module:
                with device:
                    return mup.set_base_shapes(cell.structure(width), file)

            return build

        inputs, targets = cell.batch(0, device)
        start = time.perf_counter()
        get_coord_data(
            {width: lazy(width) for width in sweep.widths},
            [(inputs, targets.flatten())],
            optimizer="adam",
            lr=cell.config.optimizer.lr,
            nsteps=STEPS,
            nseeds=sweep.seeds,
            cuda=device.type == "cuda",
            flatten_output=True,
            lossfn="xent",
            show_progress=False,
        )
        synchronize(device)
        return {"seconds": time.perf_counter() - start}


def bare_run(
    cell: Any,
    width: int,
    seed: int,
    device: "torch.device",
    steps: int = STEPS,
    finished: Callable[[str], None] = lambda phase: None,
) -> None:
    """One run with nothing recorded; `finished` is told after each phase."""
    model = cell.build(width, seed, device)
    optimizer, batch = cell.optimizer(model, width), cell.batch(seed, device)
    finished("build")
    for step in range(steps):
        loss = cell.loss(model, batch)
        finished("forward")
        if step < steps - 1:
            loss.backward()
            finished("backward")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            finished("optimizer")


def side_by_side(sweep: Sweep, device: "torch.device", run: Callable[[Any, int, int], None]) -> float:
    """Seconds of the runs of a sweep, as many at a time as ours; `run` takes the cell, a width and a seed."""
    import torch

    from coordcheck.run.queue import share_cores

    workers, threads = share_cores(device, sweep.seeds)
    torch.set_num_threads(threads)
    cell = cell_of(f"model.depth={sweep.depth}")
    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda of: run(cell, *of), sweep.runs))
    synchronize(device)
    return time.perf_counter() - start


def run_bare(sweep: Sweep, device: "torch.device") -> dict[str, float]:
    """The same runs as ours."""
    return {"seconds": side_by_side(sweep, device, lambda *run: bare_run(*run, device))}


def run_phases(sweep: Sweep, device: "torch.device") -> dict[str, float]:
    """What the phases of the bare loop take, each waited for, and what its matrix products would take alone."""
    import torch

    from coordcheck.run.estimate import dry_run, matmul_flops_per_second

    spent = dict.fromkeys(PHASES, 0.0)

    def watched(*run: Any) -> None:
        mark = time.perf_counter()

        def lap(phase: str) -> None:
            nonlocal mark
            synchronize(device)
            before, mark = mark, time.perf_counter()
            spent[phase] += mark - before

        bare_run(*run, device, finished=lap)

    seconds = side_by_side(sweep, device, watched)
    share = {phase: time / sum(spent.values()) for phase, time in spent.items()}
    torch.set_num_threads(CORES)
    flops = {width: dry_run(cell_of(f"model.depth={sweep.depth}"), width, 0).flops for width in sweep.widths}
    products = sum(flops[width] for width, _ in sweep.runs) * (3 * STEPS - 2) / matmul_flops_per_second(device)
    return {"seconds": seconds, **share, "products": products}


def run_coordcheck(sweep: Sweep, device: "torch.device", kinds: list[str], precision: str) -> dict[str, float]:
    """Our own sweep without its control; the fit, verdict and files are timed apart."""
    import torch

    from coordcheck.config.schema import Precision
    from coordcheck.result import CoordCheck
    from coordcheck.run.queue import RunQueue, share_cores
    from coordcheck.run.train import RunPlan

    workers, threads = share_cores(device, sweep.seeds)
    torch.set_num_threads(threads)
    cell = cell_of(f"model.depth={sweep.depth}")
    plan = RunPlan(STEPS, kinds, None, device, Precision(precision))
    start = time.perf_counter()
    records = RunQueue(cell, plan, sweep.widths, range(sweep.seeds), workers=workers).finish().records
    seconds, memory = time.perf_counter() - start, peak_memory(device)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        CoordCheck.from_records(records, cell.config.gate).save(Path(directory))
    return {"seconds": seconds, "memory": memory, "report": time.perf_counter() - start}


def peak_memory(device: "torch.device") -> float:
    """Largest so far, GiB: of this process, or on a GPU."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def run_here(contender: str, sweep: Sweep, device_name: str) -> dict[str, float]:
    """One contender in this process."""
    import torch

    from coordcheck.run.device import pick_device

    device = pick_device(device_name)
    if device.type == "cpu":
        pin()
    else:
        (torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)).sum().item()  # loads the library
    if contender == "mup":
        result = run_mup(sweep, device)
    elif contender == "bare":
        result = run_bare(sweep, device)
    elif contender == "phases":
        result = run_phases(sweep, device)
    else:
        result = run_coordcheck(sweep, device, *COORDCHECK[contender])
    return {"memory": peak_memory(device)} | result


def run_apart(contender: str, sweep: str, device: str) -> dict[str, float]:
    """One contender in a process of its own."""
    command = [sys.executable, __file__, sweep, "--contender", contender, "--device", device]
    start = time.perf_counter()
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
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


def phases(results: pd.DataFrame) -> pd.DataFrame:
    """Where the time of a sweep with the default kinds goes, medians in seconds."""
    median = results.groupby("contender").median(numeric_only=True)
    bare, default, watched = (median.loc[contender] for contender in ("bare", DEFAULT, "phases"))
    seconds = {phase: watched[phase] * bare["seconds"] for phase in PHASES}
    seconds |= {"recording": default["seconds"] - bare["seconds"], "fit, verdict, pictures": default["report"]}
    seconds["all matrix products, at the rate of one large one"] = watched["products"]
    return pd.DataFrame({"phase": seconds.keys(), "seconds": [f"{value:.2f}" for value in seconds.values()]})


def launches(depth: int = 12, width: int = 256) -> pd.DataFrame:
    """Operations of the second step's forward and backward pass, each of which a GPU would be told apart.

    Counted on tensors without memory, views left out. Adam, fused, is one more.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from coordcheck.observe.recorder import Recorder
    from coordcheck.run.cell import META

    class Count(TorchDispatchMode):
        """Of operations that compute something."""

        total = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.total += not func.is_view and func.overloadpacket is not torch.ops.aten.detach
            return func(*args, **(kwargs or {}))

    cell = cell_of(f"model.depth={depth}")
    batch = cell.batch(0, META)
    rows = []
    for name, (kinds, precision) in {"bare": ([], "fp32"), **COORDCHECK}.items():
        if precision != "fp32":
            continue
        model = cell.runnable_on_meta(width)
        with Recorder(model, width=width, kinds=kinds, roles=cell.roles) as recorder:
            for _ in range(2):
                with Count() as count:
                    cell.loss(model, batch).backward()
                recorder.step()
            tensors = sum(entry.step == 1 for entry in recorder._entries) + len(recorder._parameter_gradients) // 2
        first = rows[0]["operations"] if rows else count.total
        rows.append({"contender": name, "operations": count.total, "more": count.total - first, "tensors": tensors})
    return pd.DataFrame(rows)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", nargs="+", choices=[*SWEEPS, "launches"])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--contender", choices=[*CONTENDERS, "phases"], help="run this one alone, here, and print JSON")
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(run_here(arguments.contender, SWEEPS[arguments.sweep[0]], arguments.device)))
        return
    from coordcheck.check import current_versions
    from coordcheck.report.tables import markdown_table

    print(platform.processor() or platform.machine(), current_versions())
    for sweep in arguments.sweep:
        if sweep == "launches":
            print(f"\n{markdown_table(launches())}")
            continue
        results = pd.DataFrame(
            {"contender": contender, "repetition": repetition, **run_apart(contender, sweep, arguments.device)}
            for repetition in range(arguments.repetitions)
            for contender in (*CONTENDERS, "phases")
        )
        print(f"\n{sweep}: {SWEEPS[sweep]}\n\n{markdown_table(table(results))}\n\n{markdown_table(phases(results))}")


if __name__ == "__main__":
    main()
