"""The spectral norm of a weight, on its device and without waiting for it."""

import torch
from torch import Tensor, nn

from coordcheck.observe.roles import owner
from coordcheck.observe.sums import at_least_float32, without_autocast

ITERATIONS = 16
SQUARINGS = 10


def as_matrices(model: nn.Module, name: str, weight: Tensor) -> Tensor:
    """A parameter, or its change, as the matrices that the forward pass multiplies by.

    Args:
        model: Whose it is.
        name: Of the parameter.
        weight: Of its shape.

    Returns:
        (B, M, N), a view where there is one. A vector is one column; the kernel of a convolution (out, in, ...) one
        matrix (out, in * entries of the kernel), as is whatever has four dimensions or more; of any other three the
        first counts matrices, as that of stacked experts does.
    """
    if weight.dim() < 2:
        return weight.reshape(1, -1, 1)
    module = owner(model, name)
    if weight.dim() > 3 or hasattr(module, "kernel_size"):
        weight = weight.flatten(1)
    return weight.reshape(-1, *weight.shape[-2:])


@torch.no_grad()
def spectral_norm(matrices: Tensor) -> Tensor:
    """The largest singular value of the matrices, by a few power iterations whose iterates are kept.

    The norm on the space of the iterates (Rayleigh and Ritz) is what the Lanczos method gives. It is below the true one
    by at most 1% for normal matrices up to 4096 x 1024, the hardest kind, and by rounding alone where few singular
    values are large, as in an update. The start is the same each time, and no generator is used.

    Args:
        matrices: (B, M, N), floating point.

    Returns:
        The largest of all B, without dimensions, at least float32, on the device; NaN where an entry is not finite.

    Example:
        >>> round(float(spectral_norm(torch.diag(torch.tensor([3.0, -4.0])).unsqueeze(0))), 5)
        4.0
    """
    with without_autocast(matrices.device):
        x = at_least_float32(matrices)
        x = x.mT if x.shape[-2] < x.shape[-1] else x  # iterates in the smaller space
        tiny = torch.finfo(x.dtype).tiny
        size = x.abs().amax(dim=(-2, -1), keepdim=True)
        x = x / size.clamp_min(tiny)  # squares of small entries would vanish
        basis = _iterates(x, tiny)
        norms = _largest_eigenvalue(x @ basis, tiny).sqrt() * size[..., 0, 0]
    return norms.amax()


def _iterates(x: Tensor, tiny: float) -> Tensor:
    """An orthonormal basis (B, N, K) of what power iterations on x^T x pass through, K at most sixteen."""
    count, _, n = x.shape
    v = _start(n, x).expand(count, n, 1)
    basis = x.new_zeros(count, n, 0)
    v = _unit(v, tiny)
    least = torch.finfo(x.dtype).eps ** 0.5
    for _ in range(min(ITERATIONS, n)):
        v = v - basis @ (basis.mT @ v)
        # what is left of a direction that the basis has is rounding: the rank is reached, and zeros add nothing
        v = v * (torch.linalg.vector_norm(v, dim=-2, keepdim=True) > least)
        v = _unit(v, tiny)
        v = _unit(v - basis @ (basis.mT @ v), tiny)
        basis = torch.cat([basis, v], dim=-1)
        v = _unit(x.mT @ (x @ v), tiny)
    return basis


def _start(n: int, like: Tensor) -> Tensor:
    """Entries (n, 1) of -1 to 1 that look random: two rounds of a linear congruence, mixed (Knuth, TAOCP 2, 3.3.4)."""
    number = torch.arange(1, n + 1, device=like.device)
    for _ in range(2):
        number = (number * 1103515245 + 12345) % 2**31
        number = number ^ (number >> 15)
    return (number.to(like.dtype) / 2**30 - 1)[:, None]


def _unit(v: Tensor, tiny: float) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(v, dim=-2, keepdim=True)
    return v / length.clamp_min(tiny)


def _largest_eigenvalue(x: Tensor, tiny: float) -> Tensor:
    """Of x^T x (B, K, K), K small: its power of 2^10 is the projection on the eigenvector; a solver would wait."""
    gram = x.mT @ x
    power = gram
    for _ in range(SQUARINGS):
        power = power / _trace(power).clamp_min(tiny)[..., None, None]
        power = power @ power
    return _trace(power @ gram) / _trace(power).clamp_min(tiny)


def _trace(x: Tensor) -> Tensor:
    return torch.einsum("bkk->b", x)
