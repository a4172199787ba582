"""Attention that a model writes by hand: a product of queries and keys, softmax over the keys, a product with values.

All three are asked for, so that a router, a readout or any other product whose result is not softmaxed, or not summed
up again over what was softmaxed, is none. What multiplies the product on its way to the softmax is its scale; masks and
position biases that are added, casts and dropout change nothing of it.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coordcheck.observe.operations import QUOTIENTS, SCALES, name_of, named

MATMULS = {torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm}
ADDED = {torch.baddbmm, Tensor.baddbmm, Tensor.baddbmm_}
SOFTMAXES = {F.softmax, torch.softmax, Tensor.softmax}
PRODUCTS = MATMULS | ADDED | {torch.einsum}
# logits and probabilities pass these with their rows and columns in place
PASSES = SCALES | {
    *("add", "sub", "where", "masked_fill", "tanh", "clamp", "nan_to_num", "maximum", "dropout"),
    *("to", "type", "type_as", "float", "half", "bfloat16", "double", "contiguous", "clone", "detach"),
    *("view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "expand", "getitem", "cat"),
}
JOINING = ("getitem", "cat")  # a column more or less, as for an attention sink


@dataclass(frozen=True)
class Logits:
    """What a tensor is made of: queries (..., L, K), keys (..., S, K), and the factor; softmaxed or not yet."""

    query: Tensor
    key: Tensor
    scale: Any
    softmaxed: bool = False


class ExplicitAttention:
    """Follows products of one forward pass, from call to call.

    Args:
        seen: Called with query, key and scale of every attention.
    """

    def __init__(self, seen: Callable[[Tensor, Tensor, Any], None]):
        self.seen = seen
        self._made: dict[int, tuple[weakref.ref[Tensor], Logits]] = {}

    def forget(self) -> None:
        """Lets go of what was not an attention."""
        self._made.clear()

    def after(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Told of every call of a torch function and of its result."""
        if func in PRODUCTS:
            self._product(func, args, kwargs, result)
        elif self._made and isinstance(result, Tensor):
            self._follow(func, args, kwargs, result)

    def _product(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        operands = [*_tensors(args), *_tensors(list(kwargs.values()))]
        if len(operands) < 2:
            return
        for operand in operands[-2:]:
            logits = self._of(operand)
            if logits is not None and logits.softmaxed:
                self._made = {key: made for key, made in self._made.items() if made[1].query is not logits.query}
                self.seen(logits.query, logits.key, logits.scale)
                return
        if any(_is_weight(operand) for operand in operands[-2:]) or not result.is_floating_point():
            return
        pair = _einsum(args[0], operands) if func is torch.einsum else _batched(operands[-2:])
        if pair is not None:
            self._keep(result, Logits(*pair, kwargs.get("alpha", 1.0)))

    def _follow(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor) -> None:
        known = [(x, logits) for x in _tensors([*args, *kwargs.values()]) if (logits := self._of(x)) is not None]
        if not known:
            return
        x, logits = known[0]
        if func in SOFTMAXES:
            dim = named("input dim", args, kwargs).get("dim")
            if dim in (-1, x.dim() - 1) and not logits.softmaxed:
                self._keep(result, replace(logits, softmaxed=True))
            return
        name = name_of(func)
        kept = result.shape[-2:] == x.shape[-2:] or (name in JOINING and result.shape[:-1] == x.shape[:-1])
        if name in PASSES and kept:
            self._keep(result, _scaled(logits, name, x, args, kwargs))

    def _of(self, x: Tensor) -> Logits | None:
        made = self._made.get(id(x))
        return made[1] if made is not None and made[0]() is x else None

    def _keep(self, result: Tensor, logits: Logits) -> None:
        self._made[id(result)] = weakref.ref(result), logits


def _scaled(logits: Logits, name: str, x: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Logits:
    """With the factor of this call: a number, or a tensor with one for each head; a mask that multiplies is none."""
    if name not in SCALES or logits.softmaxed:
        return logits
    others = [value for value in [*args, kwargs.get("other")] if value is not x and value is not None]
    factor = others[0] if others else None
    if isinstance(factor, Tensor):
        if factor.numel() > 1 and factor.shape[-2:] != (1, 1):
            return logits
        factor = factor.detach()
    if isinstance(factor, Tensor | int | float):
        return replace(logits, scale=logits.scale / factor if name in QUOTIENTS else logits.scale * factor)
    return logits


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (item for item in value if isinstance(item, Tensor))


def _is_weight(x: Tensor) -> bool:
    return isinstance(x, nn.Parameter) or isinstance(x._base, nn.Parameter)


def _batched(operands: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Queries and keys of a product of stacks of matrices; one without a stack is a weight, or nothing attends."""
    query, key = operands
    return (query, key.mT) if min(query.dim(), key.dim()) > 2 else None


def _einsum(equation: Any, operands: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Queries and keys of a product such as "bhqd,bhkd->bhqk", or "bqhd,bkhd->bhqk"."""
    if not isinstance(equation, str) or "." in equation or len(operands) != 2:
        return None
    left, _, result = equation.replace(" ", "").partition("->")
    first, _, second = left.partition(",")
    shared = [letter for letter in result if letter in first and letter in second]
    summed = [letter for letter in first if letter in second and letter not in result]
    rows, columns = result[-2:-1], result[-1:]
    as_expected = shared and len(summed) == 1 and len(result) == len(shared) + 2 and len(shared) + 2 == len(first)
    if not as_expected or len(first) != len(second) or rows not in first or columns not in second:
        return None
    order = ["".join(shared) + letter + summed[0] for letter in (rows, columns)]
    query, key = (torch.einsum(f"{a}->{b}", x) for a, b, x in zip((first, second), order, operands, strict=True))
    return query, key
