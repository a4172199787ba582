"""A configured model at several depths and one width."""

import dataclasses
from typing import Any

import torch
from torch import nn

from coordcheck.config.schema import Parametrization, ParametrizationConfig
from coordcheck.models.configured import ConfiguredCell
from coordcheck.observe.blocks import growing_lists
from coordcheck.records.schema import AXIS, DEPTH
from coordcheck.run.wrapped import Wrapped


class ByDepth(Wrapped):
    """A configured cell whose models differ in depth: what a queue calls a width is the number of blocks.

    Args:
        cell: A model of one list of blocks.
    """

    cell: ConfiguredCell

    def __init__(self, cell: ConfiguredCell):
        super().__init__(cell, {AXIS: DEPTH})
        self.config = cell.config
        model, depth = cell.columns["model"], cell.config.model.depth
        said = model.replace(f"depth={depth}", f"width={self.config.base_width}")
        self.columns = {**cell.columns, "model": said, AXIS: DEPTH}
        self._cells: dict[int, ConfiguredCell] = {}
        depths = sorted(self.config.depths)
        self.lists = growing_lists(self.on_meta(depths[0]), self.on_meta(depths[-1]))
        self._roles = self._at(depths[-1]).roles

    @property
    def roles(self) -> Any:  # type: ignore[override]
        """Those of the deepest model, which has all parameters of the others."""
        return self._roles

    def _at(self, depth: int) -> ConfiguredCell:
        if depth not in self._cells:
            self._cells[depth] = self.cell.with_depths({"depth": depth})
        return self._cells[depth]

    def on_meta(self, width: int) -> nn.Module:
        """Of that depth."""
        return self._at(width).on_meta(self.config.base_width)

    def runnable_on_meta(self, width: int) -> nn.Module | None:
        """Of that depth."""
        return self._at(width).runnable_on_meta(self.config.base_width)

    def weight_bytes(self, width: int) -> int:
        """Of that depth."""
        return self._at(width).weight_bytes(self.config.base_width)

    def build(self, width: int, seed: int, device: torch.device) -> nn.Module:
        """Of that depth."""
        return self._at(width).build(self.config.base_width, seed, device)

    def optimizer(self, model: nn.Module, width: int) -> torch.optim.Optimizer:
        """Of that depth."""
        return self._at(width).optimizer(model, self.config.base_width)

    def plain(self) -> "ByDepth | None":
        """The twin whose branches are not multiplied; None for one that multiplies none."""
        if self.config.parametrization.name != Parametrization.completep:
            return None
        plain = dataclasses.replace(self.config, parametrization=ParametrizationConfig(Parametrization.mup))
        return ByDepth(type(self.cell)(plain))
