"""How each parameter meets data in the forward pass, read from the jaxpr: no name and no class is asked.

Operations that only scale or rearrange carry a factor along with an array, before a use and after it. Equal models of
several widths have equal jaxprs but for their sizes, so that growth and exponents are read beside each other.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from coordcheck.jax.follow import Path, places
from coordcheck.jax.marks import OUTPUT, mark_p
from coordcheck.jax.records import layer_name
from coordcheck.records.schema import ROOT

VIEWS = (
    *("convert_element_type", "reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "copy", "copy_p"),
    *("slice", "dynamic_slice", "rev", "reduce_precision", "optimization_barrier", "sharding_constraint", "pad"),
    *("stop_gradient", "name", "split", "reshard"),
)
SUMS = ("add", "sub", "add_any")
ARITHMETIC = (  # of numbers, which a width may have been made into a factor by
    *("add", "sub", "mul", "div", "rem", "neg", "abs", "sign", "max", "min", "pow", "integer_pow", "square", "sqrt"),
    *("rsqrt", "cbrt", "exp", "exp2", "log", "log1p", "expm1", "floor", "ceil", "round"),
)
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr"}
CALLS |= {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr", "custom_vjp_call_jaxpr": "fun_jaxpr"}
CALLS |= {"core_call": "call_jaxpr"}


@dataclass
class Use:
    """A place where a parameter meets data.

    Attributes:
        parameter: Its name.
        operation: The primitive.
        fan_in: How many terms are summed; 1 where nothing is.
        fan_out: How many outputs a row of inputs makes.
        before: What is multiplied in before, on either side.
        module: The first marked output that holds the product.
        after: What the product is multiplied by afterwards.
        returned: Whether it reaches what the model returns without meeting another matrix.
        entrywise: Whether the parameter is a vector that is added or multiplied entry by entry.
    """

    parameter: str
    operation: str
    fan_in: int
    fan_out: int
    before: float
    module: str = ""
    after: float = 1.0
    returned: bool = False
    entrywise: bool = False


@dataclass(frozen=True)
class Value:
    """What is known of an array.

    Attributes:
        parameter: Of which it is a view, but for a factor; empty for none.
        factor: What it was multiplied by since it was made of something else.
        shape: Of the parameter before it was broadcast; None where it was not.
        constant: Its value, where that is one known number.
        products: Uses whose product it is, or a sum with it, and by what each was multiplied since.
        reach: Uses that reach it without meeting another matrix.
    """

    parameter: str = ""
    factor: float = 1.0
    shape: tuple[int, ...] | None = None
    constant: float | None = None
    products: Mapping[int, float] = field(default_factory=dict)
    reach: frozenset[int] = frozenset()


def read(closed: ClosedJaxpr, names: Sequence[str]) -> list[Use]:
    """The uses of parameters in forward order.

    Args:
        closed: Of a function whose first arguments are the parameters.
        names: Theirs.
    """
    reader = _Reader({place.path: place for place in places(closed, len(names))})
    arguments = [Value(parameter=name) for name in names]
    arguments += [Value() for _ in closed.jaxpr.invars[len(names) :]]
    reader.evaluate(closed.jaxpr, closed.consts, arguments, ())
    return reader.uses


class _Reader:
    def __init__(self, marks: Mapping[Path, Any]):
        self.marks = marks
        self.uses: list[Use] = []

    def evaluate(self, jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Value], path: Path) -> list[Value]:
        values: dict[Any, Value] = dict(zip(jaxpr.constvars, map(_constant, consts), strict=True))
        values.update(zip(jaxpr.invars, args, strict=True))
        for i, eqn in enumerate(jaxpr.eqns):
            operands = [_constant(v.val) if isinstance(v, Literal) else values[v] for v in eqn.invars]
            results = self.step(eqn, operands, (*path, i))
            values.update(zip(eqn.outvars, results, strict=True))
        return [_constant(v.val) if isinstance(v, Literal) else values[v] for v in jaxpr.outvars]

    def step(self, eqn: Any, operands: list[Value], path: Path) -> list[Value]:
        name = eqn.primitive.name
        if eqn.primitive is mark_p:
            self._see(eqn, operands[0], path)
            return operands
        if name in CALLS:
            inner = eqn.params[CALLS[name]]
            consts = getattr(inner, "consts", ())
            return self.evaluate(getattr(inner, "jaxpr", inner), consts, operands, (*path, 0))
        if name == "scan":
            inner = eqn.params["jaxpr"]
            return self.evaluate(inner.jaxpr, inner.consts, operands, (*path, 0))
        if name == "cond":
            found = [
                self.evaluate(b.jaxpr, b.consts, operands[1:], (*path, k)) for k, b in enumerate(eqn.params["branches"])
            ]
            return found[-1]
        if operands and all(o.constant is not None for o in operands):
            return _folded(eqn, operands)
        special = getattr(self, f"_{name}", None)
        result = special(eqn, operands) if special is not None else None
        if result is None and name in VIEWS:
            result = operands[0]
        if result is None and name in SUMS:
            result = self._sum(eqn, operands)
        if result is None:
            result = self._anything(eqn, operands)
        return [result] * len(eqn.outvars)

    def _see(self, eqn: Any, value: Value, path: Path) -> None:
        place = self.marks.get(path)
        if eqn.params["what"] != OUTPUT:
            return
        name = eqn.params["name"] if place is None else layer_name(place, (0,) * len(place.layers))
        for use in value.products:
            self.uses[use].module = self.uses[use].module or name
        if name == ROOT:
            for use in value.reach:
                self.uses[use].returned = True
            for use, after in value.products.items():
                self.uses[use].after = after

    def _end(self, value: Value, by_product: bool = False) -> None:
        """An array is consumed: what its products were multiplied by is known now, unless its consumer's it is."""
        for use, after in value.products.items():
            if not by_product:
                self.uses[use].after = after

    def _used(self, use: Use) -> Value:
        self.uses.append(use)
        number = len(self.uses) - 1
        return Value(products={number: 1.0}, reach=frozenset([number]))

    def _broadcast_in_dim(self, eqn: Any, operands: list[Value]) -> Value | None:
        """A bias that is repeated for every row is the same bias."""
        value = operands[0]
        if not value.parameter or value.shape is not None:
            return None
        return replace(value, shape=tuple(eqn.invars[0].aval.shape))

    def _mul(self, eqn: Any, operands: list[Value]) -> Value | None:
        for scale, other in (operands, operands[::-1]):
            if scale.constant is not None:
                return _scaled(other, scale.constant)
        return None

    def _div(self, eqn: Any, operands: list[Value]) -> Value | None:
        scale = operands[1].constant
        return _scaled(operands[0], 1 / scale) if scale else None

    def _neg(self, eqn: Any, operands: list[Value]) -> Value:
        return _scaled(operands[0], -1.0)

    def _select_n(self, eqn: Any, operands: list[Value]) -> Value | None:
        """Dropout or padding: a choice between zero and something."""
        kept = [o for o in operands[1:] if o.constant is None]
        return kept[0] if len(kept) == 1 else None

    def _concatenate(self, eqn: Any, operands: list[Value]) -> Value | None:
        return None if any(o.parameter for o in operands) else self._sum(eqn, operands)

    def _sum(self, eqn: Any, operands: list[Value]) -> Value | None:
        added = [o for o in operands if o.parameter]
        data = [o for o in operands if not o.parameter and o.constant is None]
        if added and data:
            self._entrywise(eqn, operands)
        if added and not data:
            return None
        products: dict[int, float] = {}
        for o in data:
            products |= o.products
        alone = data[0].factor if len(data) == 1 and not added else 1.0
        return Value(factor=alone, products=products, reach=frozenset().union(*(o.reach for o in data)))

    def _entrywise(self, eqn: Any, operands: list[Value]) -> None:
        for o, variable in zip(operands, eqn.invars, strict=True):
            if o.parameter:
                shape = variable.aval.shape if o.shape is None else o.shape
                vector = sum(size > 1 for size in shape) < 2  # learned positions are a matrix
                out = int(shape[-1]) if shape else 1
                self.uses.append(Use(o.parameter, eqn.primitive.name, 1, out, o.factor, entrywise=vector))

    def _dot_general(self, eqn: Any, operands: list[Value]) -> Value | None:
        (left, right), batch = eqn.params["dimension_numbers"]
        sides = list(zip(operands, eqn.invars, (left, right), batch, strict=True))
        for k, (value, variable, contracted, batched) in enumerate(sides):
            other = operands[1 - k]
            if value.parameter and not other.parameter:
                shape = variable.aval.shape
                fan_in = math.prod(shape[d] for d in contracted)
                kept = [d for d in range(len(shape)) if d not in contracted and d not in batched]
                self._end(other, by_product=_straight(other))
                fan_out = math.prod(shape[d] for d in kept)
                return self._used(Use(value.parameter, "dot_general", fan_in, fan_out, value.factor * other.factor))
        for value in operands:  # two arrays of data: attention, which its logits judge
            self._end(value, by_product=True)
        return Value(reach=frozenset().union(*(o.reach for o in operands)))

    def _conv_general_dilated(self, eqn: Any, operands: list[Value]) -> Value | None:
        data, kernel = operands
        if not kernel.parameter:
            return None
        out, into, *spatial = eqn.params["dimension_numbers"].rhs_spec
        shape = eqn.invars[1].aval.shape
        self._end(data, by_product=_straight(data))
        fan_in = shape[into] * math.prod(shape[d] for d in spatial)
        return self._used(Use(kernel.parameter, "conv", fan_in, shape[out], kernel.factor * data.factor))

    def _gather(self, eqn: Any, operands: list[Value]) -> Value | None:
        table = operands[0]
        if not table.parameter:
            return None
        sizes = eqn.params["slice_sizes"]
        collapsed = eqn.params["dimension_numbers"].collapsed_slice_dims
        row = math.prod(s for d, s in enumerate(sizes) if d not in collapsed)
        return self._used(Use(table.parameter, "gather", 1, row, table.factor))

    def _anything(self, eqn: Any, operands: list[Value]) -> Value:
        if eqn.primitive.name == "mul" and any(not o.parameter and o.constant is None for o in operands):
            self._entrywise(eqn, operands)
        for o in operands:
            self._end(o)
        return Value(reach=frozenset().union(*(o.reach for o in operands)))


