"""Attention logits q·k of whatever leaves attention to JAX's or flax's functions, seen where they are called."""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp

from coordcheck.jax.marks import LOGITS, marked
from coordcheck.jax.naming import current_name
from coordcheck.jax.sums import thinned

FLAX = ("flax.linen.attention", "flax.nnx.nn.attention")  # whose dot_product_attention_weights divide by sqrt(K)


@contextmanager
def attention_marks() -> Iterator[None]:
    """Marks attention logits within."""
    with ExitStack() as patches:
        patches.enter_context(patch.object(jax.nn, "dot_product_attention", _watched(jax.nn.dot_product_attention)))
        for module in map(_loaded, FLAX):
            if module is not None:
                name = "dot_product_attention_weights"
                patches.enter_context(patch.object(module, name, _watched(getattr(module, name))))
        yield


def _loaded(name: str) -> Any:
    """A module if somebody imported it: what is not there computes no attention."""
    import sys

    return sys.modules.get(name)


def _watched(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(query: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
        scale = kwargs.get("scale")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        if query.ndim > 2:
            marked(attention_logits(query, key, scale), current_name(), LOGITS)
        return function(query, key, *args, **kwargs)

    return call


def attention_logits(query: Any, key: Any, scale: float) -> Any:
    """``scale * query @ key^T`` for some queries and keys, evenly spaced, without a mask, in float32.

    Args:
        query: (..., L, H, K); see :func:`coordcheck.jax.sums.thinned` for those that are used.
        key: (..., S, H or a divisor of H, K); likewise.
        scale: What query·key is multiplied by.

    Returns:
        (..., heads of keys, L' H / heads of keys, S').
    """
    query, key = (_some_positions(jax.lax.stop_gradient(x)) for x in (query * scale, key))
    heads = key.shape[-3]
    query = query.reshape(*query.shape[:-3], heads, -1, query.shape[-1])
    return jnp.einsum("...qk,...sk->...qs", query, key)


def _some_positions(x: Any) -> Any:
    """(..., L, H, K) to (..., H, L', K) in float32."""
    heads = jnp.moveaxis(x, -2, -3).astype(jnp.float32)
    return thinned(heads[None])[0] if heads.ndim == 3 else thinned(heads)
