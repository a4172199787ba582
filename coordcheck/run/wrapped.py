"""A cell that is another one but for what it says."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from coordcheck.run.cell import Cell


class Wrapped(Cell):
    """Another cell's model, optimizer, batch and loss, for a subclass to change.

    Args:
        cell: The other one.
        determinants: What its numbers depend on besides; JSON-serializable.
    """

    def __init__(self, cell: Cell, determinants: Mapping[str, Any]):
        self.cell = cell
        self.columns = cell.columns
        self.determinants = {**cell.determinants, **determinants}
        self.cross_entropy = cell.cross_entropy
        self.readable = cell.readable
        self.lists = cell.lists

    @property
    def roles(self) -> Mapping[str, str]:  # type: ignore[override]
        """The cell's."""
        return self.cell.roles

    def learn_roles(self, read: Mapping[str, str]) -> None:
        """Passed on."""
        self.cell.learn_roles(read)

    @property
    def draws(self) -> bool | None:  # type: ignore[override]
        """The cell's."""
        return self.cell.draws

    @property
    def shares(self) -> bool:  # type: ignore[override]
        """The cell's."""
        return self.cell.shares

    @property
    def drew(self) -> bool:  # type: ignore[override]
        """The cell's."""
        return self.cell.drew

    def tried_out(self, drew: bool) -> None:
        """Passed on."""
        self.cell.tried_out(drew)

    def on_meta(self, width: int) -> nn.Module:
        """The cell's."""
        return self.cell.on_meta(width)

    def runnable_on_meta(self, width: int) -> nn.Module | None:
        """The cell's."""
        return self.cell.runnable_on_meta(width)

    def build(self, width: int, seed: int, device: torch.device) -> nn.Module:
        """The cell's."""
        return self.cell.build(width, seed, device)

    def optimizer(self, model: nn.Module, width: int) -> torch.optim.Optimizer:
        """The cell's."""
        return self.cell.optimizer(model, width)

    def batch(self, seed: int, device: torch.device) -> Any:
        """The cell's."""
        return self.cell.batch(seed, device)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The cell's."""
        return self.cell.loss(model, batch)
