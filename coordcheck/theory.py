"""Which exponents theory expects, per parametrization, role, kind and step, with the source of each.

Sources: Tensor Programs V (Yang et al., arXiv 2203.03466), for Adam-like and SGD-like optimizers with the
learning rates of its tables 3, 8 and 9; Everett et al. (arXiv 2407.05872) for standard parametrization.
"""

from dataclasses import dataclass

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
        role: Of the module; "attention_logits" for q·k.
        kind: "activation" or "delta".
        step: Updates done before.
        readout: "constant", "zero" or "fan_in" where the init of the readout is known; None allows each that
            the parametrization allows.

    Raises:
        ValueError: if the parametrization is unknown.
    """
    if parametrization == "mup":
        return _mup(role, kind, step, readout)
    if parametrization == "sp":
        return _sp(role, kind, step, readout)
    raise ValueError(f"`expect` is 'mup' or 'sp'; got {parametrization!r}. For example expect='mup'.")


def _mup(role: str, kind: str, step: int, readout: str | None) -> Expectation:
    if role == "attention_logits":
        # 1/K attention: a sum of K independent terms at init when heads grow, fully correlated at best
        return Expectation(-0.5, 0.0, f"{TPV}, section 4 and appendix J: attention scales like 1/head size")
    if role == "readout":
        start = {"constant": -0.5, "fan_in": -1.0}.get(readout or "", -0.5)
        if step == 0 and readout in ("constant", "fan_in"):
            return Expectation(start, start, f"{TPV}, table 8: width independent terms, multiplied by 1/width")
        return Expectation(start, 0.0, f"{TPV}, appendix J: training correlates the terms of the logits")
    return Expectation(0.0, 0.0, f"{TPV}, appendix J.2: every entry and every change of an entry is O(1)")


def _sp(role: str, kind: str, step: int, readout: str | None) -> Expectation:
    if role == "readout" and kind == "activation" and step == 0:
        start = 0.5 if readout == "constant" else 0.0
        return Expectation(start, start, f"{EVERETT}, table 1: a sum of width independent terms")
    if kind == "activation" and step == 0:
        return Expectation(0.0, 0.0, f"{EVERETT}, table 1: fan-in initialization")
    if role == "input":
        return Expectation(0.0, 0.0, f"{EVERETT}, section 3: its input does not grow")
    # Several layers' updates of width^1 compound at a large learning rate, norms cut them back: no power law.
    return Expectation(0.0, 2.0, f"{EVERETT}, section 3: Adam's update has width aligned terms")
