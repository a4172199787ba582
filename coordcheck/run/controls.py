"""Controls: a twin of a cell with a fault that a check must see."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from coordcheck.run.cell import Cell


class Scaled(Cell):
    """A control of any cell: what is right at the smallest width, times a power of width / smallest width elsewhere.

    A planted fault of known exponent that needs no knowledge of the model. Standard parametrization bounds what
    training does so loosely that hardly any learning rate breaks it, but the size of activations at initialization
    closely: there the weights must carry the fault.

    Args:
        cell: Whose twin this is.
        smallest: The width at which both are the same.
        rates: Exponent of the factor on every learning rate.
        weights: Exponent of the factor on every initial weight of two or more dimensions that is trained; a frozen one
            may belong to other models too.
    """

    def __init__(self, cell: Cell, smallest: int, *, rates: float = 0.0, weights: float = 0.0):
        self.cell = cell
        self.smallest = smallest
        self.rates = rates
        self.weights = weights
        self.columns = cell.columns
        self.determinants = {**cell.determinants, "scaled": {"from": smallest, "rates": rates, "weights": weights}}
        self.cross_entropy = cell.cross_entropy
        self.readable = cell.readable

    @property
    def roles(self) -> Mapping[str, str]:  # type: ignore[override]
        """The cell's."""
        return self.cell.roles

    @property
    def draws(self) -> bool | None:  # type: ignore[override]
        """The cell's."""
        return self.cell.draws

    @property
    def shares(self) -> bool:  # type: ignore[override]
        """The cell's."""
        return self.cell.shares

    def tried_out(self, recomputes: bool) -> None:
        """Passed on."""
        self.cell.tried_out(recomputes)

    def on_meta(self, width: int) -> nn.Module:
        """The cell's."""
        return self.cell.on_meta(width)

    def runnable_on_meta(self, width: int) -> nn.Module | None:
        """The cell's."""
        return self.cell.runnable_on_meta(width)

    def build(self, width: int, seed: int, device: torch.device) -> nn.Module:
        """The cell's model with its weights scaled."""
        model = self.cell.build(width, seed, device)
        if self.weights:
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() >= 2 and parameter.requires_grad:
                        parameter.mul_((width / self.smallest) ** self.weights)
        return model

    def optimizer(self, model: nn.Module, width: int) -> torch.optim.Optimizer:
        """The cell's optimizer with its learning rates scaled."""
        optimizer = self.cell.optimizer(model, width)
        if self.rates:
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * (width / self.smallest) ** self.rates
        return optimizer

    def batch(self, seed: int, device: torch.device) -> Any:
        """The cell's."""
        return self.cell.batch(seed, device)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The cell's."""
        return self.cell.loss(model, batch)
