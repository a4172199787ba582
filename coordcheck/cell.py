"""A cell: one model family with its optimizer and data, ready to be built at any width and seed.

:class:`OwnCell` comes from a user's functions, those of :mod:`coordcheck.families` from a configuration; the sweep
sees no difference. A control is a cell too, with a fault that a check must see: the twin in standard
parametrization, :class:`FasterWithWidth`, :class:`LargerWithWidth`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coordcheck.optim import check_optimizer
from coordcheck.parametrization import infshapes, roles, shapes
from coordcheck.train import default_loss, to_device

META = torch.device("meta")


class Cell(ABC):
    """What a sweep needs to know of a cell.

    Attributes:
        columns: The cell's columns in every frame.
        roles: Role of each parameter, by name.
        determinants: What the numbers of its runs depend on, besides width and seed; JSON-serializable.
        cross_entropy: Whether the loss is one, so that ln V is what a model that knows nothing has.
    """

    columns: Mapping[str, str]
    roles: Mapping[str, str]
    determinants: Mapping[str, Any]
    cross_entropy: bool = True

    @abstractmethod
    def on_meta(self, width: int) -> nn.Module:
        """The structure of a model, without memory where its constructor allows that."""

    def runnable_on_meta(self, width: int) -> nn.Module | None:
        """A model on ``meta`` whose forward pass can run there; None for one that must not, see :class:`OwnCell`."""
        return self.on_meta(width)

    @abstractmethod
    def build(self, width: int, seed: int, device: torch.device) -> nn.Module:
        """An initialized, parametrized model on `device`."""

    @abstractmethod
    def optimizer(self, model: nn.Module, width: int) -> torch.optim.Optimizer:
        """An optimizer of its parameters."""

    @abstractmethod
    def batch(self, seed: int, device: torch.device) -> Any:
        """The batch of a seed, the same for all widths."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The scalar to minimize."""


class OwnCell(Cell):
    """A cell made of a user's functions; see :func:`coordcheck.coord_check` for them.

    Args:
        build: From width to a model.
        batch: A batch, or a function from seed to one.
        optimizer: From model to an optimizer.
        loss: From model and batch to a scalar; None for :func:`coordcheck.train.default_loss`.
        widths: At which the model will be built; its parameters are compared over them.

    Raises:
        ValueError: if parameter names differ between widths, or nothing grows with width.
    """

    def __init__(
        self,
        build: Callable[[int], nn.Module],
        batch: Any,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        loss: Callable[[nn.Module, Any], Tensor] | None,
        widths: Sequence[int],
    ):
        self._build = build
        self._batch = batch
        self._optimizer = optimizer
        self._loss = default_loss if loss is None else loss
        self.cross_entropy = loss is None
        self.smallest = min(widths)
        self.roles = _own_roles(build, sorted(widths))
        self.columns = {
            "model": getattr(build, "__qualname__", type(build).__name__),
            "optimizer": _describe(self.optimizer(build(self.smallest), self.smallest)),
        }
        self.determinants = {}

    def on_meta(self, width: int) -> nn.Module:
        """The structure of the user's model."""
        return _structure(self._build, width)

    def runnable_on_meta(self, width: int) -> nn.Module | None:
        """None: a user's forward pass may keep what it made, and a table without memory would break the runs."""
        return None

    def build(self, width: int, seed: int, device: torch.device) -> nn.Module:
        """The user's model, built with torch's global generator seeded."""
        torch.manual_seed(seed)
        return self._build(width).to(device)

    def optimizer(self, model: nn.Module, width: int) -> torch.optim.Optimizer:
        """The user's optimizer.

        Raises:
            ValueError: if it is none.
        """
        return check_optimizer(self._optimizer(model))

    def batch(self, seed: int, device: torch.device) -> Any:
        """The user's batch."""
        return to_device(self._batch(seed) if callable(self._batch) else self._batch, device)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The user's loss; dropout draws the same mask at every step, or deltas would be the masks' difference."""
        torch.manual_seed(0)
        return self._loss(model, batch)


class FasterWithWidth(OwnCell):
    """The control of a user's cell: every learning rate multiplied by width / smallest width.

    A planted fault of known exponent that needs no knowledge of the model.
    """

    def optimizer(self, model: nn.Module, width: int) -> torch.optim.Optimizer:
        """The user's optimizer with its learning rates scaled."""
        optimizer = super().optimizer(model, width)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * (width / self.smallest)
        return optimizer


class LargerWithWidth(Cell):
    """A control of any cell: every initial weight of two or more dimensions times (width / smallest width)^1/2.

    Standard parametrization bounds what training does so loosely that hardly any learning rate breaks it, but the size
    of activations at initialization closely.

    Args:
        cell: Whose twin this is.
        smallest: The width at which both are the same.
    """

    def __init__(self, cell: Cell, smallest: int):
        self.cell = cell
        self.smallest = smallest
        self.columns = cell.columns
        self.roles = cell.roles
        self.determinants = {**cell.determinants, "larger_with_width_from": smallest}
        self.cross_entropy = cell.cross_entropy

    def on_meta(self, width: int) -> nn.Module:
        """The cell's."""
        return self.cell.on_meta(width)

    def runnable_on_meta(self, width: int) -> nn.Module | None:
        """The cell's."""
        return self.cell.runnable_on_meta(width)

    def build(self, width: int, seed: int, device: torch.device) -> nn.Module:
        """The cell's model with larger weights."""
        model = self.cell.build(width, seed, device)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() >= 2:
                    parameter.mul_((width / self.smallest) ** 0.5)
        return model

    def optimizer(self, model: nn.Module, width: int) -> torch.optim.Optimizer:
        """The cell's."""
        return self.cell.optimizer(model, width)

    def batch(self, seed: int, device: torch.device) -> Any:
        """The cell's."""
        return self.cell.batch(seed, device)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The cell's."""
        return self.cell.loss(model, batch)


def _describe(optimizer: torch.optim.Optimizer) -> str:
    """An optimizer's class and the learning rates of its groups."""
    rates = dict.fromkeys(f"{float(group['lr']):g}" for group in optimizer.param_groups)
    return f"{type(optimizer).__name__} lr={', '.join(rates)}"


def _own_roles(build: Callable[[int], nn.Module], widths: Sequence[int]) -> dict[str, str]:
    """Roles from the parameters' shapes at every width."""
    narrowest = _structure(build, widths[0])
    for width in widths[1:]:
        grown = infshapes(shapes(narrowest), shapes(_structure(build, width)))
    return roles(narrowest, grown)


def _structure(build: Callable[[int], nn.Module], width: int) -> nn.Module:
    """The structure of a user's model, on ``meta`` where its constructor allows that."""
    try:
        with META:
            model = build(width)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        model = build(width)
    return model
