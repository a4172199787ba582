"""What torch's functions do with the dimensions of their arguments, by the function's name.

Knows nothing of models or widths: :mod:`coordcheck.observe.flow` asks it about every call of a forward pass.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Labels = tuple[frozenset[int], ...]

SCALES = {"mul", "multiply", "div", "divide", "true_divide", "truediv"}
QUOTIENTS = {"div", "divide", "true_divide", "truediv"}
NEGATIONS = {"neg", "negative"}

# the same entries in another order or shape: what holds of the flat memory holds of the dimensions
RESHAPES = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "ravel", "view_as", "reshape_as"}
# linear in their first argument and blind to its size: a factor before them is a factor after them
CARRIES = RESHAPES | NEGATIONS | {
    *("transpose", "permute", "movedim", "moveaxis", "swapaxes", "swapdims", "t", "T", "mT", "H", "mH", "adjoint"),
    *("getitem", "select", "narrow", "chunk", "split", "tensor_split", "unbind", "split_with_sizes", "diagonal"),
    *("hsplit", "vsplit", "dsplit", "unsafe_chunk", "unsafe_split", "select_copy", "slice_copy", "as_strided"),
    *("expand", "expand_as", "broadcast_to", "broadcast_tensors", "repeat", "tile", "repeat_interleave", "unfold"),
    *("to", "type", "type_as", "float", "half", "bfloat16", "double", "cpu", "cuda", "contiguous", "clone"),
    *("detach", "data", "alias", "requires_grad", "pin_memory", "real", "view_as_real", "view_as_complex"),
    *("dropout", "alpha_dropout", "feature_dropout", "dropout1d", "dropout2d", "dropout3d", "native_dropout"),
    *("sum", "mean", "cumsum", "nansum", "flip", "roll", "tril", "triu", "index_select", "gather", "take_along_dim"),
    *("masked_fill", "masked_select", "take", "pad", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "pixel_shuffle", "pixel_unshuffle"),
    *("as_subclass", "positive", "checkpoint", "identity", "wait_tensor"),
}  # fmt: skip
SUMS = {"add", "sub", "subtract", "rsub", "index_add", "scatter_add", "where", "index_copy", "copy"}
SUMS |= {"masked_scatter", "scatter", "setitem", "index_put"}
JOINS = {"cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack"}
ELEMENTWISE = SCALES | {
    *("rdiv", "pow", "rpow", "float_power", "maximum", "minimum", "fmax", "fmin", "addcmul", "addcdiv", "lerp"),
    *("prelu", "atan2", "hypot", "logaddexp", "logaddexp2", "fmod", "remainder", "floor_divide", "copysign"),
    *("clamp", "clamp_min", "clamp_max", "clip", "xlogy", "threshold", "floordiv", "mod", "eq", "gt", "ge", "lt", "le"),
}  # fmt: skip
NORMS = {"layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm"}
NORMS |= {f"native_{name}" for name in NORMS} | {"cudnn_batch_norm", "fused_rms_norm"}
RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"}
# look rows up: nothing is summed
LOOKUPS = {"getitem", "index_select", "gather", "take_along_dim", "index"}
# what stands in these places is data, even where it is made of parameters alone: learned queries, latents
DATA_PLACES = {"scaled_dot_product_attention": 3} | dict.fromkeys(NORMS, 1) | dict.fromkeys(RECURRENT, 1)


@dataclass(frozen=True)
class Contraction:
    """How a product treats the dimensions of one operand.

    Attributes:
        summed: Dimensions that are summed over.
        out: Dimensions that are of the result and of no other operand.
        groups: Independent blocks within the other dimensions, as a grouped convolution has them.
        groups_in: Whether the blocks divide the summed dimensions (else the others).
    """

    summed: tuple[int, ...] = ()
    out: tuple[int, ...] = ()
    groups: int = 1
    groups_in: bool = False

    def sizes(self, shape: Sequence[int], kept: Sequence[bool]) -> tuple[int, int, int]:
        """Fan-in, fan-out and number of independent blocks of an operand of a shape.

        Args:
            shape: Of the operand.
            kept: Which of its dimensions count.
        """
        fan_in = math.prod(shape[d] for d in self.summed if kept[d])
        fan_out = math.prod(shape[d] for d in self.out if kept[d])
        used = {*self.summed, *self.out}
        blocks = math.prod(size for d, size in enumerate(shape) if d not in used and kept[d])
        if self.groups_in:
            return max(fan_in // self.groups, 1), fan_out, blocks * self.groups
        return fan_in, max(fan_out // self.groups, 1), blocks * self.groups


@dataclass(frozen=True)
class Product:
    """A call that multiplies and sums.

    Attributes:
        operation: Its word in the table of uses.
        operands: Every operand that may be a weight, with what happens to its dimensions.
        data: What can only be data; None where any operand may be.
        added: What is added to the result, with its factor.
        scale: What the product is multiplied by before that.
    """

    operation: str
    operands: list[tuple[Tensor, Contraction]]
    data: list[Tensor] = field(default_factory=list)
    added: list[tuple[Tensor, float]] = field(default_factory=list)
    scale: float = 1.0


def name_of(func: Callable[..., Any]) -> str:
    """The name of a torch function, the same for ``torch.mul``, ``Tensor.mul_``, ``*=`` and ``torch.ops.aten.mul``.

    An operator of somebody's own keeps its namespace: it may be called "linear" and do something else.
    """
    name = getattr(func, "__name__", type(func).__name__)
    qualified = getattr(func, "_qualified_op_name", None) or getattr(func, "_name", "")
    if "::" in str(qualified) and not str(qualified).startswith("aten::"):
        return str(qualified).split(".")[0]
    if name == "__get__":
        return str(getattr(func.__self__, "__name__", name))  # type: ignore[attr-defined]
    if name.startswith("__") and name.endswith("__"):
        inner = name[2:-2]
        plain = {"truediv": "div", "itruediv": "div", "rtruediv": "rdiv", "rmatmul": "rmatmul", "radd": "add"}
        plain |= {"rmul": "mul", "imul": "mul", "iadd": "add", "isub": "sub", "ipow": "pow"}
        return plain.get(inner, inner)
    return str(name).split(".")[0].strip("_")


def tensors(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """The tensors in a value made of tuples, lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item, depth - 1)
    elif depth and hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        for name in value.__dataclass_fields__:
            yield from tensors(getattr(value, name, None), depth - 1)


