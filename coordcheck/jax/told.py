"""Value, gradients and what was recorded of a loss: the same arithmetic as without, in one compiled step of anybody.

Statistics leave as one result beside the gradients, so they pass ``jit`` and come to the host together. An effective
update is the derivative of a module's output by its parameters along (W_t - W_0), exact for whatever is affine in them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from coordcheck.config.axes import check_kinds, check_modules
from coordcheck.jax.attention import attention_marks
from coordcheck.jax.follow import Place, at, follow, nested, places
from coordcheck.jax.linen import linen_marks
from coordcheck.jax.marks import INPUT, LOGITS, OUTPUT
from coordcheck.jax.sums import felt, sums, thinned

ACTIVATION, DELTA, UPDATE, GRADIENT = "activation", "delta", "effective_update", "gradient"
RECORDED = (ACTIVATION, DELTA, UPDATE, GRADIENT)
COPY = "copy"
PARAMETER, VALUE = "parameter", "loss"  # gradients of these by name, and the loss


class Rows(NamedTuple):
    """Where in the numbers of a step those of a mark, or of a parameter, stand.

    Attributes:
        kind: What was recorded, or "parameter" for the gradient of one, "loss" for the loss.
        key: The path of the mark, or the name of the parameter.
        start: The first row.
        shape: Iterations of the scans around the mark.
    """

    kind: str
    key: Any
    start: int
    shape: tuple[int, ...]


@partial(jax.tree_util.register_dataclass, data_fields=["numbers", "copies"], meta_fields=["rows", "places", "sizes"])
@dataclass(frozen=True)
class Told:
    """What one step told; arrays on their devices.

    Attributes:
        numbers: All statistics in one array, (rows, 5): what :func:`coordcheck.jax.sums.sums` returns, and the loss.
        copies: By place, some positions of what the outputs were, for the deltas of later steps.
        rows: What the rows of `numbers` are, in forward order.
        places: The marks, in forward order.
        sizes: Name and entries of each parameter.
    """

    numbers: Any
    copies: dict[Any, Any]
    rows: tuple[Rows, ...]
    places: tuple[Place, ...]
    sizes: tuple[tuple[str, int], ...]

    def without(self, kinds: Sequence[str]) -> "Told":
        """The same without the copies, and without some kinds."""
        return replace(self, copies={}, rows=tuple(row for row in self.rows if row.kind not in kinds))


def value_and_grad(
    loss_fn: Callable[..., Any],
    kinds: Sequence[str] = (ACTIVATION, GRADIENT),
    modules: Sequence[str] | None = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """As ``jax.value_and_grad`` by the first argument, with what was recorded; for a training step of your own.

    Modules of flax.linen are recorded by themselves, everything else where :func:`coordcheck.jax.tap` names it.

    Args:
        loss_fn: From parameters (a pytree), and whatever else, to a scalar, or with `has_aux` to (scalar, anything).
        kinds: "activation", "gradient"; and with ``start`` "delta" and "effective_update".
        modules: Names or shell patterns of what to record; None for all.
        has_aux: Whether `loss_fn` returns more than its value.

    Returns:
        A function of the same arguments, and of the keyword ``start``: the parameters and ``told.copies`` of step 0,
        for changes since then. It returns ((value, told), gradients), with `has_aux` ((value, told, aux), gradients).
        It may run within ``jax.jit``, with donated arguments and sharded arrays. See :func:`coordcheck.jax.records`.

    Raises:
        ValueError: if a kind or pattern is none.

    Example:
        >>> import coordcheck.jax
        >>> def loss(w, x):
        ...     return (coordcheck.jax.tap("hidden", x @ w) ** 2).mean()
        >>> (value, told), gradient = value_and_grad(loss)(jnp.ones((4, 8)), jnp.ones((2, 4)))
        >>> coordcheck.jax.records([told], width=8)[["module", "kind", "l1"]].values.tolist()[0]
        ['hidden', 'activation', 4.0]
    """
    wanted = recorded_kinds(kinds)
    patterns = check_modules(modules)

    def call(parameters: Any, *args: Any, start: tuple[Any, Any] | None = None) -> Any:
        flat, tree = jax.tree.flatten(parameters)
        rest, rest_tree = jax.tree.flatten(args)
        shape: list[Any] = []

        def flat_loss(*leaves: Any) -> list[Any]:
            with linen_marks(), attention_marks():
                found = loss_fn(tree.unflatten(leaves[: len(flat)]), *rest_tree.unflatten(leaves[len(flat) :]))
            value, aux = found if has_aux else (found, None)
            results, aux_tree = jax.tree.flatten(aux)
            shape.append(aux_tree)
            return [_scalar(value), *results]

        closed = jax.make_jaxpr(flat_loss)(*flat, *rest)
        here = [p for p in places(closed, len(flat)) if p.what != INPUT and selected(p, patterns)]
        first = {} if start is None else start[1]

        def valued(flat: list[Any], slots: dict[Any, Any]) -> tuple[Any, Any]:
            given = {p.path: {"slot": slots.get(p.path), "first": first.get(p.path), "on": ()} for p in here}
            results, told = follow(closed, [*flat, *rest], partial(_visit, wanted), nested(given))
            return results[0], (told, results[1:])

        slots = {p.path: _slot(closed, p) for p in here if GRADIENT in wanted and p.what == OUTPUT}
        (value, (told, aux)), (gradients, of_outputs) = jax.value_and_grad(valued, argnums=(0, 1), has_aux=True)(
            flat, slots
        )
        names = names_of(parameters)
        by_kind = {kind: _picked(told, here, kind) for kind in (ACTIVATION, DELTA)}
        if start is not None and UPDATE in wanted:
            by_kind[UPDATE] = _effective_updates(closed, flat, rest, jax.tree.leaves(start[0]), here)
        by_kind[GRADIENT] = of_outputs
        if GRADIENT in wanted:
            by_kind[PARAMETER] = dict(zip(names, map(sums, gradients), strict=True))
        if ACTIVATION in wanted:
            by_kind[VALUE] = {VALUE: jnp.full(5, value, jnp.float32)}
        sizes = tuple((name, leaf.size) for name, leaf in zip(names, flat, strict=True))
        numbers, rows = _packed(by_kind)
        result = Told(numbers, _picked(told, here, COPY), rows, tuple(here), sizes)
        said = (value, result, shape[-1].unflatten(aux)) if has_aux else (value, result)
        return said, tree.unflatten(gradients)

    return call


def recorded_kinds(kinds: Any) -> tuple[str, ...]:
    """Kinds, if they are among those that are recorded of JAX.

    Raises:
        ValueError: if one is not.
    """
    found = tuple(check_kinds(kinds))
    if others := [kind for kind in found if kind not in RECORDED]:
        raise ValueError(
            f"`kinds` of a JAX model is a selection of {list(RECORDED)}; got {others}. "
            f"For example kinds=['activation','delta']."
        )
    return found


def _scalar(value: Any) -> Any:
    value = jnp.asarray(value)
    if value.size != 1 or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"a loss is one real number; got {value.dtype} of shape {value.shape}. For example "
            f"loss=lambda model, batch: ((model(batch[0]) - batch[1]) ** 2).mean()."
        )
    return value.reshape(())


def selected(place: Place, patterns: Sequence[str] | None) -> bool:
    """Whether a mark is to be recorded."""
    return patterns is None or any(fnmatchcase(place.name, pattern) for pattern in patterns)


def names_of(parameters: Any) -> list[str]:
    """The name of each leaf of a pytree of parameters, in its order, with dots."""
    with_paths = jax.tree_util.tree_flatten_with_path(parameters)[0]
    return [_dotted(path) for path, _ in with_paths]


def _dotted(path: Sequence[Any]) -> str:
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name in ("value", "raw_value"):
        path = path[:-1]  # of a variable of flax.nnx, or of one with metadata
    return ".".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path) or PARAMETER


def _visit(kinds: Sequence[str], mark: Mapping[str, Any], x: Any, given: Any) -> tuple[Any, Any]:
    """What is recorded at a mark; nothing where nothing is given."""
    if given is None:
        return x, None
    said = {}
    if ACTIVATION in kinds:
        said[ACTIVATION] = sums(x)
    if mark["what"] == LOGITS:
        return x, said
    if DELTA in kinds:
        some = jax.lax.stop_gradient(thinned(x))
        said[COPY] = some
        if given["first"] is not None:
            said[DELTA] = sums(some.astype(jnp.float32) - given["first"].astype(jnp.float32))
    if given["slot"] is not None:
        x = felt(x, given["slot"])
    return x, said


def _packed(by_kind: Mapping[str, Mapping[Any, Any]]) -> tuple[Any, tuple[Rows, ...]]:
    """All sums, each of shape (..., 5), in one array, and where they stand in it."""
    parts, rows, start = [jnp.zeros((0, 5), jnp.float32)], [], 0
    for kind, by_key in by_kind.items():
        for key, found in by_key.items():
            rows.append(Rows(kind, key, start, tuple(found.shape[:-1])))
            parts.append(found.reshape(-1, 5))
            start += len(parts[-1])
    return jnp.concatenate(parts), tuple(rows)


def _slot(closed: Any, place: Place) -> Any:
    return jnp.zeros((*iterations(closed, place), 5), jnp.float32)


def iterations(closed: Any, place: Place) -> tuple[int, ...]:
    """The lengths of the scans around a mark."""
    lengths, jaxpr, path = [], closed.jaxpr, place.path
    while len(path) > 1:
        eqn = jaxpr.eqns[path[0]]
        name = eqn.primitive.name
        if name == "scan":
            lengths.append(eqn.params["length"])
        inner = eqn.params["branches"][path[1]] if name == "cond" else eqn.params["jaxpr"]
        jaxpr, path = getattr(inner, "jaxpr", inner), path[2:]
    return tuple(lengths)


def _picked(told: Any, here: Iterable[Place], kind: str) -> dict[Any, Any]:
    found = {place.path: (at(told, place.path) or {}).get(kind) for place in here}
    return {path: value for path, value in found.items() if value is not None}


def _effective_updates(
    closed: Any, flat: Sequence[Any], rest: Sequence[Any], before: Sequence[Any], here: Sequence[Place]
) -> dict[Any, Any]:
    """Sums of (W_t - W_0) x_t of every module that is made of parameters and its input alone, by place."""
    leaves = [place for place in here if place.leaf and place.what == OUTPUT]

    def visit(mark: Mapping[str, Any], x: Any, given: Any) -> tuple[Any, Any]:
        # what comes in and what goes on has no derivative: only the module's own parameters have
        return jax.lax.stop_gradient(x), thinned(x) if given is not None else None

    def outputs(flat: list[Any]) -> dict[Any, Any]:
        given = nested({place.path: () for place in leaves})
        told = follow(closed, [*flat, *rest], visit, given)[1]
        return {place.path: at(told, place.path) for place in leaves}

    change = [
        (w.astype(jnp.float32) - w0.astype(jnp.float32)).astype(w.dtype) for w, w0 in zip(flat, before, strict=True)
    ]
    _, moved = jax.jvp(outputs, (list(flat),), (change,))
    stacked = {place.path: len(iterations(closed, place)) for place in leaves}

    def summed(path: Any, x: Any) -> Any:
        function = sums
        for _ in range(stacked[path]):
            function = jax.vmap(function)
        return function(x)

    return {path: summed(path, x) for path, x in moved.items()}
