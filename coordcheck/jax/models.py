"""What `build` may return, as one: parameters, and a forward pass of them.

A ``flax.linen.Module``; a function from ``flax.nnx.Rngs`` to an ``nnx.Module``; or a pair (init, apply), as
``haiku.without_apply_rng(haiku.transform(f))`` is one.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from coordcheck.jax.marks import INPUT, OUTPUT, marked
from coordcheck.jax.naming import called
from coordcheck.records.names import shown
from coordcheck.records.schema import ROOT

Loss = Callable[[Callable[..., Any], Any], Any]
EXAMPLE = (
    "For example a flax.linen.Module, a function such as lambda rngs: MyModule(width, rngs=rngs) for flax.nnx, or a "
    "pair (init, apply)."
)


class Model:
    """A model of one width, whatever library made it.

    Args:
        built: By a user's `build`.
        loss: From a model, which is called with inputs, and a batch to a scalar.

    Raises:
        ValueError: if it is none of the three.
    """

    def __init__(self, built: Any, loss: Loss):
        linen = sys.modules.get("flax.linen")
        self._loss = loss
        if linen is not None and isinstance(built, linen.Module):
            self._kind: _Kind = _Linen(built)
        elif isinstance(built, tuple) and len(built) == 2 and all(map(callable, built)):
            self._kind = _Pair(*built)
        elif callable(built) and not isinstance(built, type) and not _is_nnx(built):
            self._kind = _Nnx(built)
        else:
            raise ValueError(f"`build` returns a model of JAX; got {shown(built)}. {EXAMPLE}")

    def init(self, key: Any, batch: Any) -> tuple[Any, Any]:
        """Parameters, and what else the model holds, which no optimizer moves."""
        return self._kind.init(key, batch, self._loss)

    def loss(self, parameters: Any, rest: Any, batch: Any) -> Any:
        """The scalar to minimize; what draws random numbers draws the same at every step."""
        with self._kind.marks():
            return self._loss(functools.partial(self._kind.apply, parameters, rest), batch)


class _Kind:
    """One library."""

    def init(self, key: Any, batch: Any, loss: Loss) -> tuple[Any, Any]:
        raise NotImplementedError

    def apply(self, parameters: Any, rest: Any, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    @contextmanager
    def marks(self) -> Iterator[None]:
        yield


class _Linen(_Kind):
    def __init__(self, module: Any):
        self.module = module

    def init(self, key: Any, batch: Any, loss: Loss) -> tuple[Any, Any]:
        found: dict[str, Any] = {}

        def model(*args: Any, **kwargs: Any) -> Any:
            rngs = dict(zip(("params", "dropout"), jax.random.split(key), strict=True))
            if not found:
                out, variables = self.module.init_with_output(rngs, *args, **kwargs)
                found.update(variables)
                return out
            return self.apply(found["params"], {k: v for k, v in found.items() if k != "params"}, *args, **kwargs)

        loss(model, batch)
        if not found.get("params"):
            raise ValueError(
                "`build` returned a module without parameters, or the loss never called it. "
                "For example loss=lambda model, batch: ((model(batch[0]) - batch[1]) ** 2).mean()."
            )
        return _unboxed(found.pop("params")), found

    def apply(self, parameters: Any, rest: Any, *args: Any, **kwargs: Any) -> Any:
        rngs = {"dropout": jax.random.key(0)}
        variables = {"params": parameters, **rest}
        if not rest:
            return self.module.apply(variables, *args, rngs=rngs, **kwargs)
        return self.module.apply(variables, *args, rngs=rngs, mutable=list(rest), **kwargs)[0]


def _unboxed(parameters: Any) -> Any:
    """Without the boxes of flax that hold how arrays are partitioned."""
    from flax.core import meta

    return meta.unbox(parameters)


class _Pair(_Kind):
    def __init__(self, init: Callable[..., Any], apply: Callable[..., Any]):
        self._init, self._apply = init, apply

    def init(self, key: Any, batch: Any, loss: Loss) -> tuple[Any, Any]:
        found: list[Any] = []

        def model(*args: Any, **kwargs: Any) -> Any:
            if not found:
                found.append(self._init(key, *args, **kwargs))
            return self._apply(found[0], *args, **kwargs)

        loss(model, batch)
        return found[0], ()

    def apply(self, parameters: Any, rest: Any, *args: Any, **kwargs: Any) -> Any:
        with called(ROOT):
            return marked(self._apply(parameters, *args, **kwargs), ROOT, OUTPUT)


def _is_nnx(value: Any) -> bool:
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(value, nnx.Module)


class _Nnx(_Kind):
    def __init__(self, make: Callable[[Any], Any]):
        self.make = make
        self.structure: Any = None

    def init(self, key: Any, batch: Any, loss: Loss) -> tuple[Any, Any]:
        from flax import nnx

        model = self.make(nnx.Rngs(key))
        if not isinstance(model, nnx.Module):
            raise ValueError(f"`build` returns a model of JAX; got a function that made {shown(model)}. {EXAMPLE}")
        self.structure, parameters, rest = nnx.split(model, nnx.Param, ...)
        return nnx.to_pure_dict(parameters), rest

    def apply(self, parameters: Any, rest: Any, *args: Any, **kwargs: Any) -> Any:
        from flax import nnx

        model = nnx.merge(self.structure, self._state(parameters), rest, copy=True)
        with _nnx_marks(model):
            return model(*args, **kwargs)

    def _state(self, parameters: Any) -> Any:
        from flax import nnx

        def boxed(value: Any) -> Any:
            return {k: boxed(v) for k, v in value.items()} if isinstance(value, dict) else nnx.Param(value)

        return nnx.State(boxed(parameters))


@contextmanager
def _nnx_marks(model: Any) -> Iterator[None]:
    """Marks inputs and outputs of the modules of `model` that are called within."""
    from flax import nnx

    modules = list(nnx.iter_modules(model))
    names = {id(module): ".".join(map(str, path)) or ROOT for path, module in modules}
    parents = {path[:-1] for path, module in modules if path and nnx.state(module, nnx.Param)}
    leaves = {
        id(module)
        for path, module in modules
        if path not in parents and any(p.ndim > 1 for p in jax.tree.leaves(nnx.state(module, nnx.Param)))
    }

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            name = names.get(id(self))
            if name is None:
                return original(self, *args, **kwargs)
            with called(name):
                args, kwargs = marked((args, kwargs), name, INPUT)
                out = original(self, *args, **kwargs)
            return marked(out, name, OUTPUT, leaf=id(self) in leaves)

        return call

    originals = {type(module): type(module).__call__ for _, module in modules if callable(module)}
    try:
        for kind, original in originals.items():
            kind.__call__ = watched(original)
        yield
    finally:
        for kind, original in originals.items():
            kind.__call__ = original
