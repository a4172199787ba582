"""Marks: what a model says of itself while JAX traces it. The identity, under a name, that stays in the jaxpr.

A mark costs nothing where nobody follows it, and passes jit, vmap, scan, remat and differentiation. Who reads them is
in :mod:`coordcheck.jax.follow`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

INPUT, OUTPUT, LOGITS = "input", "output", "attention_logits"

mark_p = Primitive("coordcheck_mark")
mark_p.def_impl(lambda x, **_: x)
mark_p.def_abstract_eval(lambda x, **_: x)
mlir.register_lowering(mark_p, lambda _, x, **__: [x])


def _jvp(primals: Any, tangents: Any, **what: Any) -> Any:
    return mark_p.bind(*primals, **what), tangents[0]


def _batched(args: Any, dims: Any, **what: Any) -> Any:
    return mark_p.bind(*args, **what), dims[0]


ad.primitive_jvps[mark_p] = _jvp
batching.primitive_batchers[mark_p] = _batched


def tap(name: str, x: Any) -> Any:
    """Names what a model computes, so that a check records it: the identity, for haiku, equinox or plain JAX code.

    Args:
        name: As of a module, with dots: "blocks.0.attention".
        x: An array, or several in a pytree; those without a fraction or without entries are left alone.

    Returns:
        `x`.

    Raises:
        ValueError: if the name is empty.

    Example:
        >>> float(tap("hidden", jnp.ones(2)).sum())
        2.0
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"`name` of a tap is text; got {name!r}. For example tap('blocks.0', x).")
    return marked(x, name, OUTPUT)


def marked(x: Any, name: str, what: str, leaf: bool = False) -> Any:
    """`x` with a mark on each of its arrays that has entries to average.

    Args:
        x: A pytree.
        name: Of the module.
        what: "input" or "output" of it, or "attention_logits" in it.
        leaf: Whether what comes out depends on what goes in and on the module's own parameters alone.
    """

    def mark(path: Any, value: Any) -> Any:
        if not _is_measurable(value):
            return value
        return mark_p.bind(value, name=name, part=_part(path), what=what, leaf=leaf)

    return jax.tree_util.tree_map_with_path(mark, x)


def _is_measurable(value: Any) -> bool:
    is_array = isinstance(value, jax.Array | np.ndarray)
    return is_array and jnp.issubdtype(value.dtype, jnp.floating) and value.ndim > 0 and value.size > 0


def _part(path: Any) -> str:
    """Which part of an output, as records name it: "[0]", "[logits]"."""
    return "".join(f"[{getattr(key, 'key', getattr(key, 'idx', getattr(key, 'name', key)))}]" for key in path)