def _straight(value: Value) -> bool:
    """Whether an array is a product and nothing else, so that its factor counts for what reads it."""
    return [*value.products.values()] == [value.factor]


def _scaled(value: Value, factor: float) -> Value:
    products = {use: after * abs(factor) for use, after in value.products.items()}
    return replace(value, factor=value.factor * abs(factor), products=products)


def _constant(value: Any) -> Value:
    """Of an array that is one number throughout and no key or index."""
    dtype = getattr(value, "dtype", None)
    if dtype is not None and (jax.dtypes.issubdtype(dtype, jax.dtypes.extended) or isinstance(value, jax.core.Tracer)):
        return Value()
    array = np.asarray(value)
    if array.size == 1 and array.dtype.kind not in "OSUV":
        return Value(constant=float(np.asarray(array, dtype=np.float64).reshape(())))
    return Value()


def _folded(eqn: Any, operands: Sequence[Value]) -> list[Value]:
    """The number that numbers make; an array of one number throughout is that number."""
    if eqn.primitive.name in VIEWS:
        return [operands[0]] * len(eqn.outvars)
    if eqn.primitive.name not in ARITHMETIC or any(v.aval.shape for v in (*eqn.invars, *eqn.outvars)):
        return [Value()] * len(eqn.outvars)
    numbers = [np.asarray(o.constant, dtype=v.aval.dtype) for o, v in zip(operands, eqn.invars, strict=True)]
    return [_constant(eqn.primitive.bind(*numbers, **eqn.params))]
