"""What a user gave: functions of the right form, and what they return is a model that can be trained and recorded.

Each rule here is one that training would break on later, far from its cause and in somebody else's words.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from coordcheck.observe.optimizer import check_optimizer
from coordcheck.observe.roles import check_eager, shapes
from coordcheck.records.names import shown
from coordcheck.run.theirs import theirs

Built = nn.Module | tuple[nn.Module, torch.optim.Optimizer]
MODEL = "For example build=lambda width: nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))."
ADAM = "For example optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=1e-3)."
LOSS = "For example loss=lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1])."
BATCH = "For example batch=(inputs, targets), or batch=lambda seed: (inputs, targets)."


class Builder:
    """A user's `build`, whose models are looked at before anybody trains them.

    Args:
        build: From width to a model, or to a model and its optimizer.
        trained: Whether the models will be trained; an audit only looks.

    Attributes:
        shares: Whether two models were seen to have a module in common, such as a frozen embedding or an activation
            function that was made outside `build`.
    """

    def __init__(self, build: Callable[[int], Built], trained: bool = True):
        self._build = build
        self._trained = trained
        self._seen = WeakTensorKeyDictionary()
        self._modules: WeakSet[nn.Module] = WeakSet()
        self.shares = False

    def __call__(self, width: int, without_memory: bool = False) -> Built:
        """What `build` returns.

        Args:
            width: Of the model.
            without_memory: Whether it is built on ``meta``.

        Raises:
            ValueError: if it cannot be used.
        """
        with theirs("`build`"):
            built = self._build(width)
        if isinstance(built, tuple) and len(built) != 2:
            raise ValueError(
                f"`build` returns a model, or (model, optimizer); got a tuple of {len(built)}. "
                f"For example return model, torch.optim.Adam(model.parameters(), lr=1e-3)."
            )
        model, optimizer = built if isinstance(built, tuple) else (built, None)
        shapes(model)
        self._check(model, without_memory)
        if isinstance(built, tuple):
            usable_optimizer(optimizer, model, self._trained)
        return built

    def _check(self, model: nn.Module, without_memory: bool) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        check_eager(model, "`build` must return")
        for name, parameter in trained.items():
            if parameter.dtype.itemsize < 2:
                raise ValueError(
                    f"`build` must return a model whose trained parameters are float32, float64, bfloat16, float16 or "
                    f"complex; {name} is {parameter.dtype}. For example model.float()."
                )
        if self._trained and not trained:
            raise ValueError(
                "`build` returned a model with nothing to train: it has no parameter with requires_grad=True. "
                "For example model.requires_grad_(True)."
            )
        for name, parameter in trained.items():
            if parameter in self._seen:
                raise ValueError(
                    f"`build` returned the same parameter twice ({name}), so a second training would go on from the "
                    f"first; it must make a new model each time, without a cache. {MODEL}"
                )
        if not without_memory and (on_meta := [name for name, p in model.named_parameters() if p.is_meta]):
            raise ValueError(
                f"`build` must return a model that is in memory; these parameters are on the meta device: "
                f"{shown(on_meta)}. For example model.to_empty(device='cpu'), and then its initialization."
            )
        for parameter in trained.values():
            self._seen[parameter] = True
        modules = [*model.modules()]
        self.shares = self.shares or any(module in self._modules for module in modules)
        self._modules.update(modules)


def audited_functions(
    build: Any, optimizer: Any
) -> tuple[Callable[[int], nn.Module], Callable[[nn.Module], torch.optim.Optimizer] | None]:
    """A user's functions as an audit calls them.

    Raises:
        ValueError: if one is no function of one argument.
    """
    check_functions(build, _no_optimizer if optimizer is None else optimizer, None, None)
    builder = Builder(build, trained=False)

    def make_model(width: int) -> nn.Module:
        built = builder(width)
        return built[0] if isinstance(built, tuple) else built

    def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
        with theirs("`optimizer`"):
            made = optimizer(model)
        return usable_optimizer(made, model, trained=False)

    return make_model, None if optimizer is None else make_optimizer


def _no_optimizer(model: nn.Module) -> None:
    """Stands for none where functions are looked at."""


def least_of_audit(build: Callable[[int], Built], width: int) -> int:
    """Bytes of a model's parameters where it can be built without memory, else zero."""
    try:
        with torch.device("meta"):
            built = build(width)
        return sum(p.nbytes for p in (built[0] if isinstance(built, tuple) else built).parameters())
    except Exception:  # of a user's constructor, which may raise anything on meta; the audit calls it again in memory
        return 0


