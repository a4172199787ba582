"""Which exponents theory expects, of curves and of what a model is made of, with the source of each.

Sources: Tensor Programs V (Yang et al., arXiv 2203.03466), for Adam-like and SGD-like optimizers with the
learning rates of its tables 3, 8 and 9; Everett et al. (arXiv 2407.05872) for standard parametrization; for the others
their row in :mod:`coordcheck.judge.parametrizations`.
"""

from dataclasses import dataclass
from math import inf, nan

from coordcheck.judge.parametrizations import TABLES, TPV, Table
from coordcheck.records.schema import FIRST, LAST, LOSS, MIDDLE, UNKNOWN, WEIGHTS

COMPLETEP = "CompleteP, arXiv 2505.01618"
EVERETT = "Everett et al., arXiv 2407.05872"
NO_CLAIM = "no claim"
SPECTRAL = "Yang, Simon, Bernstein, arXiv 2310.17813, condition 1"


@dataclass(frozen=True)
class Expectation:
    """A range of exponents of width, ends included, and who says so."""

    low: float
    high: float
    source: str


def expected(
    parametrization: str,
    role: str,
    kind: str,
    step: int,
    readout: str | None = None,
    *,
    update: str = "adam",
    heads_grow: bool = True,
) -> Expectation:
    """The exponents that a curve may have.

    Args:
        parametrization: A row of :data:`coordcheck.judge.parametrizations.TABLES`, such as "mup" or "sp".
        role: Of the module; "attention_logits" for q·k, "loss" for the loss.
        kind: "activation", "delta", "effective_update", "gradient", "weight" or "update"; of the last two the slope is
            that of the spectral norm, of a weight that no forward multiplier follows.
        step: Updates done before.
        readout: "constant", "zero" or "fan_in" where the init of the readout is known; None allows each that muP
            allows. Standard parametrization allows fan-in alone, so there it does not matter.
        update: How steps depend on the gradient, see :func:`forms`.
        heads_grow: Whether the size of attention heads grows with width, not their number alone.

    Raises:
        ValueError: if the parametrization is unknown.
    """
    if role == "loss":
        return Expectation(-inf, inf, "no claim: the loss falls as the logits shrink, and as training goes")
    if kind == "gradient":
        return _gradient(parametrization, role)
    if kind in WEIGHTS:
        return _spectral(parametrization, role, kind)
    if parametrization == "mup":
        return _mup(role, kind, step, readout, heads_grow, update)
    if parametrization == "sp":
        return _sp(role, kind, step, update)
    return _of_table(table_of(parametrization), role, kind, step, readout, update, heads_grow)


def expected_in_depth(module: str, role: str, kind: str) -> Expectation:
    """The exponents of depth that a curve may have, where each of L blocks adds a share of 1/L to the residual stream.

    What they add together is aligned by training, and keeps its size. At initialization it is a random walk of L^-1/2
    beside the embedding, and so is what logits owe to it. Modules inside a branch may have their share or not have it
    yet, depending on where it is multiplied; behind the first block the embedding's change is as large as ever and the
    block's own has the share.

    Args:
        module: Named by its place, see :mod:`coordcheck.observe.blocks`.
        role: "loss" for the loss.
        kind: Of record.
    """
    if role == LOSS or kind not in ("activation", "delta", "effective_update"):
        return Expectation(-inf, inf, f"{NO_CLAIM} of depth")
    if kind == "effective_update":
        return Expectation(0.0, 0.0, f"{COMPLETEP}: every layer's update keeps its size")
    name = module.partition("[")[0]
    inside = f"{FIRST}." in module or f"{MIDDLE}." in module
    if inside or (name.endswith((FIRST, MIDDLE)) and kind == "delta"):
        return Expectation(
            -1.0, 0.0, f"{COMPLETEP}: what a branch adds is multiplied by 1/depth, within it or behind it"
        )
    if name.endswith(LAST) and kind == "delta":
        return Expectation(0.0, 0.0, f"{COMPLETEP}: what all branches change together keeps its size")
    return Expectation(-0.5, 0.0, f"{COMPLETEP}: what branches add at initialization falls beside the embedding")


def table_of(parametrization: str) -> Table:
    """The row of a parametrization.

    Raises:
        ValueError: if there is none of that name.
    """
    if parametrization not in TABLES:
        raise ValueError(f"`expect` is one of {list(TABLES)}; got {parametrization!r}. For example expect='mup'.")
    return TABLES[parametrization]


