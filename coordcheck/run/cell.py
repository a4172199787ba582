"""A cell: one model family with its optimizer and data, ready to be built at any width and seed.

Those of :mod:`coordcheck.models` come from a configuration or from a user's functions; the queue of runs sees no
difference. A control is a cell too, see :mod:`coordcheck.run.controls`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

META = torch.device("meta")


def cost(width: int) -> float:
    """Relative time of a run at a width: matrices grow like width^2, the rest hardly."""
    return 1.0 + (width / 128) ** 2


class Cell(ABC):
    """What a check needs to know of a cell.

    Attributes:
        columns: The cell's columns in every frame.
        roles: Role of each parameter, by name.
        determinants: What the numbers of its runs depend on, besides width and seed; JSON-serializable.
        cross_entropy: Whether the loss is one, so that ln V is what a model that knows nothing has.
        readable: Whether `determinants` say all that numbers depend on; not so where a user's code makes them.
        draws: Whether training draws random numbers from torch's global generator, so that runs must not go on at a
            time; None as long as it is not known.
        drew: Whether a loss was seen to draw them in this process.
        shares: Whether models have a module in common, whose hooks would record the runs of all of them.
        readout: The readout's init where it is known what it should be.
        corpus_sha256: Hash of the text, where there is one.
        lists: Names of the lists of blocks in its models, where what varies is not their width but their depth.
    """

    columns: Mapping[str, str]
    roles: Mapping[str, str]
    determinants: Mapping[str, Any]
    cross_entropy: bool = True
    readable: bool = True
    draws: bool | None = False
    drew: bool = False
    shares: bool = False
    readout: str | None = None
    corpus_sha256: str | None = None
    lists: tuple[str, ...] = ()

    @abstractmethod
    def on_meta(self, width: int) -> nn.Module:
        """The structure of a model, without memory where its constructor allows that."""

    def runnable_on_meta(self, width: int) -> nn.Module | None:
        """A model on ``meta`` whose forward pass can run there; None for one that must not."""
        return self.on_meta(width)

    def weight_bytes(self, width: int) -> int:
        """Bytes of a model's parameters, before anything has memory; a tied one counts once."""
        return sum(parameter.nbytes for parameter in self.on_meta(width).parameters())

    def shallow(self) -> "Cell":
        """The same with few blocks, where it is known how; a forward pass of it needs no more memory than its own."""
        return self

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

    def cost(self, width: int) -> float:
        """Relative time of a run, the same on every machine."""
        return float(width) if self.lists else cost(width)

    def tried_out(self, drew: bool) -> None:
        """Told once that runs took place, and whether they drew random numbers, or might in a backward pass."""
        self.draws = bool(self.draws) or drew

    def learn_roles(self, read: Mapping[str, str]) -> None:
        """Told the roles of parameters as they were read from their uses, which say more than shapes."""
        self.roles = {**self.roles, **read}

    def parts(self) -> Mapping[str, Any]:
        """What a user gave, by the name that a message has for it."""
        return {}

    def in_sp(self) -> "Cell | None":
        """The twin in standard parametrization; None where it is not known how to make one."""
        return None

    def plain(self) -> "Cell | None":
        """Of a model whose residual branches are multiplied by a power of depth, the twin that lacks it; else None."""
        return None