def usable_optimizer(optimizer: Any, model: nn.Module, trained: bool = True) -> torch.optim.Optimizer:
    """An optimizer that trains a model.

    Args:
        optimizer: What a user's function returned.
        model: Whose parameters it should hold.
        trained: Whether it will take steps; an audit of one that needs a closure leaves its learning rates open.

    Raises:
        ValueError: if it is none, wants a closure, trains another model, or has no finite learning rate.
    """
    found = check_optimizer(optimizer)
    name = type(found).__name__
    closure = inspect.signature(type(found).step).parameters.get("closure")
    if trained and closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(f"`optimizer` {name} needs a closure for its step, which a check has not. {ADAM}")
    own = {id(parameter) for parameter in model.parameters()}
    held = [parameter for group in found.param_groups for parameter in group["params"]]
    if not any(id(parameter) in own for parameter in held):
        raise ValueError(f"`optimizer` {name} holds no parameter of the model, but those of another model. {ADAM}")
    for group in found.param_groups:
        rate = group.get("lr", 0.0)
        if isinstance(rate, float | int | Tensor) and not 0 <= float(rate) < math.inf:
            raise ValueError(f"`optimizer` {name} has the lr {float(rate):g}; it is finite, zero or more. {ADAM}")
    return found


def check_functions(build: object, optimizer: object, loss: object, batch: object) -> None:
    """Makes sure that a user gave functions that can be called, not what they should return.

    Raises:
        ValueError: saying what to write.
    """
    if isinstance(build, nn.Module) or not callable(build):
        raise ValueError(f"`build` is a function from width to a new model; got {_kind(build)}. {MODEL}")
    _takes("build", build, 1, "one argument, the width", MODEL)
    if isinstance(optimizer, type) or not callable(optimizer):
        name = optimizer.__name__ if isinstance(optimizer, type) else type(optimizer).__name__
        raise ValueError(
            f"`optimizer` is a function from model to its optimizer; got {_kind(optimizer)}. "
            f"For example optimizer=lambda model: torch.optim.{name if hasattr(torch.optim, name) else 'Adam'}"
            f"(model.parameters(), lr=1e-3)."
        )
    _takes("optimizer", optimizer, 1, "one argument, the model", ADAM)
    if loss is not None and (isinstance(loss, nn.Module | type) or not callable(loss) or _takes_targets(loss)):
        raise ValueError(f"`loss` is a function of model and batch; got {_kind(loss)}. {LOSS}")
    if loss is not None:
        _takes("loss", loss, 2, "two arguments, model and batch", LOSS)
    if isinstance(batch, Iterator | nn.Module):
        raise ValueError(
            f"`batch` is used at every step, so it is no iterator and no module; got {_kind(batch)}. {BATCH}"
        )
    if callable(batch):
        _takes("batch", batch, 1, "one argument, the seed", BATCH)


def _takes(name: str, function: Callable[..., Any], count: int, what: str, example: str) -> None:
    """Makes sure that a function can be called with so many arguments."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a function written in C says nothing
        return
    try:
        signature.bind(*range(count))
    except TypeError as error:
        raise ValueError(f"`{name}` is called with {what}; got {_kind(function)} ({error}). {example}") from error


def _kind(value: object) -> str:
    """What a value is, in words."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"the function {value.__qualname__}" if inspect.isroutine(value) else f"an object of {type(value).__name__}"


def _takes_targets(loss: Callable[..., Any]) -> bool:
    """Whether this is a loss of outputs and targets, as torch.nn.functional has them."""
    try:
        return list(inspect.signature(loss).parameters)[:2] == ["input", "target"]
    except (TypeError, ValueError):  # a function written in C says nothing
        return False