def _of_table(
    table: Table, role: str, kind: str, step: int, readout: str | None, update: str, heads_grow: bool
) -> Expectation:
    """By the limits of a row, see :meth:`Table.effective_update`."""
    if role == "attention_logits":
        # K terms, independent at init and aligned at best, times K^-1/2 or 1/K
        start = table.attention + 0.5 if heads_grow else 0.0
        aligned = table.attention + 1.0 if heads_grow else 0.0
        return Expectation(start, start if step == 0 else max(start, aligned), f"{table.source}: q·k")
    logits = role in ("readout", "projection") and kind != "effective_update"
    if kind == "activation" and not logits:
        return Expectation(0.0, 0.0, f"{table.source}: every entry is O(1)")
    if logits:
        # fan-in is smaller than what a row says where that is constant; one that starts at zero may do so in any row
        std = table.std("readout", table.multiplier("readout"))
        start = table.multiplier("readout") + (min(std, -0.5) if readout == "fan_in" else std) + 0.5
        low = min(start, 0.0)
        high = start if kind == "activation" and step == 0 and readout in ("constant", "fan_in") else max(start, 0.0)
        return Expectation(low, high, f"{table.source}: independent terms at init, which training aligns")
    limit = table.effective_update(role, update)
    if limit is None:
        return Expectation(-inf, inf, f"{NO_CLAIM}: {table.source} has no learning rate for this optimizer")
    # SGD's steps are as small as the gradient that a readout passes on, which one that starts at zero makes smaller
    smaller = table.effective_update(role, update, zero_readout=readout != "constant")
    low, high = sorted((limit, limit if smaller is None else smaller))
    if kind == "delta" and role != "input":
        # what an input's update lacks, those of the layers behind it make up for, but not at once
        low, high = min(low, table.effective_update("input", update) or 0.0), max(high, 0.0)
    return Expectation(low, high, f"{table.source}: every change of an entry is O(1)")


def _mup(role: str, kind: str, step: int, readout: str | None, heads_grow: bool, update: str) -> Expectation:
    if role == "attention_logits":
        if step == 0 and not heads_grow:
            return Expectation(0.0, 0.0, f"{TPV}, section 4: heads of a fixed size sum over a fixed number of terms")
        # 1/K attention: a sum of K independent terms at init when heads grow, fully correlated at best
        return Expectation(-0.5, 0.0, f"{TPV}, section 4 and appendix J: attention scales like 1/head size")
    if role == "readout" and kind != "effective_update":
        start = {"constant": -0.5, "fan_in": -1.0}.get(readout or "", -0.5)
        if step == 0 and readout in ("constant", "fan_in"):
            return Expectation(start, start, f"{TPV}, table 8: width independent terms, multiplied by 1/width")
        # A delta too begins as the change of a sum of independent terms: where the std is constant it tends to width^0,
        # and a correct GPT shows -0.37 over widths 64 to 512 and -0.21 over 256 to 2048 (benchmarks/README.md)
        return Expectation(start, 0.0, f"{TPV}, appendix J: training correlates the terms of the logits")
    if role == "projection" and kind != "effective_update":
        # like a readout's output, or kept at size 1: either will do for what reads it
        return Expectation(-0.5, 0.0, f"{TPV}, appendix J: a finite output, of width terms that training correlates")
    if role == "hidden" and kind == "effective_update" and update == "sgd" and heads_grow:
        # a step of SGD is as small as its gradient, and that of queries and keys starts at width^-3/2 where heads grow
        return Expectation(-0.5, 0.0, f"{TPV}, appendix J.2, and as gradients of queries and keys: q·k / head size")
    # a layer's update is made of its inputs, so width aligned terms meet a learning rate or a multiplier of 1/width
    return Expectation(0.0, 0.0, f"{TPV}, appendix J.2: every entry and every change of an entry is O(1)")


# Of a weight that the forward pass multiplies by width^m the gradient grows by width^m: the forms below. Queries and
# keys whose heads grow get between width^-1.5 and width^-1: logits are q·k / head size.
_MUP_GRADIENTS = {"input": (-1.0, -0.5), "hidden": (-1.5, -1.0), "readout": (-1.0, 0.0), "vector": (-1.0, -1.0)}
_MUP_GRADIENTS |= {"projection": (-1.5, 0.0)}


def _gradient(parametrization: str, role: str) -> Expectation:
    """By outputs and by parameters alike: a parameter's is its output's times inputs of size 1.

    In muP the logits' gradient has size 1, the readout passes it on times 1/width, and hidden weights of size
    width^-1/2 keep the size of what they pass back.
    """
    if parametrization == "mup" and role in _MUP_GRADIENTS:
        return Expectation(*_MUP_GRADIENTS[role], f"{TPV}, appendix J: backward pass")
    return Expectation(-inf, inf, "no claim")


# A matrix of F x width independent entries has the norm sqrt(F) + sqrt(width): up to width F a weight with a fixed side
# may lie a half away from sqrt(fan_out / fan_in). Its update, which few directions make, does not. A readout may start
# smaller, down to a fan-in init. A projection of independent terms keeps the size of its output with a norm that keeps
# its own.
_NORMS = {"input": 0.5, "hidden": 0.0, "readout": -0.5, "projection": -0.5, "vector": 0.5, "fixed": 0.0}
_NORMS_OF_WEIGHTS = {"input": (0.0, 0.5), "readout": (-1.0, -0.5), "projection": (-1.0, 0.0)}


def _spectral(parametrization: str, role: str, kind: str) -> Expectation:
    if parametrization != "mup" or role == UNKNOWN:
        return Expectation(-inf, inf, f"{NO_CLAIM}: the spectral condition is muP's and needs the role of a weight")
    low, high = _NORMS[role], _NORMS[role]
    if kind == "weight":
        low, high = _NORMS_OF_WEIGHTS.get(role, (low, high))
    return Expectation(low, high, f"{SPECTRAL}: norms of W and its change like sqrt(fan_out / fan_in)")


