"""A user's own JAX model with its optimizer and data, ready to be run at any width and seed."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from coordcheck.config.load import default_optimizer_config
from coordcheck.config.schema import OptimizerConfig, Precision
from coordcheck.jax.attention import attention_marks
from coordcheck.jax.linen import linen_marks
from coordcheck.jax.loss import default_loss
from coordcheck.jax.models import Loss, Model
from coordcheck.jax.roles import roles_of
from coordcheck.jax.told import names_of
from coordcheck.jax.uses import Use, read
from coordcheck.judge.cure import CureTable
from coordcheck.records.names import shown
from coordcheck.run.source import source_hash
from coordcheck.run.theirs import theirs

Factors = NDArray[np.float32]  # one for each parameter
Optimizer = Callable[[int, Mapping[str, str]], optax.GradientTransformation]
ADAM = "For example optimizer=lambda width, roles: optax.adam(1e-3)."


@dataclasses.dataclass(frozen=True)
class Traced:
    """A model of one width without its numbers.

    Attributes:
        parameters: Shapes and types, in the form of its parameters.
        uses: Of parameters, in forward order.
    """

    parameters: Any
    uses: list[Use]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By name."""
        return dict(zip(names_of(self.parameters), (p.shape for p in jax.tree.leaves(self.parameters)), strict=True))


class JaxCell:
    """A cell made of a user's functions; see :func:`coordcheck.jax.coord_check` for them.

    Args:
        build: From width to a model.
        batch: A batch, or a function from seed to one.
        optimizer: From width and roles to an optax transformation; None for Adam.
        loss: From model and batch to a scalar; None for :func:`coordcheck.jax.loss.default_loss`.
        widths: At which it will be built.
        name: Of the model, for reports; None for that of `build`.
        precision: "bf16" to run forward and backward pass with parameters and inputs of bfloat16.
        determinants: What its numbers depend on besides the functions; JSON-serializable.

    Raises:
        ValueError: if one is no function, parameter names differ between widths, or nothing grows with width.
    """

    def __init__(
        self,
        build: Callable[[int], Any],
        batch: Any,
        optimizer: Optimizer | None,
        loss: Loss | None,
        widths: Sequence[int],
        *,
        name: str | None = None,
        precision: Precision = Precision.fp32,
        optimizer_name: str | None = None,
        determinants: Mapping[str, Any] | None = None,
    ):
        if not callable(build):
            raise ValueError(
                f"`build` is a function from width to a model; got {shown(build)}. "
                f"For example build=lambda width: MyModule(width)."
            )
        if optimizer is not None and not callable(optimizer):
            raise ValueError(
                f"`optimizer` is a function of width and roles that returns an optax transformation; got "
                f"{shown(optimizer)}. {ADAM}"
            )
        if loss is not None and not callable(loss):
            raise ValueError(
                f"`loss` is a function of model and batch; got {shown(loss)}. "
                f"For example loss=lambda model, batch: ((model(batch[0]) - batch[1]) ** 2).mean()."
            )
        self._build, self._batch, self._loss = build, batch, default_loss if loss is None else loss
        self._optimizer = configured_optimizer(default_optimizer_config()) if optimizer is None else optimizer
        self.cross_entropy = loss is None
        self.bf16 = precision == Precision.bf16
        self.beginnings: dict[int, Any] = {}  # compiled, by width
        self.programs: dict[Any, Any] = {}  # likewise, by width and plan
        traced = [self.traced(width) for width in sorted(widths)]
        _check_names(traced)
        self.roles = roles_of([one.uses for one in traced], [one.shapes for one in traced])
        own = "Adam lr=0.001" if optimizer is None else getattr(optimizer, "__qualname__", type(optimizer).__name__)
        self.columns = {
            "model": getattr(build, "__qualname__", type(build).__name__) if name is None else name,
            "optimizer": own if optimizer_name is None else optimizer_name,
        }
        self.determinants = {**(determinants or {}), "cell": self.columns, "source": source_hash()}

    @cache  # noqa: B019  # a cell lives as long as its check
    def model(self, width: int) -> Model:
        """The user's model."""
        with theirs("`build`"):
            built = self._build(width)
        return Model(built, self._loss)

    @cache  # noqa: B019
    def traced(self, width: int) -> Traced:
        """What a model of this width is made of, without a computation."""
        batch = self.batch(0)
        with theirs("the model, called with `batch`,"):
            parameters, rest = jax.eval_shape(partial(self.init, width), jax.random.key(0), batch)
            flat, tree = jax.tree.flatten(parameters)

            def loss(*flat: Any) -> Any:
                with linen_marks(), attention_marks():
                    return self.loss(width)(tree.unflatten(flat), rest_of, batch)

            # what is no array has no shape
            rest_of = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype) if _plain(s) else jax.random.key(0), rest)
            closed = jax.make_jaxpr(loss)(*flat)
        return Traced(parameters, read(closed, names_of(parameters)))

    def init(self, width: int, key: Any, batch: Any) -> tuple[Any, Any]:
        """Parameters of one width, and what else the model holds."""
        return self.model(width).init(key, batch)

    def loss(self, width: int) -> Callable[[Any, Any, Any], Any]:
        """From parameters, what else the model holds, and a batch to a scalar."""
        model = self.model(width)
        if not self.bf16:
            return model.loss

        def narrow(x: Any) -> Any:
            return x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x

        def loss(parameters: Any, rest: Any, batch: Any) -> Any:
            return model.loss(jax.tree.map(narrow, parameters), rest, jax.tree.map(narrow, batch))

        return loss

    def optimizer(self, width: int) -> optax.GradientTransformation:
        """The user's.

        Raises:
            ValueError: if it is none.
        """
        with theirs("`optimizer`"):
            made = self._optimizer(width, self.roles)
        if not (hasattr(made, "init") and hasattr(made, "update")):
            raise ValueError(f"`optimizer` returns an optax transformation; got {shown(made)}. {ADAM}")
        return made

    def batch(self, seed: int) -> Any:
        """The user's batch as JAX's arrays."""
        with theirs("`batch`"):
            batch = self._batch(seed) if callable(self._batch) else self._batch
            return jax.tree.map(jnp.asarray, batch)

    def factors(self, width: int) -> tuple[Factors, Factors]:
        """What each parameter's learning rate, and each initial parameter, is multiplied by; of a changed model."""
        ones = np.ones(len(self.traced(width).shapes), dtype=np.float32)
        return ones, ones

    def begun(self, width: int, seed: int) -> tuple[Any, Any, Any]:
        """Parameters, what else the model holds, and the optimizer's state, before the first step."""
        if width not in self.beginnings:
            transformation = self.optimizer(width)

            def begin(key: Any, batch: Any, factors: Any) -> tuple[Any, Any, Any]:
                parameters, rest = self.init(width, key, batch)
                parameters = times(parameters, factors)
                return parameters, rest, transformation.init(parameters)

            self.beginnings[width] = jax.jit(begin)
        found: tuple[Any, Any, Any] = self.beginnings[width](
            jax.random.key(seed), self.batch(seed), self.factors(width)[1]
        )
        return found

    def scaled(self, smallest: int, *, rates: float = 0.0, weights: float = 0.0) -> "Scaled":
        """A control: the same with every learning rate, or every matrix, times a power of width / smallest width."""
        return Scaled(self, smallest, rates=rates, weights=weights)


