"""The families that a configuration can name, and the cell of each."""

from coordcheck.config.schema import Axis, CheckConfig, GPTConfig, HFConfig, OwnConfig, PostLNConfig, T5Config
from coordcheck.models.by_depth import ByDepth
from coordcheck.models.configured import ConfiguredCell
from coordcheck.models.gpt import GPTCell
from coordcheck.models.hf import HFCell
from coordcheck.models.own import OwnCell
from coordcheck.models.post_ln import PostLNCell
from coordcheck.models.t5 import T5Cell
from coordcheck.run.cell import Cell


def make_cell(config: CheckConfig) -> Cell:
    """The cell of a validated configuration."""
    families: dict[type, type[ConfiguredCell]] = {
        GPTConfig: GPTCell,
        T5Config: T5Cell,
        PostLNConfig: PostLNCell,
        HFConfig: HFCell,
    }
    if isinstance(config.model, OwnConfig):
        return OwnCell.configured(config)
    cell = families[type(config.model)](config)
    return ByDepth(cell) if config.axis == Axis.depth else cell
