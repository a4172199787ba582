"""The sums that a statistic is made of, on whatever device an array is, sharded or not.

Five numbers of float32: the sum of abs x, of x^2, the maximum of abs x, how many entries are not finite, and 1 for a
call that took place.
"""

from typing import Any

import jax
import jax.numpy as jnp

POSITIONS = 16  # of each sequence at least, where some stand for all; as in coordcheck.observe.sums


def sums(x: Any) -> Any:
    """The five numbers of an array of any shape; nothing is differentiated through them."""
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    size = jnp.abs(x)
    broken = (~jnp.isfinite(x)).astype(jnp.float32)
    return jnp.stack([_total(size), _total(size * size), size.max(), _total(broken), jnp.float32(1)])


def _total(x: Any) -> Any:
    """One axis after the other: a float32 sum of millions in a row would be off by more than a slope may be."""
    while x.ndim > 1:
        x = jax.lax.optimization_barrier(x.sum(axis=-1))
    return x.sum()


def thinned(x: Any) -> Any:
    """Some positions of a sequence, evenly spaced, the same at every width: (..., L, D) to (..., L / k, D).

    The same ones as :func:`coordcheck.observe.sums.thinned` takes of a torch tensor.
    """
    if x.ndim < 2:
        return x
    rows = x.shape[-2] * (x.shape[0] if x.ndim > 2 else 1)
    every = min(x.shape[-2] // POSITIONS, rows // (8 * POSITIONS))
    return x[..., every // 2 :: every, :] if every > 1 else x


@jax.custom_vjp
def felt(x: Any, slot: Any) -> Any:
    """`x`, whose gradient's sums are the gradient of `slot`."""
    return x


felt.defvjp(lambda x, slot: (x, None), lambda _, gradient: (gradient, sums(gradient)))
