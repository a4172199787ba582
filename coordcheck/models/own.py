"""A user's own model, from functions or, in a configuration, from their dotted names.

What a user's functions do is not readable, so stored runs are kept by what they did: see
:meth:`coordcheck.run.queue.RunQueue.try_out` and :func:`source_hash`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from coordcheck.config.load import default_optimizer_config
from coordcheck.config.schema import (
    NO_NUMBERS,
    Axis,
    CheckConfig,
    DataConfig,
    OptimizerConfig,
    OwnConfig,
    Parametrization,
)
from coordcheck.models.given import Builder, Built, check_functions, usable_optimizer
from coordcheck.models.optimizers import make_optimizer
from coordcheck.models.text import Corpus, load_corpus
from coordcheck.observe.blocks import growing_lists
from coordcheck.observe.roles import infshapes, roles, shapes
from coordcheck.records.schema import AXIS, DEPTH, WIDTH
from coordcheck.run.cell import META, Cell
from coordcheck.run.device import generator_states, to_device
from coordcheck.run.loss import default_loss
from coordcheck.run.source import import_build, import_dotted, source_hash
from coordcheck.run.theirs import theirs

CPU = torch.device("cpu")


class OwnCell(Cell):
    """A cell made of a user's functions; see :func:`coordcheck.coord_check` for them.

    Args:
        build: From width to a model, or to a model and its optimizer.
        batch: A batch, or a function from seed to one.
        optimizer: From model to an optimizer, where `build` returns none.
        loss: From model and batch to a scalar; None for :func:`coordcheck.run.loss.default_loss`.
        widths: At which the model will be built; its parameters are compared over them.
        name: Of the model, for reports; None for that of `build`.
        determinants: What its numbers depend on besides the functions; JSON-serializable.
        trained: Whether its models will be trained; an audit only looks.
        axis: "width", or "depth" where the widths are numbers of blocks.

    Raises:
        ValueError: if one is no function, parameter names differ between widths, or nothing grows with width.
    """

    readable = False

    def __init__(
        self,
        build: Callable[[int], Built],
        batch: Any,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        loss: Callable[[nn.Module, Any], Tensor] | None,
        widths: Sequence[int],
        *,
        name: str | None = None,
        determinants: Mapping[str, Any] | None = None,
        trained: bool = True,
        axis: str = WIDTH,
    ):
        check_functions(build, optimizer, loss, batch)
        self._function = build
        self._build = Builder(build, trained)
        self._trained = trained
        self._batch = batch
        self._optimizer = optimizer
        self._loss = default_loss if loss is None else loss
        self._built_with: WeakKeyDictionary[nn.Module, torch.optim.Optimizer] = WeakKeyDictionary()
        self.cross_entropy = loss is None
        self.draws = None
        self.drew = False
        smallest, largest = min(widths), max(widths)
        if axis == DEPTH:
            self.lists = growing_lists(self.on_meta(smallest), self.on_meta(largest))
        self.roles = {} if self.lists else self._roles(sorted(widths))
        self.columns = {
            "model": getattr(build, "__qualname__", type(build).__name__) if name is None else name,
            "optimizer": _describe(self._any_optimizer(smallest)),
            **({AXIS: DEPTH} if self.lists else {}),
        }
        self.determinants = {**(determinants or {}), "cell": self.columns, "source": source_hash()}

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process, where nothing has been built yet; tensors lie where any process finds them."""
        state = {name: value for name, value in vars(self).items() if name not in ("_build", "_built_with")}
        return state if callable(self._batch) else {**state, "_batch": to_device(self._batch, CPU)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """What came from another process, with nothing built."""
        build = Builder(state["_function"], state["_trained"])
        vars(self).update(state, _build=build, _built_with=WeakKeyDictionary())

    def parts(self) -> dict[str, Any]:
        """What the user gave."""
        return {"build": self._function, "optimizer": self._optimizer, "batch": self._batch, "loss": self._loss}

    @property
    def shares(self) -> bool:  # type: ignore[override]
        """Whether models that `build` returned have a module in common."""
        return self._build.shares

    @classmethod
    def configured(cls, config: CheckConfig) -> "OwnCell":
        """The cell that a configuration names.

        Raises:
            ValueError: if a name cannot be imported, or what it names cannot be used.
        """
        model = config.model
        assert isinstance(model, OwnConfig)
        by_depth = config.axis == Axis.depth
        widths = config.depths if by_depth else config.widths
        build = import_build(model.build, model.args, min(widths))
        corpus = None if model.batch is not None else load_corpus(config.data)
        values = dataclasses.asdict(config)
        arguments = (f"{name}={value}" for name, value in model.args.items())
        cell = cls(
            partial(build, **model.args),
            _TextBatch(config.data, model.inputs) if model.batch is None else import_dotted("batch", model.batch),
            _optimizer(config.optimizer) if model.optimizer is None else import_dotted("optimizer", model.optimizer),
            None if model.loss is None else import_dotted("loss", model.loss),
            widths,
            name=" ".join([model.build, *arguments]),
            determinants={k: value for k, value in values.items() if k not in NO_NUMBERS | {"widths", "depths"}},
            axis=config.axis,
        )
        cell.corpus_sha256 = None if corpus is None else corpus.sha256
        return cell

    def on_meta(self, width: int) -> nn.Module:
        """The structure of the user's model, on ``meta`` where its constructor allows that."""
        try:
            with META:
                return self._model(width, without_memory=True)
        except (RuntimeError, MemoryError, ValueError):
            pass
        try:
            return self._model(width)
        except (RuntimeError, MemoryError) as error:
            raise ValueError(
                f"`widths` hold {width}, and a model of that width does not fit into memory. "
                f"For example widths=[64,128,256]."
            ) from error

    def runnable_on_meta(self, width: int) -> nn.Module | None:
        """None: a user's forward pass may keep what it made, and a table without memory would break the runs."""
        return None

    def build(self, width: int, seed: int, device: torch.device) -> nn.Module:
        """The user's model, built with torch's global generator seeded."""
        torch.manual_seed(seed)
        return self._model(width).to(device)

    def optimizer(self, model: nn.Module, width: int) -> torch.optim.Optimizer:
        """The optimizer that came with the model, else the user's.

        Raises:
            ValueError: if it is none.
        """
        if model in self._built_with:
            return self._built_with[model]
        with theirs("`optimizer`"):
            optimizer = self._optimizer(model)
        return usable_optimizer(optimizer, model, self._trained)

    def batch(self, seed: int, device: torch.device) -> Any:
        """The user's batch."""
        with theirs("`batch`"):
            batch = self._batch(seed) if callable(self._batch) else self._batch
            return to_device(batch, device)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The user's loss; dropout draws the same mask at every step, or deltas would be the masks' difference."""
        if self.draws is False:
            return self._loss_of(model, batch)
        torch.manual_seed(0)
        devices = {parameter.device for parameter in model.parameters()}
        before = generator_states(devices)
        loss = self._loss_of(model, batch)
        self.drew = self.drew or not all(map(torch.equal, before, generator_states(devices)))
        return loss

    def _loss_of(self, model: nn.Module, batch: Any) -> Tensor:
        with theirs("`loss`" if self._loss is not default_loss else "the model, called with `batch`,"):
            return self._loss(model, batch)

    def tried_out(self, drew: bool) -> None:
        """Settles whether training draws random numbers; what a backward pass repeats sets their generator."""
        self.draws = self.drew or drew

    def _model(self, width: int, without_memory: bool = False) -> nn.Module:
        built = self._build(width, without_memory)
        if not isinstance(built, tuple):
            return built
        model, optimizer = built
        self._built_with[model] = optimizer
        return model

    def _any_optimizer(self, width: int) -> torch.optim.Optimizer:
        """One of a model without memory, or with it where that is not enough for the optimizer."""
        try:
            return self.optimizer(self.on_meta(width), width)
        except (RuntimeError, NotImplementedError, ValueError):
            return self.optimizer(self._model(width), width)

    def _roles(self, widths: Sequence[int]) -> dict[str, str]:
        """Roles from the parameters' shapes at every width."""
        narrowest = self.on_meta(widths[0])
        for width in widths[1:]:
            grown = infshapes(shapes(narrowest), shapes(self.on_meta(width)))
        return roles(narrowest, grown)


def default_optimizer() -> Callable[[nn.Module], torch.optim.Optimizer]:
    """The optimizer of ``configs/optimizer/adam.yaml``."""
    return _optimizer(default_optimizer_config())


def _optimizer(config: OptimizerConfig) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """The configured optimizer: mup's where every parameter has an infshape, else torch's."""

    def make(model: nn.Module) -> torch.optim.Optimizer:
        in_mup = all(hasattr(parameter, "infshape") for parameter in model.parameters())
        return make_optimizer(model, config, Parametrization.mup if in_mup else Parametrization.sp)

    return make


@dataclasses.dataclass(frozen=True)
class _TextBatch:
    """From seed to a batch of the configured text, which each process reads itself."""

    data: DataConfig
    names: Sequence[str] | None

    def __call__(self, seed: int) -> Any:
        inputs, targets = self._corpus.batch(seed, self.data.batch, self.data.context)
        if self.names is None:
            return inputs, targets
        # a model that takes labels moves them itself
        return {self.names[0]: inputs, self.names[1]: inputs if self.names[1] == "labels" else targets}

    @cached_property
    def _corpus(self) -> Corpus:
        return load_corpus(self.data)

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self.data, "names": self.names}


def _describe(optimizer: torch.optim.Optimizer) -> str:
    """An optimizer's class and the learning rates of its groups."""
    rates = dict.fromkeys(f"{float(group['lr']):g}" for group in optimizer.param_groups)
    return f"{type(optimizer).__name__} lr={', '.join(rates)}"
