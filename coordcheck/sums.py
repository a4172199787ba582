"""The sums that a statistic is made of, exact enough for slopes.

A statistic is built from sums (of absolute values, of squares, of non-finite entries) and a maximum, in float32 or
better, so that several calls of a module within one step add up exactly. Nothing here waits for the device.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

INT32_MAX = 2**31 - 1  # entries that torch.dot takes on a GPU
CPU_CHUNK = 2**20  # torch.dot on CPU loses 1e-5 and more on longer vectors


def sums(x: Tensor) -> Tensor:
    """The sums that l1, rms and max are made of.

    ``torch.linalg.vector_norm`` is not used: its float32 sum on CPU is off by 5e-3 at 16.8M elements, more
    the larger the tensor, which tilts slopes.

    Args:
        x: Floating-point, any shape.

    Returns:
        On the device of `x`, at least float32: [sum of abs, sum of squares, max of abs, non-finite entries].
    """
    x = at_least_float32(x.detach())
    size = x.abs()
    total = size.sum(dtype=x.dtype)
    chunks = torch.split(x.reshape(-1), CPU_CHUNK if x.device.type == "cpu" else INT32_MAX)
    squares = torch.stack([torch.dot(chunk, chunk) for chunk in chunks]).sum()
    # Reading a value of a CPU tensor is free, counting is not; on a GPU it is the other way round.
    if x.device.type == "cpu" and math.isfinite(total):
        nonfinite = torch.zeros_like(total)
    else:
        nonfinite = x.numel() - torch.isfinite(x).sum(dtype=x.dtype)
    return torch.stack([total, squares, size.amax(), nonfinite])


def at_least_float32(x: Tensor) -> Tensor:
    """`x`, in float32 if its type is narrower."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Arithmetic in the types of the operands, whatever runs around it."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()
