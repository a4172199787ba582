"""Marks on the modules of flax.linen, by its own interceptor."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

from coordcheck.jax.marks import INPUT, OUTPUT, marked
from coordcheck.jax.naming import called, calls, tracing
from coordcheck.records.schema import ROOT

CALL, SETUP = "__call__", "setup"


@contextmanager
def linen_marks() -> Iterator[None]:
    """Marks inputs and outputs of every module of flax.linen that is called within; nothing where flax is not used."""
    linen = sys.modules.get("flax.linen")
    with tracing(True):
        if linen is None:
            yield
            return
        with linen.intercept_methods(_interceptor):
            yield


def _interceptor(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    module, method = context.module, context.method_name
    outermost = not calls.names
    # of other methods than the call only those count that a layer has, as Embed.attend, and the one that a model is
    # called by: the rest is how somebody arranged their code
    if method == SETUP or module.scope is None or not (method == CALL or outermost or _is_leaf(module)):
        return call(*args, **kwargs)
    name = ".".join(map(str, module.path)) or ROOT
    name = name if method == CALL or outermost else f"{name}:{method}"
    with called(name):
        args, kwargs = marked((args, kwargs), name, INPUT)
        out = call(*args, **kwargs)
    return marked(out, name, OUTPUT, leaf=_is_leaf(module))


def _is_leaf(module: Any) -> bool:
    """Whether a module is a layer: it has a matrix of its own, and no modules with parameters inside."""
    own = module.variables.get("params", {})
    inside = [value for value in own.values() if hasattr(value, "items")]
    return not inside and any(leaf.ndim > 1 for leaf in jax.tree.leaves(own))
