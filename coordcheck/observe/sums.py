"""The sums that a statistic is made of, exact enough for slopes.

A statistic is built from sums (of absolute values, of squares, of non-finite entries) and a maximum, in float32 or
better, so that several calls of a module within one step add up exactly. Only :func:`moved` waits for a GPU.
"""

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import NamedTuple

import torch
from scipy.linalg import blas
from torch import Tensor

# Entries that one call of BLAS sums: few enough that float32 loses nothing that matters, even of equal entries, which
# are all rounded to the same side, and that no implementation wakes threads for it.
PIECE = 2**13
BLOCK = 2**20  # entries that are converted, subtracted or copied at a time, where that must be
POSITIONS = 16  # of each sequence at least, where some stand for all
BLAS = {"f": (blas.sasum, blas.sdot, blas.isamax), "d": (blas.dasum, blas.ddot, blas.idamax)}


class Sums(NamedTuple):
    """Of one tensor: the sum of abs x, the sum of x^2, the maximum of abs x, and how many entries are not finite."""

    total: float
    squares: float
    largest: float
    nonfinite: float


class Norms(NamedTuple):
    """The same on a device, each without dimensions and at least float32; of the squares it is the root of the sum."""

    total: Tensor
    length: Tensor
    largest: Tensor
    nonfinite: Tensor


def sums(x: Tensor, minus: Tensor | None = None) -> Sums | Norms:
    """The sums that l1, rms and max of a tensor, or of the difference of two, are made of.

    Args:
        x: Floating-point or complex, any shape.
        minus: What is subtracted, of the shape of `x`.

    Returns:
        Sums of a CPU tensor, norms of any other.
    """
    if torch._C._functorch.is_gradtrackingtensor(x):  # torch.func.grad wrapped it, and it has no memory to read
        with torch._C._DisableFuncTorch():
            return sums(_unwrapped(x), None if minus is None else _unwrapped(minus))
    x = x.detach()
    if x.is_complex():
        x, minus = (x if minus is None else x - minus).abs(), None
    return _sums_on_cpu(x, minus) if x.device.type == "cpu" else _norms_on_device(x, minus)


def _unwrapped(x: Tensor) -> Tensor:
    while torch._C._functorch.is_gradtrackingtensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


def moved(measured: Sequence[Sums | Norms]) -> list[Sums]:
    """All of them as numbers, with one transfer from the device."""
    waiting = [norm for norms in measured if isinstance(norms, Norms) for norm in norms]
    if waiting:
        dtype = reduce(torch.promote_types, (norm.dtype for norm in waiting))
        there = iter(torch.stack([norm.to(waiting[0].device, dtype) for norm in waiting]).cpu().view(-1, 4).tolist())
    return [_of_norms(*next(there)) if isinstance(norms, Norms) else norms for norms in measured]


def moved_numbers(measured: Sequence[Tensor | None]) -> list[float]:
    """Tensors without dimensions as numbers, with one transfer from the device; NaN for None."""
    waiting = [number for number in measured if number is not None]
    if not waiting:
        return [math.nan] * len(measured)
    dtype = reduce(torch.promote_types, (number.dtype for number in waiting))
    there = iter(torch.stack([number.to(waiting[0].device, dtype) for number in waiting]).tolist())
    return [math.nan if number is None else next(there) for number in measured]


def _of_norms(total: float, length: float, largest: float, nonfinite: float) -> Sums:
    return Sums(total, length * length, largest, nonfinite)


def _sums_on_cpu(x: Tensor, minus: Tensor | None) -> Sums:
    """One core's BLAS reads a tensor faster than torch's operators, and does not hand over the interpreter meanwhile.

    ``torch.linalg.vector_norm`` is not used here: its float32 sum on CPU is off by 5e-3 at 16.8M elements, more the
    larger the tensor, which tilts slopes.
    """
    total = squares = largest = 0.0
    for piece, other in _blocks(x, minus):
        block = at_least_float32(piece)
        if other is not None:
            block = block - at_least_float32(other)
        # BLAS would copy what is strided at each call
        numbers = block.reshape(-1).contiguous().resolve_neg().numpy()
        asum, dot, iamax = BLAS[numbers.dtype.char]
        for start in range(0, len(numbers), PIECE):
            length = min(PIECE, len(numbers) - start)
            total += asum(numbers, length, start)
            squares += dot(numbers, numbers, length, start, 1, start)
        largest = max(largest, abs(float(numbers[iamax(numbers)])))
    if math.isfinite(total):
        return Sums(total, squares, largest, 0)
    x = x if minus is None else x - minus  # once more: BLAS's maximum overlooks NaN
    return Sums(total, squares, x.abs().amax().item(), int((~x.isfinite()).sum()))


def _blocks(x: Tensor, minus: Tensor | None) -> Iterable[tuple[Tensor, Tensor | None]]:
    if x.numel() <= BLOCK:
        return [(x, minus)]
    blocks = torch.split(x.reshape(-1), BLOCK)
    others = [None] * len(blocks) if minus is None else torch.split(minus.reshape(-1), BLOCK)
    return zip(blocks, others, strict=True)


def _norms_on_device(x: Tensor, minus: Tensor | None) -> Norms:
    """Five kernels, which read narrow types as float32; a GPU sums in a tree, which loses nothing that matters."""
    x = x if minus is None else at_least_float32(x) - at_least_float32(minus)
    dtype = torch.promote_types(x.dtype, torch.float32)
    total, length, largest = (torch.linalg.vector_norm(x, order, dtype=dtype) for order in (1, 2, math.inf))
    nonfinite = torch.linalg.vector_norm(x - x, 0, dtype=dtype)  # NaN of what is not finite, which is not zero
    return Norms(total, length, largest, nonfinite)


def thinned(x: Tensor, length: int | None = None, begins: int = 0) -> Tensor:
    """Some positions of a sequence, evenly spaced, for a mean that does not need all of them.

    Which ones depends on the length of the sequence alone. So they are the same at every width, and the same whether a
    batch is one tensor, micro-batches or spread over ranks.

    Args:
        x: (B, ..., L, D). Of L at least 16 are kept, and at least 2 sqrt(L). Of (N, D), whose N is the batch or a part
            of it, and of (D,) all are.
        length: L on all ranks together, where the sequence is spread over them.
        begins: The position of the first that is here.

    Returns:
        A view, (..., about L / k, D).
    """
    if x.dim() < 3:
        return x
    length = x.shape[-2] if length is None else length
    every = min(length // POSITIONS, math.isqrt(length) // 2)
    return x[..., (every // 2 - begins) % every :: every, :] if every > 1 else x


def at_least_float32(x: Tensor) -> Tensor:
    """`x`, in float32 if its type is narrower."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Arithmetic in the types of the operands, whatever runs around it."""
    running = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if running else nullcontext()
