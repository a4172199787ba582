"""Follows the marks of a traced function: where they are, and what somebody wants to know at each of them.

A jaxpr is evaluated again, one equation after the other, with a visitor at each mark. What the visitor needs goes in
and what it tells comes out through jit, scan, remat and cond, stacked over the iterations of a scan. Marks inside
``while_loop``, ``shard_map`` and functions with a derivative of their own are not seen.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from coordcheck.jax.marks import mark_p

Path = tuple[int, ...]
Told = dict[Any, Any]  # by place of the equation, nested as jaxprs are
Visit = Callable[[Mapping[str, Any], Any, Any], tuple[Any, Any]]


@dataclass(frozen=True)
class Place:
    """A mark.

    Attributes:
        path: Places of the equations that lead to it.
        name: Of the module as it was marked.
        layers: Before which number of parts of the name an index of the iteration stands, for each scan over layers'
            parameters around it; None for a scan over something else, whose iterations are calls of one module.
        part: Of its output.
        what: "input", "output" or "attention_logits".
        leaf: See :func:`coordcheck.jax.marks.marked`.
        shape: Of what is marked, in one iteration.
    """

    path: Path
    name: str
    layers: tuple[int | None, ...]
    part: str
    what: str
    leaf: bool
    shape: tuple[int, ...]


def places(closed: ClosedJaxpr, parameters: int) -> list[Place]:
    """The marks of a jaxpr in forward order.

    Args:
        closed: Of a function.
        parameters: How many of its first arguments are parameters.
    """
    return list(_places(closed.jaxpr, {*closed.jaxpr.invars[:parameters]}, ()))


def _places(jaxpr: Jaxpr, weights: set[Any], path: Path) -> Iterator[Place]:
    weights = {*weights}
    for i, eqn in enumerate(jaxpr.eqns):
        variables = [v for v in eqn.invars if not isinstance(v, Literal)]
        if eqn.primitive is mark_p:
            p, here = eqn.params, (*path, i)
            yield Place(here, p["name"], (), p["part"], p["what"], p["leaf"], tuple(eqn.invars[0].aval.shape))
        for k, (inner, operands) in enumerate(_inner(eqn)):
            own = {v for v, outer in zip(inner.invars, operands, strict=True) if outer in weights}
            within = list(_places(inner, own, (*path, i, k)))
            yield from _in_layers(eqn, within, operands, weights) if eqn.primitive.name == "scan" else within
        if variables and all(v in weights for v in variables):
            weights |= {*eqn.outvars}


def _in_layers(eqn: Any, within: Sequence[Place], operands: Sequence[Any], weights: set[Any]) -> Iterator[Place]:
    """The marks inside a scan, which is one over layers where it takes their parameters apart."""
    sliced = operands[eqn.params["num_consts"] + eqn.params["num_carry"] :]
    names = [place.name.split(".") for place in within]
    common = 0
    while names and all(len(name) > common and name[common] == names[0][common] for name in names):
        common += 1
    apart = common if any(v in weights for v in sliced if not isinstance(v, Literal)) else None
    for place in within:
        yield Place(**{**vars(place), "layers": (apart, *place.layers)})


def _inner(eqn: Any) -> list[tuple[Jaxpr, Sequence[Any]]]:
    """The jaxprs inside an equation that are followed, each with the equation's operands for its arguments."""
    name, params = eqn.primitive.name, eqn.params
    if name in ("jit", "pjit", "scan"):
        return [(params["jaxpr"].jaxpr, _hashable(eqn.invars))]
    if name in ("remat2", "checkpoint"):
        return [(params["jaxpr"], _hashable(eqn.invars))]
    if name == "cond":
        return [(branch.jaxpr, _hashable(eqn.invars[1:])) for branch in params["branches"]]
    return []


def _hashable(variables: Sequence[Any]) -> list[Any]:
    return [None if isinstance(v, Literal) else v for v in variables]


def has_marks(eqn: Any) -> bool:
    """Whether an equation holds marks that are followed."""
    return any(next(_places(inner, set(), ()), None) is not None for inner, _ in _inner(eqn))


def follow(closed: ClosedJaxpr, args: Sequence[Any], visit: Visit, given: Told | None = None) -> tuple[list[Any], Told]:
    """Evaluates a jaxpr with a visitor at each mark.

    Args:
        closed: Of a function.
        args: Its arguments, flat.
        visit: From a mark's parameters, the array and what is given there to the array that takes its place and what
            is told, a pytree of arrays, or None for nothing.
        given: By place, see :func:`nested`.

    Returns:
        The results, flat, and what was told by place.
    """
    return _evaluate(closed.jaxpr, closed.consts, args, visit, given or {})


