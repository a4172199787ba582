"""Follows every tensor of one forward pass: what it descends from, and the factor it carries.

A parameter, and what is made of parameters alone, is followed as a weight; where it meets data, a use is written into a
:class:`coordcheck.observe.ledger.Ledger`. What a use gives is followed until something nonlinear, or the next use,
takes it. Which call does what is :mod:`coordcheck.observe.operations`' to say.
"""

import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from coordcheck.observe import operations as ops
from coordcheck.observe.ledger import VECTORS, Flow, Ledger, Part, union

Known = Sequence[tuple[Tensor, Flow]]
Sizes = tuple[float, float, float]
ATTENTION = "scaled_dot_product_attention"


class FlowMode(TorchFunctionMode):
    """Sees every torch function of the forward passes that run inside it.

    Args:
        model: Whose parameters are followed.

    Attributes:
        ledger: Of the uses that were seen.
        around: By parameter that nothing was seen to take, root mean squares around its module.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.ledger = Ledger()
        self.around: dict[str, Sizes] = {}
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._flows: dict[int, Flow] = {}
        self._alive: list[Tensor] = []  # or another tensor could get its id
        self._modules: list[str] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return _with_open_doors(func)(*args, **kwargs)
        out = func(*args, **kwargs)
        name, given, results = getattr(func, "__name__", ""), [], []
        try:
            name = ops.name_of(func)
            results = [args[0]] if name == "setitem" else [*ops.tensors(out)]
            if results:
                given = [*ops.tensors(args), *ops.tensors(kwargs)]
                self._see(name, args, kwargs, given, results)
        except Exception as error:  # any function may come with any arguments; observing must never break the model
            self._give_up(name, given, results, f"{type(error).__name__} while reading {name}: {error}")
        return out

    # what is known of a tensor

    def flow(self, tensor: Tensor) -> Flow | None:
        """What is known of a tensor; None for a constant."""
        name = self._names.get(id(tensor))
        if name is None:
            return self._flows.get(id(tensor))
        return Flow((Part(name, tuple(frozenset((d,)) for d in range(tensor.dim()))),))

    def _known(self, given: Iterable[Tensor]) -> list[tuple[Tensor, Flow]]:
        return [(tensor, flow) for tensor in given if (flow := self.flow(tensor)) is not None]

    def _set(self, tensor: Tensor, flow: Flow) -> None:
        if id(tensor) not in self._names:
            # through an integer, such as a token that was chosen, no size passes
            self._flows[id(tensor)] = flow if _has_size(tensor) else Flow()
            self._alive.append(tensor)

    @property
    def _module(self) -> str:
        return self._modules[-1] if self._modules else ""

    # what happens to it

    def _see(self, name: str, args: Any, kwargs: Any, given: list[Tensor], results: list[Tensor]) -> None:
        known = self._known(given)
        if not known:
            return
        first = self.flow(given[0])
        if (product := ops.product(name, args, kwargs)) is not None:
            self._multiply(product, results[0])
        elif name in ops.SCALES and (scaled := self._scaled(name, args, kwargs)) is not None:
            self._carry(name, scaled[0], results, scaled[1])
        elif first is not None and first.parts and _looks_up_rows(name, args, given):
            contraction = ops.Contraction((), (given[0].dim() - 1,))
            data = [(tensor, flow) for tensor, flow in known if tensor is not given[0]]
            self._set(results[0], self._use("embedding", given[0], first, contraction, data))
        elif name in ops.CARRIES and first is not None:
            self._carry(name, given[0], results, 1.0, union(flow.descends for _, flow in known))
        elif name in ops.SUMS or name in ops.JOINS:
            self._sum(name, given, results, float(kwargs.get("alpha", 1.0)))
        else:
            self._nonlinear(name, given, results)

    def _scaled(self, name: str, args: Any, kwargs: Any) -> tuple[Tensor, float] | None:
        """The tensor and the factor, where a call multiplies by one number."""
        left, right = args[0], args[1] if len(args) > 1 else kwargs.get("other", kwargs.get("value"))
        if kwargs.get("rounding_mode") is not None:
            return None
        divides = name in ops.QUOTIENTS
        if self._is_number(right) and isinstance(left, Tensor):
            number = ops.size_of(right)
            return left, (1 / number if number else math.inf) if divides else number
        if not divides and self._is_number(left) and isinstance(right, Tensor):
            return right, ops.size_of(left)
        return None

    def _is_number(self, value: Any) -> bool:
        return ops.is_unit(value) and not (isinstance(value, Tensor) and self.flow(value) is not None)

    def _carry(self, name: str, tensor: Tensor, results: Iterable[Tensor], factor: float, descends: int = 0) -> None:
        """The results are the tensor's entries times a factor; an index among the arguments is descended from too."""
        flow = self.flow(tensor)
        if flow is None:
            return
        flow = replace(flow, descends=flow.descends | descends) if descends & ~flow.descends else flow
        if factor != 1.0 and not flow.parts:
            flow = replace(flow, scales=(*flow.scales, (self._module, factor)))
        for result in results:
            parts = tuple(
                replace(
                    part,
                    dims=ops.labels_after(name, tensor, result, part.dims),
                    factor=part.factor * factor,
                )
                for part in flow.parts
            )
            self._set(result, replace(flow, parts=parts) if parts else flow)

    def _sum(self, name: str, given: Sequence[Tensor], results: Iterable[Tensor], alpha: float) -> None:
        known = self._known(given)
        terms = [(tensor, flow) for tensor, flow in known if _has_size(tensor)]
        if all(flow.parts for _, flow in terms):
            self._combine(terms, results)
            return
        operation = "concatenate" if name in ops.JOINS else "elementwise"
        data, joined = [], []
        for tensor, flow in terms:
            if flow.parts:
                joined.append(self._as_data(operation, tensor, flow))
            elif alpha != 1.0 and tensor is given[-1] and len(given) > 1:
                data.append(replace(flow, scales=(*flow.scales, (self._module, alpha))))
            else:
                data.append(flow)
        merged = self.ledger.merged([*data, *joined]) if len(data) > 1 else self.ledger.biased(data[0], joined)
        merged = replace(merged, descends=merged.descends | union(flow.descends for _, flow in known))
        for result in results:
            self._set(result, merged)

    def _combine(self, known: Known, results: Iterable[Tensor], reason: str = "") -> None:
        """Weights become one weight: a sum of parameters, or something nonlinear, for which there is a reason."""
        for result in results:
            parts = tuple(
                replace(
                    part,
                    dims=part.dims if tensor.dim() == result.dim() else None,
                    factor=math.nan if reason else part.factor,
                    reason=part.reason or reason,
                )
                for tensor, flow in known
                for part in flow.parts
            )
            self._set(result, Flow(parts))

    def _as_data(self, operation: str, tensor: Tensor, flow: Flow) -> Flow:
        """A weight that joins the data as it is: learned positions, a class token, a bias."""
        contraction = ops.Contraction((), (tensor.dim() - 1,)) if operation == "concatenate" else ops.Contraction()
        return replace(
            self.ledger.result([self._open(operation, part, tensor, contraction) for part in flow.parts]),
            source=-1,
        )

    def _nonlinear(self, name: str, given: list[Tensor], results: Sequence[Tensor]) -> None:
        known = self._known(given)
        places = ops.DATA_PLACES.get(name, 0)
        weights, data = [], []
        for tensor, flow in known:
            if flow.parts and any(tensor is place for place in given[:places]):
                data.append(self._as_data("elementwise", tensor, flow))
            elif flow.parts:
                weights.append((tensor, flow))
            elif name == ATTENTION and any(tensor is place for place in given[:2]):
                data.append(replace(flow, scales=()))  # of queries and keys, as in a product of theirs
            else:
                data.append(flow)
        if weights and not data and not places:
            reason = f"the weight went through {name}" if len(known) == 1 else f"parameters met in {name}"
            self._combine(weights, results, reason)
            return
        self.ledger.end(data)
        descends = union(flow.descends for flow in data)
        used = [self._met(name, tensor, part, given, results[0]) for tensor, flow in weights for part in flow.parts]
        if any(self.ledger.uses[use].operation not in VECTORS for use in used):
            self.ledger.read |= descends
        for result in results:
            self._set(result, self.ledger.result(used, descends))

    def _met(self, name: str, tensor: Tensor, part: Part, given: Sequence[Tensor], result: Tensor) -> int:
        """A use of a weight by a call that is no product."""
        if name in ops.NORMS:
            return self._open("norm", part, tensor, ops.Contraction())
        if name in ops.RECURRENT and tensor.dim() == 2:
            return self._open("recurrent", part, tensor, ops.Contraction((1,), (0,)))
        if tensor.dim() <= 1 or name in ops.ELEMENTWISE:
            return self._open("elementwise", part, tensor, ops.Contraction())
        reason = f"{name} is not a function whose sums are known"
        use = self._open(name, replace(part, factor=math.nan, reason=reason), tensor, None)
        self.ledger.uses[use].sizes = _sizes([result], given, tensor)
        return use

    def _give_up(self, name: str, given: Sequence[Tensor], results: Sequence[Tensor], reason: str) -> None:
        """What is left where reading a call failed: what its results descend from, and a use with the reason."""
        known = self._known(given)
        descends = union(flow.descends for _, flow in known)
        self.ledger.read |= descends
        parts = [
            (tensor, replace(part, factor=math.nan, reason=reason)) for tensor, flow in known for part in flow.parts
        ]
        used = [self._open(name, part, tensor, None) for tensor, part in parts]
        for result in results:
            self._set(result, replace(self.ledger.result(used, descends), source=-1))

    # products

    def _multiply(self, product: ops.Product, result: Tensor) -> None:
        weights: list[tuple[Tensor, Flow, ops.Contraction]] = []
        data: list[tuple[Tensor, Flow]] = []
        for tensor in product.data:
            flow = self.flow(tensor) or Flow()
            data.append((tensor, self._as_data("elementwise", tensor, flow) if flow.parts else flow))
        for tensor, contraction in product.operands:
            flow = self.flow(tensor) or Flow()
            if flow.parts:
                weights.append((tensor, flow, contraction))
            else:
                data.append((tensor, flow))
        if not data:
            self._set(result, _product_of_weights(weights, result))
            return
        used = [self._use(product.operation, *weight, data) for weight in weights]
        if not weights:
            # what multiplies queries or keys belongs to their product, of which it may be the whole scale
            self.ledger.end(replace(flow, scales=()) for _, flow in data)
            used = [Flow(descends=union(flow.descends for _, flow in data))]
        flow = used[0] if len(used) == 1 else self.ledger.merged(used)
        if product.scale != 1.0:
            flow = replace(flow, scales=(*flow.scales, (self._module, product.scale)))
        for tensor, factor in product.added:
            flow = self._add(tensor, factor, flow)
        self._set(result, flow)

    def _add(self, tensor: Tensor, factor: float, flow: Flow) -> Flow:
        """A bias, or what a fused product adds."""
        added = self.flow(tensor)
        if added is None or factor == 0.0:
            return flow
        if added.parts:
            return self.ledger.biased(flow, [self._as_data("elementwise", tensor, added)])
        return self.ledger.merged([replace(added, scales=(*added.scales, (self._module, factor))), flow])

    def _use(self, operation: str, tensor: Tensor, weight: Flow, contraction: ops.Contraction, data: Known) -> Flow:
        """Writes down that a weight met data in a product; returns what is known of the result."""
        indices = [self._open(operation, part, tensor, contraction) for part in weight.parts]
        descends = union((weight.descends, *(flow.descends for _, flow in data)))
        self.ledger.read |= descends
        for index in indices:
            for _, flow in data:
                self.ledger.consume(index, flow)
        return self.ledger.result(indices, descends)

    def _open(self, operation: str, part: Part, tensor: Tensor, contraction: ops.Contraction | None) -> int:
        return self.ledger.open(operation, self._module, part, tensor.shape, contraction)

    # modules

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Knows which module is running, and what the model returns, while entered."""
        with ExitStack() as hooks:
            for name, module in model.named_modules():
                for handle in (
                    module.register_forward_pre_hook(self._entering(name), with_kwargs=True, prepend=True),
                    module.register_forward_hook(self._leaving(name), with_kwargs=True, always_call=True),
                ):
                    hooks.callback(handle.remove)
            yield

    def returns(self, output: Any) -> None:
        """Writes down what left the model."""
        self.ledger.leave([flow for _, flow in self._known(ops.tensors(output)) if not flow.parts])

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
            self._modules.append(name)
            for own, parameter in module._parameters.items():
                # torch.func.functional_call puts other tensors in a parameter's place
                if parameter is not None and id(parameter) not in self._names:
                    self._names[id(parameter)] = f"{name}.{own}" if name else own
                    self._alive.append(parameter)
            if not name:
                for tensor in ops.tensors((args, kwargs)):
                    if self.flow(tensor) is None:
                        self._set(tensor, Flow())

        return enter

    def _leaving(self, name: str) -> Callable[..., None]:
        def leave(module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
            if name in self._modules:
                del self._modules[len(self._modules) - 1 - self._modules[::-1].index(name) :]
            self._measure(module, args, kwargs, output)
            if not name:
                self.returns(output)

        return leave

    def _measure(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        """Sizes around a module some of whose parameters no function was seen to take."""
        for parameter in module._parameters.values():
            name = "" if parameter is None else self._names.get(id(parameter), "")
            if parameter is not None and name not in self.around and name not in self.ledger.used:
                self.around[name] = _sizes(ops.tensors(output), ops.tensors((args, kwargs)), parameter)


def _has_size(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _looks_up_rows(name: str, args: Any, given: Sequence[Tensor]) -> bool:
    """Whether a call takes rows of a weight by index; one that takes whole matrices leaves them weights."""
    if name not in ops.LOOKUPS or len(given) < 2 or given[1].numel() < 2:
        return False
    if name != "getitem":
        return given[0].dim() == 2
    indices = args[1] if isinstance(args[1], tuple | list) else (args[1],)
    return given[0].dim() - sum(isinstance(index, Tensor | int) for index in indices) <= 1


def _sizes(results: Iterable[Tensor], given: Iterable[Tensor], weight: Tensor) -> Sizes:
    """Root mean squares of a result, the first data and the weight; NaN for what cannot be read."""
    with torch._C.DisableTorchFunction():
        data = [tensor for tensor in given if tensor is not weight][:1]
        try:
            return ops.root_mean_square(results), ops.root_mean_square(data), ops.root_mean_square([weight])
        except Exception:  # of sparse, quantized and nested tensors and of anybody's subclass: nothing is known of them
            return math.nan, math.nan, math.nan


def _product_of_weights(weights: Sequence[tuple[Tensor, Flow, ops.Contraction]], result: Tensor) -> Flow:
    """Two parameters multiplied, as LoRA does when it merges; each keeps the dimensions it gives to the result."""
    parts = []
    total = math.prod(part.factor for _, flow, _ in weights for part in flow.parts)
    for place, (tensor, flow, contraction) in enumerate(weights):
        out = result.dim() - (2 if place == 0 and len(weights) > 1 else 1)
        for part in flow.parts:
            dims = None
            if part.dims is not None and contraction.out:
                dims = tuple(part.dims[contraction.out[0]] if d == out else frozenset() for d in range(result.dim()))
            inner = math.prod(tensor.shape[d] for d in contraction.summed)
            parts.append(replace(part, dims=dims, factor=total, inner=part.inner * inner))
    return Flow(tuple(parts))


def _with_open_doors(func: Callable[..., Any]) -> Callable[..., Any]:
    """A function of ``torch.nn.functional`` that does not ask whether it is overridden; what it calls is then seen."""
    names = {**vars(F), "has_torch_function": lambda tensors: False}
    inside = types.FunctionType(func.__code__, names, func.__name__, func.__defaults__)
    inside.__kwdefaults__ = func.__kwdefaults__
    return inside
