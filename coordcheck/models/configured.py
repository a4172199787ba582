"""What the families of a configuration share: base shapes, initialization, optimizer, text."""

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import mup
import torch
from torch import Tensor, nn

from coordcheck.config.load import default_model
from coordcheck.config.rules import head_count
from coordcheck.config.schema import NO_NUMBERS, CheckConfig, Embedding, Parametrization, ParametrizationConfig, Readout
from coordcheck.judge.parametrizations import LAYERS, TABLES, Table
from coordcheck.models.cured import Multiply
from coordcheck.models.initialize import Rule, Std, initialize
from coordcheck.models.layers import materialize
from coordcheck.models.optimizers import make_optimizer
from coordcheck.models.text import Corpus, load_corpus
from coordcheck.observe.roles import infshapes, roles, shapes
from coordcheck.run.cell import META, Cell
from coordcheck.run.device import to_device
from coordcheck.run.loss import default_loss

DEPTHS = ("depth", "encoder_depth", "decoder_depth")
FEW = 2  # blocks
SIZES = ("config", "depth", "encoder_depth", "decoder_depth", "head_size", "heads")


class ConfiguredCell(Cell):
    """A cell that a configuration describes.

    A family says its structure and its rules of initialization; it may have a batch and a loss of its own.

    Args:
        config: Validated.
    """

    def __init__(self, config: CheckConfig):
        self.config = config
        self._widths: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process, which makes the rest anew: the configuration, and the roles that were read."""
        return {"config": self.config, "roles": self.roles}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """The same cell, of which no model has been built here."""
        vars(self).update(state, _widths=WeakKeyDictionary())

    @property
    def readout(self) -> str | None:  # type: ignore[override]
        """The readout's init where it is known what it should be."""
        return None if self.config.readout.name == Readout.own else self.config.readout.name

    @cached_property
    def columns(self) -> dict[str, str]:  # type: ignore[override]
        """Labels that say all that makes the cell."""
        c = self.config
        readout = "" if c.readout.std is None else f" std={c.readout.std:g}"
        return {
            "model": self.describe_model(),
            "parametrization": f"{c.parametrization.name}",
            "embedding": f"{c.embedding.name}",
            "readout": f"{c.readout.name}{readout}",
            "optimizer": f"{c.optimizer.name} lr={c.optimizer.lr:g}",
        }

    def describe_model(self) -> str:
        """Name, size, and what differs from the family's file in ``configs/model``."""
        values, usual = vars(self.config.model), default_model(self.config.model.name)
        unusual = [name for name, value in values.items() if name not in ("name", *SIZES) and value != usual[name]]
        sizes = [name for name in SIZES if values.get(name) is not None]
        return " ".join([self.config.model.name, *(f"{name}={values[name]}" for name in (*sizes, *unusual))])

    @property
    def determinants(self) -> dict[str, Any]:  # type: ignore[override]
        """Values of the configuration that bear on numbers, and the text."""
        values = dataclasses.asdict(self.config)
        numbers = {key: value for key, value in values.items() if key not in NO_NUMBERS | {"widths", "depths", "axis"}}
        return {**numbers, "corpus": self.corpus_sha256}

    @cached_property
    def corpus_sha256(self) -> str | None:  # type: ignore[override]
        """Hash of the text, where there is one."""
        return self._corpus.sha256

    @cached_property
    def _corpus(self) -> Corpus:
        return load_corpus(self.config.data)

    @cached_property
    def _base_infshapes(self) -> dict[str, Any]:
        """Mup's base shapes, from a base and a delta model without memory."""
        base, delta = (self.on_meta(factor * self.config.base_width) for factor in (1, 2))
        result: dict[str, Any] = mup.make_base_shapes(base, delta)
        return result

    @cached_property
    def roles(self) -> dict[str, str]:  # type: ignore[override]
        """Role of each parameter, by name."""
        narrow, wide = (self.on_meta(factor * self.config.base_width) for factor in (1, 2))
        return roles(narrow, infshapes(shapes(narrow), shapes(wide)))

    @property
    def in_mup(self) -> bool:
        """Whether muP parametrizes it."""
        return self.config.parametrization.name == Parametrization.mup

    @property
    def table(self) -> Table:
        """The row of its parametrization."""
        return TABLES[self.config.parametrization.name]

    @property
    def by_row(self) -> bool:
        """Whether the row is applied here: the mup package applies muP's, and the models are written in standard's."""
        return self.config.parametrization.name not in (Parametrization.mup, Parametrization.sp)

    @property
    def depth_mult(self) -> float:
        """Depth / base depth, where there is one depth."""
        return float(getattr(self.config.model, "depth", self.config.base_depth) / self.config.base_depth)

    def in_branches(self, model: nn.Module) -> list[str]:
        """Names of parameters that stand in residual branches whose number is the depth."""
        return []

    @property
    def tied(self) -> bool:
        """Whether the readout's weight is the embedding's."""
        return self.config.embedding.name in (Embedding.tied, Embedding.tied_rescaled)

    def heads(self, width: int) -> int:
        """Number of attention heads."""
        return head_count(self.config.model, width)

    def on_meta(self, width: int) -> nn.Module:
        """The model without memory."""
        with META:
            return self.structure(width)

    def weight_bytes(self, width: int) -> int:
        """Bytes of a model's parameters; what each further block adds is known from one, however many there are."""
        depths = {name: value for name, value in vars(self.config.model).items() if name in DEPTHS and value > FEW}
        few = self.with_depths(dict.fromkeys(depths, FEW))
        start = sum(parameter.nbytes for parameter in few.on_meta(width).parameters())
        total = start
        for name, depth in depths.items():
            more = self.with_depths(dict.fromkeys(depths, FEW) | {name: FEW + 1})
            added = sum(parameter.nbytes for parameter in more.on_meta(width).parameters())
            total += (depth - FEW) * (added - start)
        return total

    def shallow(self) -> "ConfiguredCell":
        """The same with few blocks."""
        depths = {name: min(value, FEW) for name, value in vars(self.config.model).items() if name in DEPTHS}
        return self.with_depths(depths)

    def with_depths(self, depths: Mapping[str, int]) -> "ConfiguredCell":
        """The same with other numbers of blocks, by the name of each in the model's configuration."""
        model = dataclasses.replace(self.config.model, **depths)
        return type(self)(dataclasses.replace(self.config, model=model))

    def runnable_on_meta(self, width: int) -> nn.Module:
        """The model without memory, with the base shapes that mup's readouts ask for."""
        model = self.on_meta(width)
        if self.in_mup:
            mup.set_base_shapes(model, self._base_infshapes, rescale_params=False)
        return model

    @abstractmethod
    def structure(self, width: int) -> nn.Module:
        """The model, uninitialized; called on ``meta``."""

    def rules(self) -> list[Rule]:
        """What :func:`coordcheck.models.initialize.initialize` writes; nothing where a library initializes."""
        return []

    def build(self, width: int, seed: int, device: torch.device) -> nn.Module:
        """A model on `device`, every parameter written once."""
        model = materialize(self.on_meta(width), device)
        rules = self.rules_by_row(width) if self.by_row else self.rules()
        initialize(model, self.roles, rules, torch.Generator(device).manual_seed(seed))
        self._widths[model] = width
        if self.by_row:
            self._multiply(model, width)
        if self.in_mup:
            # Our table writes muP's values, so mup has nothing to rescale, as it would for torch's own fan-in init.
            # `tied_rescaled` lets it, as the released package does: the shared weight is then multiplied by
            # sqrt(width_mult), and with it the embedding (https://github.com/microsoft/mup/issues/55).
            rescale = self.config.embedding.name == Embedding.tied_rescaled
            mup.set_base_shapes(model, self._base_infshapes, rescale_params=rescale)
        return model

    def rules_by_row(self, width: int) -> list[Rule]:
        """The rules, whose stds stay what they are at the base width and grow as the row says.

        A readout that was asked to have fan-in initialization keeps it.
        """
        kept = {"readout"} if self.config.readout.name == Readout.fan_in else set()
        rules = []
        for rule in self.rules():
            if rule.std is not None and rule.role in {*LAYERS} - kept:
                power = self.table.std(rule.role, self.table.multiplier(rule.role)) - rule.std.exponent
                factor = rule.std.factor * (width / self.config.base_width) ** power
                rule = dataclasses.replace(rule, std=Std(factor, rule.std.exponent))
            rules.append(rule)
        return rules

    def _multiply(self, model: nn.Module, width: int) -> None:
        """Lets each module multiply what it reads by the row's power of width."""
        for name, role in self.roles.items():
            if power := self.table.multiplier(role):
                factor = (width / self.config.base_width) ** power
                model.get_submodule(name.rpartition(".")[0]).register_forward_pre_hook(Multiply(factor))

    def optimizer(self, model: nn.Module, width: int) -> torch.optim.Optimizer:
        """An optimizer of its parameters, as the width wants it that the model was built for."""
        width_mult = self._widths.get(model, width) / self.config.base_width
        scheme, depth_mults = self.config.parametrization.name, dict.fromkeys(self.in_branches(model), self.depth_mult)
        return make_optimizer(model, self.config.optimizer, scheme, self.roles, width_mult, depth_mults)

    def batch(self, seed: int, device: torch.device) -> Any:
        """Inputs and targets, (B, L) each."""
        data = self.config.data
        return to_device(self._corpus.batch(seed, data.batch, data.context), device)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean cross entropy."""
        return default_loss(model, batch)

    def in_sp(self) -> "ConfiguredCell":
        """The twin in standard parametrization, at the same learning rate."""
        sp = ParametrizationConfig(Parametrization.sp)
        return type(self)(dataclasses.replace(self.config, parametrization=sp))

    def readout_std(self) -> Std:
        """The readout's init, under mup's multiplier in muP."""
        c = self.config
        return {
            Readout.zero: Std(0.0),
            Readout.constant: Std(c.base_width**-0.5 if c.readout.std is None else c.readout.std),
            Readout.fan_in: Std(1.0 if c.readout.std is None else c.readout.std, -0.5),
        }[c.readout.name]

    def embedding_std(self) -> Std:
        """The token embedding's init: a tied one has the readout's."""
        return self.readout_std() if self.tied else Std(self.config.embedding.std)