class Scaled(JaxCell):
    """A control of a cell, as :class:`coordcheck.run.controls.Scaled` is one; it runs what is compiled for the cell."""

    def __init__(self, cell: JaxCell, smallest: int, *, rates: float, weights: float):
        self.__dict__.update(cell.__dict__)
        self._smallest, self._rates, self._weights = smallest, rates, weights
        self.determinants = {
            **cell.determinants,
            "scaled": {"from": smallest, "rates": rates, "weights": weights},
        }

    def factors(self, width: int) -> tuple[Factors, Factors]:
        """Powers of width / smallest width; only matrices begin larger."""
        mult = width / self._smallest
        ranks = np.array([len(shape) for shape in self.traced(width).shapes.values()])
        weights = np.where(ranks > 1, mult**self._weights, 1.0)
        return np.full(len(ranks), mult**self._rates, dtype=np.float32), weights.astype(np.float32)


class Cured(JaxCell):
    """A cell with other initial sizes and learning rates; it runs what is compiled for the cell.

    Args:
        cell: The cell.
        cure: Of its parameters; exponents of std and learning rate alone can be applied here.
    """

    def __init__(self, cell: JaxCell, cure: CureTable):
        self.__dict__.update(cell.__dict__)
        self._cure = cure
        self.determinants = {**cell.determinants, "cure": cure.to_dict()}

    def factors(self, width: int) -> tuple[Factors, Factors]:
        """Powers of width / base width."""
        powers = [self._cure.exponents(name) for name in self.traced(width).shapes]
        exponents = np.array([(power.lr, power.std) for power in powers])
        rates, sizes = ((width / self._cure.base_width) ** exponents).T.astype(np.float32)
        return rates, sizes


def times(tree: Any, factors: Any) -> Any:
    """A pytree, each leaf times a factor."""
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([(leaf * factors[i]).astype(leaf.dtype) for i, leaf in enumerate(leaves)])


def configured_optimizer(config: OptimizerConfig) -> Optimizer:
    """The configured optimizer, with the same learning rate for every parameter at every width."""

    def make(width: int, roles: Mapping[str, str]) -> optax.GradientTransformation:
        b1, b2 = config.betas
        if config.name == "sgd":
            return optax.sgd(config.lr, momentum=config.momentum or None)
        if config.name == "adamw":
            return optax.adamw(config.lr, b1, b2, config.eps, weight_decay=config.weight_decay)
        return optax.adam(config.lr, b1, b2, config.eps)

    return make


def _plain(shape: Any) -> bool:
    return not jax.dtypes.issubdtype(shape.dtype, jax.dtypes.extended)


def _check_names(traced: Sequence[Traced]) -> None:
    first = traced[0].shapes
    for other in traced[1:]:
        if first.keys() != other.shapes.keys():
            raise ValueError(
                "a model must have the same parameter names at every width; these are not in both of two widths: "
                f"{sorted(first.keys() ^ other.shapes.keys())}. For example, scale the size of layers, not their "
                f"number."
            )
    if first == traced[-1].shapes:
        raise ValueError(
            "no parameter's shape changes with width: `build` must return a wider model for a larger width. "
            "For example build=lambda width: MyModule(width)."
        )
