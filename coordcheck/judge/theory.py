"""Which exponents theory expects, of curves and of what a model is made of, with the source of each.

Sources: Tensor Programs V (Yang et al., arXiv 2203.03466), for Adam-like and SGD-like optimizers with the
learning rates of its tables 3, 8 and 9; Everett et al. (arXiv 2407.05872) for standard parametrization.
"""

from dataclasses import dataclass
from math import inf

TPV = "Tensor Programs V, arXiv 2203.03466"
EVERETT = "Everett et al., arXiv 2407.05872"


@dataclass(frozen=True)
class Expectation:
    """A range of exponents of width, ends included, and who says so."""

    low: float
    high: float
    source: str


def expected(parametrization: str, role: str, kind: str, step: int, readout: str | None = None) -> Expectation:
    """The exponents that a curve may have.

    Args:
        parametrization: "mup" or "sp".
        role: Of the module; "attention_logits" for q·k, "loss" for the loss.
        kind: "activation", "delta", "effective_update" or "gradient".
        step: Updates done before.
        readout: "constant", "zero" or "fan_in" where the init of the readout is known; None allows each that muP
            allows. Standard parametrization allows fan-in alone, so there it does not matter.

    Raises:
        ValueError: if the parametrization is unknown.
    """
    if role == "loss":
        return Expectation(-inf, inf, "no claim: the loss falls as the logits shrink, and as training goes")
    if kind == "gradient":
        return _gradient(parametrization, role)
    if parametrization == "mup":
        return _mup(role, kind, step, readout)
    if parametrization == "sp":
        return _sp(role, kind, step)
    raise ValueError(f"`expect` is 'mup' or 'sp'; got {parametrization!r}. For example expect='mup'.")


def _mup(role: str, kind: str, step: int, readout: str | None) -> Expectation:
    if role == "attention_logits":
        # 1/K attention: a sum of K independent terms at init when heads grow, fully correlated at best
        return Expectation(-0.5, 0.0, f"{TPV}, section 4 and appendix J: attention scales like 1/head size")
    if role == "readout" and kind != "effective_update":
        start = {"constant": -0.5, "fan_in": -1.0}.get(readout or "", -0.5)
        if step == 0 and readout in ("constant", "fan_in"):
            return Expectation(start, start, f"{TPV}, table 8: width independent terms, multiplied by 1/width")
        return Expectation(start, 0.0, f"{TPV}, appendix J: training correlates the terms of the logits")
    # a layer's update is made of its inputs, so width aligned terms meet a learning rate or a multiplier of 1/width
    return Expectation(0.0, 0.0, f"{TPV}, appendix J.2: every entry and every change of an entry is O(1)")


# Of a weight that the forward pass multiplies by width^m the gradient grows by width^m: the forms below. Queries and
# keys whose heads grow get between width^-1.5 and width^-1: logits are q·k / head size.
_MUP_GRADIENTS = {"input": (-1.0, -0.5), "hidden": (-1.5, -1.0), "readout": (-1.0, 0.0), "vector": (-1.0, -1.0)}


def _gradient(parametrization: str, role: str) -> Expectation:
    """By outputs and by parameters alike: a parameter's is its output's times inputs of size 1.

    In muP the logits' gradient has size 1, the readout passes it on times 1/width, and hidden weights of size
    width^-1/2 keep the size of what they pass back.
    """
    if parametrization == "mup" and role in _MUP_GRADIENTS:
        return Expectation(*_MUP_GRADIENTS[role], f"{TPV}, appendix J: backward pass")
    return Expectation(-inf, inf, "no claim")


def _sp(role: str, kind: str, step: int) -> Expectation:
    if kind == "activation" and step == 0:
        return Expectation(0.0, 0.0, f"{EVERETT}, table 1: fan-in initialization")
    if role == "input":
        return Expectation(0.0, 0.0, f"{EVERETT}, section 3: its input does not grow")
    # Several layers' updates of width^1 compound at a large learning rate, norms cut them back: no power law.
    return Expectation(0.0, 2.0, f"{EVERETT}, section 3: Adam's update has width aligned terms")


@dataclass(frozen=True)
class Form:
    """One of the equivalent ways to write a parametrization of a weight, as exponents of width.

    Attributes:
        std: Of the initialization.
        lr: Of the learning rate.
        multiplier: Of what the weight's product is multiplied by in the forward pass.
        source: Who says so.
    """

    std: float
    lr: float
    multiplier: float
    source: str

    def __str__(self) -> str:
        forward = f", forward multiplier width^{self.multiplier:+.1f}" if self.multiplier else ""
        return f"init std {self.std:+.1f}, learning rate {self.lr:+.1f}{forward}"


# exponents (std, learning rate of Adam, of SGD) without a multiplier, and by how much a multiplier may shift them
_MUP_FORMS: dict[str, tuple[float, float, float, tuple[float, ...]]] = {
    "input": (0.0, 0.0, 1.0, (0.0, -0.5)),
    "hidden": (-0.5, -1.0, 0.0, (0.0, 0.5)),
    "readout": (-1.0, -1.0, -1.0, (0.0, 0.5, 1.0)),
    "vector": (0.0, 0.0, 1.0, (0.0,)),
    "fixed": (0.0, 0.0, 0.0, (0.0,)),
}


def forms(parametrization: str, role: str, update: str, *, tied: bool = False) -> tuple[Form, ...]:
    """How the init std and the learning rate of a weight may scale, the usual form first.

    A weight multiplied by width^m in the forward pass needs width^-m times the std; its gradient grows by width^m, so
    Adam, which does not see the gradient's size, needs width^-m times the learning rate and SGD width^-2m.

    Args:
        parametrization: "mup" or "sp".
        role: Of the weight.
        update: "adam" if a step does not depend on the size of the gradient, "sgd" if it is proportional to it.
        tied: Whether an embedding's weight is the readout's too.

    Raises:
        ValueError: if the parametrization is unknown.
    """
    if parametrization == "mup":
        if tied:
            # a good embedding first of all; as a readout it wants a multiplier 1/width (1/sqrt in the second form)
            return forms("mup", "input", update)
        std, adam, sgd, shifts = _MUP_FORMS[role]
        lr, slope = (adam, 1) if update == "adam" else (sgd, 2)
        return tuple(Form(std + s, lr + slope * s, -s, f"{TPV}, tables 3, 8 and 9") for s in shifts)
    if parametrization == "sp":
        std = -0.5 if role in ("hidden", "readout") else 0.0
        choices = (0.0, -0.5) if tied else (std,)
        return tuple(Form(choice, 0.0, 0.0, f"{EVERETT}, table 1: fan-in initialization") for choice in choices)
    raise ValueError(f"`expect` is 'mup' or 'sp'; got {parametrization!r}. For example expect='mup'.")
