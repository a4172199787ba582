"""Controls: a twin of a cell with a fault that a check must see."""

import torch
from torch import nn

from coordcheck.run.cell import Cell
from coordcheck.run.wrapped import Wrapped


class Scaled(Wrapped):
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
        super().__init__(cell, {"scaled": {"from": smallest, "rates": rates, "weights": weights}})
        self.smallest = smallest
        self.rates = rates
        self.weights = weights

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