def named(names: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, those that were given."""
    return {**dict(zip(names.split(), args, strict=False)), **kwargs}


def product(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Product | None:
    """What a call multiplies and sums; None for a call that does not."""
    read = _PRODUCTS.get(name)
    return None if read is None else read(name, args, kwargs)


def labels_after(name: str, before: Tensor, after: Tensor, labels: Labels | None) -> Labels | None:
    """Which dimensions of a parameter the dimensions of a tensor come from, after a call that moved its entries.

    Args:
        name: Of the function.
        before: Its argument, of any shape.
        after: Its result.
        labels: Of the argument, one set for each of its dimensions; None where they are unknown.

    Returns:
        Labels of the result; None where they are unknown.
    """
    if labels is None:
        return None
    if name in RESHAPES and before.numel() == after.numel():
        return _by_stride(before.shape, _dense(before.shape), after.shape, _dense(after.shape), labels)
    if before.shape == after.shape and before.stride() == after.stride():
        return labels
    if before.untyped_storage()._cdata == after.untyped_storage()._cdata:
        return _by_stride(before.shape, before.stride(), after.shape, after.stride(), labels)
    if name in LOOKUPS and after.dim() <= before.dim():
        return labels[before.dim() - after.dim() :]
    return labels if before.shape == after.shape else None


def _dense(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[d + 1 :]) for d in range(len(shape))]


def _by_stride(
    shape: Sequence[int], stride: Sequence[int], new_shape: Sequence[int], new_stride: Sequence[int], labels: Labels
) -> Labels:
    """A dimension of a view steps over the memory of those dimensions whose strides it covers."""
    return tuple(
        frozenset().union(
            *(
                labels[d]
                for d in range(len(shape))
                if new > 0 and shape[d] > 1 and stride[d] < new * size and new < stride[d] * shape[d]
            )
        )
        for size, new in zip(new_shape, new_stride, strict=True)
    )


def _biased(bias: Tensor | None) -> list[tuple[Tensor, float]]:
    return [] if bias is None else [(bias, 1.0)]


def _linear(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Product:
    call = named("input weight bias", args, kwargs)
    weight = call["weight"]
    contraction = Contraction((weight.dim() - 1,), tuple(range(weight.dim() - 1)))
    return Product("linear", [(weight, contraction)], [call["input"]], _biased(call.get("bias")))


def _bilinear(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Product:
    call = named("input1 input2 weight bias", args, kwargs)
    operands = [(call["weight"], Contraction((1, 2), (0,)))]
    return Product("bilinear", operands, [call["input1"], call["input2"]], _biased(call.get("bias")))


def _embedding(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Product:
    places = "weight indices" if isinstance(args[0], Tensor) and args[0].is_floating_point() else "input weight"
    call = named(places, args, kwargs)
    index = call["indices"] if "indices" in call else call["input"]
    return Product("embedding", [(call["weight"], Contraction((), (1,)))], [index])


def _matmul(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Product:
    first, second = args[0], args[1] if len(args) > 1 else next(tensors(kwargs))
    left, right = (second, first) if name == "rmatmul" else (first, second)
    # `inner` sums over the last dimension of both
    return Product("matmul", [(left, _left(left)), (right, (_left if name == "inner" else _right)(right))])


def _left(operand: Tensor) -> Contraction:
    return Contraction((operand.dim() - 1,), (operand.dim() - 2,) if operand.dim() > 1 else ())


def _right(operand: Tensor) -> Contraction:
    return Contraction((operand.dim() - 2,), (operand.dim() - 1,)) if operand.dim() > 1 else Contraction((0,))


def _grouped(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Product:
    # called input and weight, or mat_a and mat_b
    data, weight = list(tensors([*args, *kwargs.values()]))[:2]
    return Product("matmul", [(weight, _right(weight))], [data])


def _added_matmul(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Product:
    call = named("input left right", args, kwargs)
    _, left, right = list(tensors([*args, *kwargs.values()]))[:3]
    operands = [(left, _left(left)), (right, _right(right))]
    added = [(call["input"], float(kwargs.get("beta", 1.0)))]
    return Product("matmul", operands, [], added, float(kwargs.get("alpha", 1.0)))


def _conv(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Product:
    if name.startswith("conv_transpose"):
        call = named("input weight bias stride padding output_padding groups", args, kwargs)
        kernel = tuple(range(2, call["weight"].dim()))
        contraction = Contraction((0, *kernel), (1,), call.get("groups", 1), groups_in=True)
    elif name == "convolution":
        call = named("input weight bias stride padding dilation transposed output_padding groups", args, kwargs)
        kernel = tuple(range(2, call["weight"].dim()))
        transposed = call.get("transposed", False)
        places = ((0, *kernel), (1,)) if transposed else ((1, *kernel), (0,))
        contraction = Contraction(*places, call.get("groups", 1), groups_in=transposed)
    else:
        call = named("input weight bias stride padding dilation groups", args, kwargs)
        kernel = tuple(range(2, call["weight"].dim()))
        contraction = Contraction((1, *kernel), (0,), call.get("groups", 1))
    return Product("conv", [(call["weight"], contraction)], [call["input"]], _biased(call.get("bias")))


def _einsum(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Product | None:
    equation, operands = args[0], list(tensors(list(args[1:])))
    if not isinstance(equation, str):
        return None
    left, arrow, result = equation.replace(" ", "").replace("...", ".").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = left.replace(",", "")
        result = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1 or letter == "."))
    read = []
    for place, (term, operand) in enumerate(zip(terms, operands, strict=True)):
        others = "".join(terms[:place] + terms[place + 1 :])
        expanded = term.replace(".", "." * (operand.dim() - len(term) + 1)) if "." in term else term
        summed = tuple(d for d, letter in enumerate(expanded) if letter not in result)
        out = tuple(d for d, letter in enumerate(expanded) if letter in result and letter not in others)
        read.append((operand, Contraction(summed, out)))
    return Product("einsum", read)


def _tensordot(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Product:
    call = named("a b dims", args, kwargs)
    left, right, dims = call["a"], call["b"], call.get("dims", 2)
    if isinstance(dims, int):
        dims = (range(left.dim() - dims, left.dim()), range(dims))
    read = []
    for operand, given in zip((left, right), dims, strict=True):
        summed = tuple(d % operand.dim() for d in ([given] if isinstance(given, int) else given))
        read.append((operand, Contraction(summed, tuple(d for d in range(operand.dim()) if d not in summed))))
    return Product("tensordot", read)


def _names(words: str, read: Callable[..., Product | None]) -> Iterable[tuple[str, Callable[..., Product | None]]]:
    return ((word, read) for word in words.split())


_PRODUCTS: dict[str, Callable[..., Product | None]] = dict(
    [
        *_names("linear", _linear),
        *_names("bilinear", _bilinear),
        *_names("embedding embedding_bag", _embedding),
        *_names("matmul rmatmul mm bmm mv dot vdot inner", _matmul),
        *_names("grouped_mm transformers::grouped_mm_fallback", _grouped),
        *_names("addmm baddbmm addbmm addmv", _added_matmul),
        *_names("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution", _conv),
        *_names("einsum", _einsum),
        *_names("tensordot", _tensordot),
    ]
)


def is_unit(value: object) -> bool:
    """Whether a value has one entry: a Python number, or a tensor of one."""
    return value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, int | float | complex)


def size_of(number: Any) -> float:
    """The absolute value of what :func:`is_unit`; NaN without memory."""
    if isinstance(number, Tensor):
        return math.nan if number.is_meta else abs(number.item())
    return float(abs(number))


def root_mean_square(values: Iterable[Tensor]) -> float:
    """Of the entries of all tensors together; NaN without memory or without floating point entries."""
    some = [x.detach() for x in values if (x.is_floating_point() or x.is_complex()) and not x.is_meta and x.numel()]
    if not some:
        return math.nan
    squares = sum(float(torch.linalg.vector_norm(x.flatten(), dtype=_wide(x))) ** 2 for x in some)
    return math.sqrt(squares / sum(x.numel() for x in some))


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
