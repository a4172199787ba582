"""Gradients of parameters, read where an optimizer is about to step, and what those of outputs are divided by.

Only there they are whole: DDP, FSDP and pipelines have reduced them over ranks and micro-batches, a GradScaler has
undone its factor. Whoever clips has clipped.
"""

from collections.abc import Callable, Iterator, Mapping
from threading import Lock
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_pre_hook

from coordcheck.observe.modules import named_parameters
from coordcheck.observe.parallel import flat_parameters, is_fsdp1, is_fsdp2
from coordcheck.observe.pipeline import Pipeline
from coordcheck.observe.ranks import is_distributed, local, rank_of
from coordcheck.records.schema import RANKS

Listener = Callable[[Any], None]
_lock = Lock()
_listeners: tuple[Listener, ...] = ()
_hooked = False


def listen(listener: Listener) -> Callable[[], None]:
    """Has `listener` called with every optimizer of the process that is about to step.

    Torch's registry is entered once and for all: to change it while another thread's optimizer reads it is an error.

    Returns:
        What ends that.
    """
    global _hooked, _listeners
    with _lock:
        if not _hooked:
            register_optimizer_step_pre_hook(_tell)
            _hooked = True
        _listeners = (*_listeners, listener)

    def end() -> None:
        global _listeners
        with _lock:
            _listeners = tuple(other for other in _listeners if other is not listener)

    return end


def _tell(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Tells of the step, or of the gradients that its closure is about to make, as in Lightning's loop."""
    if not any(callable(value) for value in (*args[1:], *kwargs.values())):
        _tell_listeners(optimizer)
        return None

    def then_tell(closure: Any) -> Any:
        if not callable(closure):
            return closure

        def told() -> Any:
            loss = closure()
            _tell_listeners(optimizer)
            return loss

        return told

    return (args[0], *map(then_tell, args[1:])), {name: then_tell(value) for name, value in kwargs.items()}


def _tell_listeners(optimizer: Any) -> None:
    for listener in _listeners:
        listener(optimizer)


class ParameterGradients:
    """The gradients of a model's parameters by name, as far as a given optimizer steps them.

    Args:
        model: As it trains.
        modules: Of the model, by the names that records have.
    """

    def __init__(self, model: nn.Module, modules: Mapping[str, nn.Module]):
        self._parameters: dict[Tensor, str] = {parameter: name for name, parameter in named_parameters(modules)}
        names = {module: name for name, module in modules.items()}
        self._flat: dict[Tensor, list[tuple[str, slice]]] = {
            flat: [
                (f"{names[module]}.{name}".removeprefix("."), piece)
                for module, name, piece in pieces
                if module in names and piece is not None
            ]
            for flat, pieces in flat_parameters(model)
        }

    def stepped_by(self, optimizer: Any) -> Iterator[tuple[str, Tensor]]:
        """Name and gradient, this rank's part of it, of the model's parameters that `optimizer` steps."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                yield from self._of(parameter)

    def all(self) -> Iterator[tuple[str, Tensor]]:
        """The same, of all parameters of the model."""
        for parameter in (*self._parameters, *self._flat):
            yield from self._of(parameter)

    def _of(self, parameter: Any) -> Iterator[tuple[str, Tensor]]:
        if not isinstance(parameter, Tensor) or parameter.grad is None:
            return
        if parameter in self._flat:
            for name, piece in self._flat[parameter]:
                yield name, local(parameter.grad)[piece]
        elif parameter in self._parameters:
            yield self._parameters[parameter], local(parameter.grad).to_dense()


def divisor(model: nn.Module, gradients: bool) -> float:
    """What parameters' gradients are divided by when ranks add them up, and outputs' must be likewise.

    Args:
        model: Also one that is wrapped.
        gradients: Whether they are recorded.

    Raises:
        ValueError: if they are, and the factor differs within the model.
    """
    found = {factor for module in model.modules() for factor in _divisors(module)}
    if len(found) > 1 and gradients:
        raise ValueError(
            f"kind 'gradient' needs one factor for the outputs of a whole model, and its parts divide the gradients "
            f"of their parameters by {sorted(found)}. For example kinds=['activation', 'effective_update']."
        )
    own = found.pop() if len(found) == 1 else 1.0
    return own * model.divisor if isinstance(model, Pipeline) else own


def running_divisor(own: float) -> float:
    """The same during a forward pass, where DDP may wrap a model without its knowledge; `own` is what it knows of."""
    ddp = getattr(DistributedDataParallel, "_active_ddp_module", None)
    return own if ddp is None else float(ddp.process_group.size())


def classes_of(module: nn.Module, output: Tensor, whole_on: float) -> int | None:
    """How many classes a readout tells apart, however its outputs are split over ranks.

    Args:
        module: The readout.
        output: Its output here.
        whole_on: How many ranks are known to hold the output whole, of their own part of the batch.

    Returns:
        None where ranks may have split the classes by hand, which nobody can see.
    """
    if is_distributed(output):
        return output.shape[-1]
    weight = module._parameters.get("weight")
    if weight is not None and is_distributed(weight) and isinstance(module, nn.Linear):
        return weight.shape[0]
    return output.shape[-1] if rank_of().get(RANKS, 1) in (1, whole_on) else None


def _divisors(module: nn.Module) -> Iterator[float]:
    part: Any = module
    if isinstance(module, DistributedDataParallel):
        yield float(part.process_group.size())
    elif is_fsdp1(module):
        yield float(part._gradient_predivide_factor * part._gradient_postdivide_factor)
    elif is_fsdp2(module):
        state = part._get_fsdp_state()
        groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
        for group in groups:
            if group is not None:
                yield float(group.gradient_divide_factor or group.mesh_info.mesh.size())
