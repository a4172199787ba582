"""What a sweep will cost, told before it is paid: from forward passes on ``meta`` and from its own first runs."""

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from coordcheck.run.cell import META, Cell

LONG = 20.0  # seconds from which on a sweep is worth a word before it starts
GIB = 2**30
FEWEST = 3  # widths that a slope with an interval needs
CONTAINER = Path("/sys/fs/cgroup/memory.max")
INTERPRETED = 1.4  # runs side by side pay off up to their time by this many times that of the interpreter


@dataclass(frozen=True)
class Dryrun:
    """A forward pass on tensors without memory.

    Attributes:
        flops: Floating-point operations of its matrix products.
        parameters: Bytes of the parameters; a tied one counts once.
        activations: Bytes that the backward pass needs of it, parameters not counted.
    """

    flops: int
    parameters: int
    activations: int


@dataclass(frozen=True)
class Estimate:
    """What the runs will take.

    Attributes:
        seconds: From the first to the last.
        runs: How many.
        workers: How many at a time.
        bytes: Of the widest run: weights, gradients, optimizer state and activations.
        available: Bytes that the device has.
        device: Its name.
    """

    seconds: float
    runs: int
    workers: int
    bytes: int
    available: int
    device: str

    def __str__(self) -> str:
        minutes = self.seconds / 60
        duration = f"{self.seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min"
        at_a_time = f", {self.workers} at a time" if self.workers > 1 else ""
        return (
            f"about {duration} for {self.runs} runs on {self.device}{at_a_time}; the widest needs about "
            f"{self.bytes / GIB:.1f} of {self.available / GIB:.0f} GiB"
        )


def dry_run(cell: Cell, width: int, seed: int) -> Dryrun:
    """A forward pass of a model without memory.

    One that needs values is counted up to there. Where that is before its first product, and for a user's model, which
    is not run, operations are taken to be in proportion to the parameters.
    """
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    runnable = cell.runnable_on_meta(width)
    model = cell.on_meta(width) if runnable is None else runnable
    parameters = {p.untyped_storage()._cdata: p.untyped_storage().nbytes() for p in model.parameters()}
    counter = FlopCounterMode(display=False)
    # on meta a model may stop with any error where it needs values: what was counted up to there counts
    with suppress(Exception), counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if runnable is not None:
            cell.loss(runnable, cell.batch(seed, META))
    weights = sum(parameters.values())
    activations = sum(size for storage, size in kept.items() if storage not in parameters)
    return Dryrun(counter.get_total_flops() or weights, weights, activations)


def fitting(least: Callable[[int], float], widths: Sequence[int], device: torch.device) -> tuple[list[int], list[str]]:
    """The widths that have room, known before anything has memory.

    Args:
        least: From width to the bytes that it takes at the least.
        widths: Wanted.
        device: Where the models will be.

    Returns:
        The widths that fit, in their order, and a sentence for each of the others.

    Raises:
        ValueError: if fewer than three widths fit.
    """
    room = available_memory(device) or math.inf
    needed: dict[int, float] = {}
    for width in sorted(widths):
        # where a narrower one does not fit, a wider one need not be looked at
        too_large = next((n for n in needed.values() if n > room), None)
        needed[width] = least(width) if too_large is None else too_large
    said = {
        width: f"width {width} needs at least {need / GIB:.1f} of {room / GIB:.1f} GiB of {device}'s memory"
        for width, need in needed.items()
        if need > room
    }
    fit = [width for width in widths if width not in said]
    if len(fit) < min(FEWEST, len(widths)):
        raise ValueError(
            f"`widths` needs at least {FEWEST} that fit into memory; got {list(widths)}, and "
            f"{next(iter(said.values()))}. For example narrower ones, widths=[64,128,256]."
        )
    return fit, [sentence.replace(" needs", " skipped: it needs", 1) for sentence in said.values()]


def least_memory(cell: Cell, width: int, seed: int) -> float:
    """Bytes that a run takes at the least: weights, and gradients or activations."""
    try:
        weights = cell.weight_bytes(width)
        activations = dry_run(cell.shallow(), width, seed).activations
    except (RuntimeError, OverflowError, MemoryError):  # sizes that torch cannot even count
        return math.inf
    return weights + max(weights, activations)


@contextmanager
def not_silent(widths: Sequence[int]) -> Iterator[Callable[[], None]]:
    """Says so when what comes before the first run takes long; what it yields is called where that ends."""
    timer = threading.Timer(
        LONG,
        lambda: print(
            f"preparing has taken {LONG:.0f} s so far: models of the narrowest of widths {list(widths)} are built, "
            f"audited and timed; then follows how long all runs will take",
            file=sys.stderr,
            flush=True,
        ),
    )
    timer.daemon = True
    timer.start()
    try:
        yield timer.cancel
    finally:
        timer.cancel()


def seconds_by_width(
    dry: Mapping[int, Dryrun], measured: Mapping[int, float], steps: int, device: torch.device
) -> dict[int, float]:
    """How long a run takes at each width.

    A run costs a fixed time and a time in proportion to its operations, both from the runs that were measured; but no
    fewer seconds than the device needs for its operations at the rate of one large matrix product.

    Args:
        dry: By width.
        measured: Seconds of a run, by one or two widths.
        steps: Forward passes of a run, all but the last followed by a backward pass of twice the operations.
        device: Where the runs will be.
    """
    first, last = min(measured), max(measured)
    rate = 1 / matmul_flops_per_second(device)
    passes = 3 * steps - 2
    if last > first and dry[last].flops > dry[first].flops:
        seen = (measured[last] - measured[first]) / (passes * (dry[last].flops - dry[first].flops))
        rate = max(rate, seen)
    return {width: measured[first] + rate * passes * max(0, run.flops - dry[first].flops) for width, run in dry.items()}


def memory_of_run(dry: Dryrun, state: float) -> int:
    """Peak bytes of a run.

    Args:
        dry: Of its width.
        state: Bytes of optimizer state for each byte of parameters.
    """
    return round(dry.parameters * (1 + state) + max(dry.parameters, dry.activations))


def available_memory(device: torch.device) -> int:
    """Bytes that a device has in all; zero where that is not known, as of a GPU that another machine has."""
    if device.type == "cuda":
        return 0 if not torch.cuda.is_available() else int(torch.cuda.get_device_properties(device).total_memory)
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    if not all(name in getattr(os, "sysconf_names", {}) for name in names):
        return 0
    machine = math.prod(os.sysconf(name) for name in names)
    with suppress(OSError, ValueError):  # of a container, "max" where it has no limit
        return min(machine, int(CONTAINER.read_text()))
    return machine


def makespan(durations: Sequence[float], workers: int) -> float:
    """Seconds from the first to the last of runs that are started longest first."""
    return max(sum(durations) / workers, max(durations, default=0.0))


def useful_workers(seconds: Sequence[float], narrowest: float) -> int:
    """How many runs at a time can keep busy.

    Threads take turns in Python's interpreter, and where operations are short they wait for it longer than they
    compute: four runs at a time then take twice as long as one by one (benchmarks/README.md). The narrowest run is
    mostly interpreter, and every run has as much of it.

    Args:
        seconds: Of each run, alone.
        narrowest: Seconds of the narrowest run.
    """
    return max(1, round(sum(seconds) / (INTERPRETED * narrowest * max(1, len(seconds)))))


def matmul_flops_per_second(device: torch.device) -> float:
    """The rate of one large product of matrices: no loop is faster."""
    size = 1024 if device.type == "cpu" else 4096
    x = torch.ones(size, size, device=device)
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        (x @ x)[0, 0].item()  # which waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