def _sp(role: str, kind: str, step: int, update: str) -> Expectation:
    if kind == "activation" and step == 0:
        return Expectation(0.0, 0.0, f"{EVERETT}, table 1: fan-in initialization")
    # the gradient of what stands before a readout of width^-1/2 shrinks likewise, and SGD's steps with it
    shrinks = -0.5 if update == "sgd" and role != "readout" and kind != "activation" else 0.0
    if role == "input":
        return Expectation(shrinks, 0.0, f"{EVERETT}, section 3: its input does not grow")
    # Several layers' updates of width^1 compound at a large learning rate, norms cut them back: no power law.
    return Expectation(shrinks, 2.0, f"{EVERETT}, section 3: an update has width aligned terms")


@dataclass(frozen=True)
class Form:
    """One of the equivalent ways to write a parametrization of a weight, as exponents of width.

    Attributes:
        std: Of the initialization.
        lr: Of the learning rate.
        multiplier: Of what the weight's product is multiplied by in the forward pass.
        source: Who says so.
        smallest: Down to which exponent the std may also start: a readout may start at zero, a projection's output may
            start like a readout's.
    """

    std: float
    lr: float
    multiplier: float
    source: str
    smallest: float = nan

    def __str__(self) -> str:
        forward = f", forward multiplier width^{self.multiplier:+.1f}" if self.multiplier else ""
        return f"init std {self.std:+.1f}, learning rate {self.lr:+.1f}{forward}"


# by how much a multiplier that is not known may shift them
_SHIFTS = {"input": (0.0, -0.5), "hidden": (0.0, 0.5), "readout": (0.0, 0.5, 1.0)}


def forms(
    parametrization: str,
    role: str,
    update: str,
    *,
    tied: bool = False,
    multiplier: float | None = None,
    readout_multiplier: float | None = None,
    step: float = 0.0,
    std: float = 0.0,
) -> tuple[Form, ...]:
    """How the init std and the learning rate of a weight may scale, the usual form first.

    A weight multiplied by width^m in the forward pass needs width^-m times the std; its gradient grows by width^m, so
    Adam, which does not see the gradient's size, needs width^-m times the learning rate and SGD width^-2m.

    Args:
        parametrization: A row of :data:`coordcheck.judge.parametrizations.TABLES`.
        role: Of the weight.
        update: How a step depends on what it is given, see :class:`coordcheck.observe.optimizer.Step`.
        tied: Whether an embedding's weight is the readout's too.
        multiplier: Exponent of the forward multiplier, where it was read; None allows several.
        readout_multiplier: Likewise, of the use as a readout of a tied weight.
        step: Exponent of the size of a step at one learning rate, known for "muon" and "adafactor".
        std: Exponent of the init std that is there, to which Adafactor's steps are proportional.

    Raises:
        ValueError: if the parametrization is unknown.
    """
    if parametrization == "sp":
        return _sp_forms(role, tied, multiplier, readout_multiplier)
    usual = possible_multipliers if parametrization == "mup" else table_of(parametrization).usual_multipliers
    role = "input" if tied else role
    multipliers = usual(role) if multiplier is None else (multiplier,)
    known = multiplier is not None
    return tuple(_form(table_of(parametrization), role, update, m, known, step, std) for m in multipliers)


def _form(table: Table, role: str, update: str, m: float, known: bool, step: float, std: float) -> Form:
    """The form in which the product is multiplied by width^m."""
    own = table.std(role, m)
    # Adafactor's steps are Adam's times the weight that is there
    rate = table.rate(role, "adam" if update == "adafactor" else update, m)
    lr = nan if rate is None else rate - step - (std if update == "adafactor" else 0.0)
    at_zero = role in ("vector", "fixed") or (role == "readout" and known)
    smallest = -inf if at_zero else own - (0.5 if role == "projection" else 0.0)
    source = table.source if update in ("adam", "sgd") else f"derived from {table.source}, for steps of this kind"
    return Form(own, lr, m + 0.0, source, smallest)


def possible_multipliers(role: str) -> tuple[float, ...]:
    """Exponents of the forward multipliers that a weight of a role may have in one of the usual forms of muP."""
    return tuple(-shift for shift in _SHIFTS.get(role, (0.0,)))


def _sp_forms(role: str, tied: bool, multiplier: float | None, readout_multiplier: float | None) -> tuple[Form, ...]:
    source = f"{EVERETT}, table 1: fan-in initialization"
    if tied and readout_multiplier is not None:
        # the readout's logits decide; the norm after it forgives an embedding that shrinks
        return (Form(-0.5 - readout_multiplier, 0.0, readout_multiplier, source, -0.5 - readout_multiplier),)
    stds = (0.0, -0.5) if tied else (-0.5 if role in ("hidden", "readout", "projection") else 0.0,)
    m = 0.0 if multiplier is None or tied else multiplier
    return tuple(Form(s - m, 0.0, m, source, -inf if role in ("vector", "fixed") else s - m) for s in stds)
