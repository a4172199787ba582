"""A cell: one model family with its optimizer and data, ready to be built at any width and seed.

:class:`ConfiguredCell` comes from a configuration, :class:`OwnCell` from a user's functions; the sweep sees
no difference. A control is a cell too, with a fault that a check must see: :meth:`ConfiguredCell.in_sp`,
:class:`FasterWithWidth`, :class:`LargerWithWidth`.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import mup
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from coordcheck.config import (
    NO_NUMBERS,
    CheckConfig,
    Embedding,
    Parametrization,
    ParametrizationConfig,
    head_count,
)
from coordcheck.data import load_corpus
from coordcheck.initialize import initialize, rules
from coordcheck.models import GPT
from coordcheck.models.layers import materialize
from coordcheck.optim import make_optimizer
from coordcheck.parametrization import infshapes, roles, shapes
from coordcheck.train import default_loss, to_device

META = torch.device("meta")


class Cell(ABC):
    """What a sweep needs to know of a cell.

    Attributes:
        columns: The cell's columns in every frame.
        roles: Role of each parameter, by name.
        determinants: What the numbers of its runs depend on, besides width and seed; JSON-serializable.
    """

    columns: Mapping[str, str]
    roles: Mapping[str, str]
    determinants: Mapping[str, Any]

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


class ConfiguredCell(Cell):
    """A cell of this project's own models.

    Args:
        config: Validated.
    """

    def __init__(self, config: CheckConfig):
        self.config = config
        self.corpus = load_corpus(config.data)

    @cached_property
    def columns(self) -> dict[str, str]:  # type: ignore[override]
        """Labels that say all that makes the cell."""
        c = self.config
        heads = f"head_size={c.model.head_size}" if c.model.heads is None else f"heads={c.model.heads}"
        readout = "" if c.readout.std is None else f" std={c.readout.std:g}"
        return {
            "model": f"{c.model.name} depth={c.model.depth} {heads}",
            "parametrization": f"{c.parametrization.name}",
            "embedding": f"{c.embedding.name}",
            "readout": f"{c.readout.name}{readout}",
            "optimizer": f"{c.optimizer.name} lr={c.optimizer.lr:g}",
        }

    @property
    def determinants(self) -> dict[str, Any]:  # type: ignore[override]
        """Values of the configuration that bear on numbers, and the text."""
        values = dataclasses.asdict(self.config)
        numbers = {key: value for key, value in values.items() if key not in NO_NUMBERS | {"widths"}}
        return {**numbers, "corpus": self.corpus.sha256}

    @cached_property
    def _base_infshapes(self) -> dict[str, Any]:
        """Mup's base shapes, from a base and a delta model without memory."""
        base, delta = (self.structure(factor * self.config.base_width) for factor in (1, 2))
        result: dict[str, Any] = mup.make_base_shapes(base, delta)
        return result

    @cached_property
    def roles(self) -> dict[str, str]:  # type: ignore[override]
        """Role of each parameter, by name."""
        narrow, wide = (self.structure(factor * self.config.base_width) for factor in (1, 2))
        return roles(narrow, infshapes(shapes(narrow), shapes(wide)))

    @property
    def _in_mup(self) -> bool:
        return self.config.parametrization.name == Parametrization.mup

    def attention_scale(self, width: int) -> float:
        """What q·k is multiplied by: K^-1/2 in SP; in muP proportional to 1/K and equal to SP at base width."""
        head_size = width // head_count(self.config.model, width)
        base = self.config.base_width // head_count(self.config.model, self.config.base_width)
        return float(base**0.5 / head_size if self._in_mup else head_size**-0.5)

    def structure(self, width: int) -> nn.Module:
        """The model without memory, on ``meta``."""
        c = self.config
        with META:
            return GPT(
                width,
                head_count(c.model, width),
                self.attention_scale(width),
                depth=c.model.depth,
                vocab_size=c.data.vocab_size,
                context=c.data.context,
                bias=c.model.bias,
                positions=c.model.positions,
                tied=c.embedding.name != Embedding.untied,
                mup_multiplier=c.readout.multiplier if self._in_mup else None,
            )

    def build(self, width: int, seed: int, device: torch.device) -> nn.Module:
        """A model on `device`, every parameter written once."""
        model = materialize(self.structure(width), device)
        initialize(model, self.roles, rules(self.config), torch.Generator(device).manual_seed(seed))
        if self._in_mup:
            # Our table writes muP's values, so mup has nothing to rescale, as it would for torch's own fan-in init.
            # `tied_rescaled` lets it, as the released package does: the shared weight is then multiplied by
            # sqrt(width_mult), and with it the embedding (https://github.com/microsoft/mup/issues/55).
            rescale = self.config.embedding.name == Embedding.tied_rescaled
            mup.set_base_shapes(model, self._base_infshapes, rescale_params=rescale)
        return model

    def optimizer(self, model: nn.Module, width: int) -> torch.optim.Optimizer:
        """An optimizer of its parameters."""
        return make_optimizer(model, self.config.optimizer, self.config.parametrization.name)

    def batch(self, seed: int, device: torch.device) -> Any:
        """Inputs and targets, (B, L) each."""
        return to_device(self.corpus.batch(seed, self.config.data.batch, self.config.data.context), device)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean cross entropy."""
        return default_loss(model, batch)

    def in_sp(self) -> "ConfiguredCell":
        """The twin in standard parametrization, at the same learning rate."""
        sp = ParametrizationConfig(Parametrization.sp)
        return ConfiguredCell(dataclasses.replace(self.config, parametrization=sp))


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
        self.smallest = min(widths)
        self.roles = _own_roles(build, sorted(widths))
        self.columns = {
            "model": getattr(build, "__qualname__", type(build).__name__),
            "optimizer": _describe(self.optimizer(build(self.smallest), self.smallest)),
        }
        self.determinants = {}

    def build(self, width: int, seed: int, device: torch.device) -> nn.Module:
        """The user's model, built with torch's global generator seeded."""
        torch.manual_seed(seed)
        return self._build(width).to(device)

    def optimizer(self, model: nn.Module, width: int) -> torch.optim.Optimizer:
        """The user's optimizer.

        Raises:
            ValueError: if it is none.
        """
        optimizer = self._optimizer(model)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ValueError(
                f"`optimizer` must return a torch.optim.Optimizer; got {type(optimizer).__name__}. "
                f"For example optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=1e-3)."
            )
        return optimizer

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
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"`build` must return a torch.nn.Module; got {type(model).__name__}. "
            f"For example build=lambda width: nn.Linear(16, width)."
        )
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise ValueError(
            f"`build` must return a model whose parameters have their shapes; these have none before the first "
            f"forward pass: {lazy}. For example nn.Linear(8, width) in the place of nn.LazyLinear(width)."
        )
    return model