def _evaluate(
    jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any], visit: Visit, given: Told
) -> tuple[list[Any], Told]:
    values: dict[Any, Any] = {}
    told: Told = {}

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    for i, eqn in enumerate(jaxpr.eqns):
        operands = [read(v) for v in eqn.invars]
        here = given.get(i)
        with eqn.ctx.manager:
            if eqn.primitive is mark_p:
                result, said = visit(eqn.params, operands[0], here)
                results = [result]
            elif has_marks(eqn):
                results, said = RULES[eqn.primitive.name](eqn, operands, visit, here or {})
            else:
                bound = eqn.primitive.get_bind_params(eqn.params)
                functions, parameters = bound if isinstance(bound, tuple) else ((), bound)  # as older versions have it
                found, said = eqn.primitive.bind(*functions, *operands, **parameters), None
                results = found if eqn.primitive.multiple_results else [found]
        if not (said is None or (isinstance(said, dict) and not said)):
            told[i] = said
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars], told


def _call(eqn: Any, operands: Sequence[Any], visit: Visit, given: Told) -> tuple[list[Any], Told]:
    closed = eqn.params["jaxpr"]
    results, told = _evaluate(closed.jaxpr, closed.consts, operands, visit, given.get(0, {}))
    return results, {0: told} if told else {}


def _remat(eqn: Any, operands: Sequence[Any], visit: Visit, given: Told) -> tuple[list[Any], Told]:
    params = eqn.params

    def inside(operands: Sequence[Any], given: Told) -> tuple[list[Any], Told]:
        return _evaluate(params["jaxpr"], (), operands, visit, given)

    again = jax.checkpoint(inside, prevent_cse=params["prevent_cse"], policy=params["policy"])
    results, told = again(list(operands), given.get(0, {}))
    return results, {0: told} if told else {}


def _scan(eqn: Any, operands: Sequence[Any], visit: Visit, given: Told) -> tuple[list[Any], Told]:
    params, closed = eqn.params, eqn.params["jaxpr"]
    n, c = params["num_consts"], params["num_carry"]

    def body(carry: list[Any], slices: tuple[list[Any], Told]) -> tuple[list[Any], tuple[list[Any], Told]]:
        sliced, given_here = slices
        results, told = _evaluate(closed.jaxpr, closed.consts, [*operands[:n], *carry, *sliced], visit, given_here)
        return results[:c], (results[c:], told)

    carry, (stacked, told) = jax.lax.scan(
        body,
        list(operands[n : n + c]),
        (list(operands[n + c :]), given.get(0, {})),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *stacked], {0: told} if told else {}


def _cond(eqn: Any, operands: Sequence[Any], visit: Visit, given: Told) -> tuple[list[Any], Told]:
    index, *rest = operands
    branches = eqn.params["branches"]

    def run(k: int, operands: Sequence[Any], given: Told) -> tuple[list[Any], Told]:
        return _evaluate(branches[k].jaxpr, branches[k].consts, operands, visit, given.get(k, {}))

    shapes = [jax.eval_shape(lambda o, g, k=k: run(k, o, g)[1], list(rest), given) for k in range(len(branches))]

    def branch(k: int) -> Callable[[list[Any], Told], tuple[list[Any], Told]]:
        def inside(operands: list[Any], given: Told) -> tuple[list[Any], Told]:
            results, told = run(k, operands, given)
            silent = {j: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), s) for j, s in enumerate(shapes)}
            return results, {**silent, k: told}

        return inside

    return jax.lax.switch(index, [branch(k) for k in range(len(branches))], list(rest), given)


RULES: dict[str, Callable[[Any, Sequence[Any], Visit, Told], tuple[list[Any], Told]]] = {
    "jit": _call,
    "pjit": _call,
    "remat2": _remat,
    "checkpoint": _remat,
    "scan": _scan,
    "cond": _cond,
}


def nested(by_path: Mapping[Path, Any]) -> Told:
    """What is given, from a dict by path to the form that :func:`follow` takes."""
    root: Told = {}
    for path, value in by_path.items():
        node = root
        for step in path[:-1]:
            node = node.setdefault(step, {})
        node[path[-1]] = value
    return root


def at(told: Told, path: Path) -> Any:
    """What was told at a mark; None for nothing."""
    node: Any = told
    for step in path:
        if not isinstance(node, dict) or step not in node:
            return None
        node = node[step]
    return node
