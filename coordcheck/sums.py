"""The sums that a statistic is made of, exact enough for slopes.

A statistic is built from sums (of absolute values, of squares, of non-finite entries) and a maximum, in float32 or
better, so that several calls of a module within one step add up exactly. Nothing here waits for a GPU.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from threading import local

import torch
from torch import Tensor

INT32_MAX = 2**31 - 1  # entries that torch.dot takes on a GPU
# Entries for each thread that a CPU takes at a time: they and a copy fit into its second-level cache, so a tensor is
# read from memory once. torch.dot loses 1e-5 and more on vectors much longer than this.
CPU_CHUNK = 2**17
BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
Sums = Tensor | tuple[float, float, float, float]


class _Kept(local):
    def __init__(self) -> None:
        self.buffers: dict[torch.dtype, Tensor] = {}


_kept = _Kept()


def sums(x: Tensor, minus: Tensor | None = None) -> Sums:
    """The sums that l1, rms and max of a tensor, or of the difference of two, are made of.

    ``torch.linalg.vector_norm`` is not used: its float32 sum on CPU is off by 5e-3 at 16.8M elements, more
    the larger the tensor, which tilts slopes.

    Args:
        x: Floating-point, any shape.
        minus: What is subtracted, of the shape of `x`.

    Returns:
        Sum of abs, sum of squares, max of abs, non-finite entries: of a CPU tensor as numbers, else as a tensor on
        its device, at least float32.
    """
    x = x.detach()
    return _sums_on_cpu(x, minus) if x.device.type == "cpu" else _sums_on_device(x, minus)


def _sums_on_cpu(x: Tensor, minus: Tensor | None) -> Sums:
    """In pieces that stay in the cache; reading a value of a CPU tensor is free."""
    total = squares = largest = 0.0
    others = None if minus is None else _pieces(minus)
    for piece in map(at_least_float32, _pieces(x)):
        size = scratch = _scratch(piece)
        if others is not None:
            piece = torch.sub(piece, at_least_float32(next(others)), out=scratch)
        torch.abs(piece, out=size)
        total += size.sum().item()
        squares += torch.dot(size, size).item()
        # the bits of numbers that are not negative have their order, and integers are compared faster
        highest = size.view(BITS[size.dtype]).amax().view(size.dtype).item()
        largest = highest if math.isnan(highest) else max(largest, highest)
    nonfinite = 0 if math.isfinite(total) else _nonfinite(x if minus is None else x - minus).item()
    return total, squares, largest, nonfinite


def _pieces(x: Tensor) -> Iterator[Tensor]:
    flat, length = x.reshape(-1), CPU_CHUNK * torch.get_num_threads()
    return iter((flat,) if flat.numel() <= length else torch.split(flat, length))


def _scratch(like: Tensor) -> Tensor:
    """Memory of this thread that is used again: the system hands out new one slowly."""
    kept, length = _kept.buffers.get(like.dtype), like.numel()
    if kept is None or kept.numel() < length:
        with torch.inference_mode(False):
            kept = _kept.buffers[like.dtype] = torch.empty_like(like)
    return kept if kept.numel() == length else kept[:length]


def _sums_on_device(x: Tensor, minus: Tensor | None) -> Tensor:
    x = at_least_float32(x) if minus is None else at_least_float32(x) - at_least_float32(minus)
    size = x.abs()
    chunks = torch.split(x.reshape(-1), INT32_MAX)
    squares = torch.stack([torch.dot(chunk, chunk) for chunk in chunks]).sum()
    return torch.stack([size.sum(), squares, size.amax(), _nonfinite(x).to(x.dtype)])


def _nonfinite(x: Tensor) -> Tensor:
    return x.numel() - torch.isfinite(x).sum()


def thinned(x: Tensor, positions: int) -> Tensor:
    """Some positions of a sequence, evenly spaced, for a mean that does not need all of them.

    Which ones depends on shapes that do not grow with width, so that they are the same at every width.

    Args:
        x: (..., L, D) or (D,).
        positions: How many of L are kept at least. All are, where that would leave fewer than 8 * `positions` of all
            sequences; heads or channels between the first dimension and L, which may grow with width, do not count.

    Returns:
        A view, (..., L / k, D).
    """
    if x.dim() < 2:
        return x
    rows = x.shape[-2] * (x.shape[0] if x.dim() > 2 else 1)
    every = min(x.shape[-2] // positions, rows // (8 * positions))
    return x[..., every // 2 :: every, :] if every > 1 else x


def at_least_float32(x: Tensor) -> Tensor:
    """`x`, in float32 if its type is narrower."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Arithmetic in the types of the operands, whatever runs around it."""
    running = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if running else nullcontext()
