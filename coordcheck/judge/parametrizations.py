"""Parametrizations as tables: how the multiplier, the init std and the learning rate of each role scale with width.

A row says what its source says, in the source's own form. (a+t, b-t, c-t) is the same training under Adam and Muon,
(a+t, b-t, c-2t) under SGD, and (a+t, b-t, c) under Adafactor, whose steps are proportional to the weight: so one row
judges every way to write it. Adding a parametrization is adding a row.

What training does in the limit of infinite width follows from a row (:meth:`Table.effective_update`), if inputs and
updates are aligned, as Everett et al. (arXiv 2407.05872) call it: a sum over width terms then grows like width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

TPV = "Tensor Programs V, arXiv 2203.03466"
EVERETT = "Everett et al., arXiv 2407.05872, table 1"
LAYERS = ("input", "hidden", "readout")


@dataclass(frozen=True)
class InDepth:
    """What else of a parametrization scales, as exponents of depth: all of it of what stands in residual branches.

    Attributes:
        branch: Of what a residual branch is multiplied by before it is added to the stream.
        rates: Of the learning rate, by how a step depends on its gradient.
        epsilon: Of Adam's epsilon.
    """

    branch: float
    rates: Mapping[str, float]
    epsilon: float


@dataclass(frozen=True)
class Table:
    """A parametrization, as exponents of width for the roles "input", "hidden" and "readout".

    Attributes:
        source: Who says so.
        multipliers: Of what the weight's product is multiplied by in the forward pass.
        stds: Of the initialization.
        rates: Of the learning rate, by how a step depends on its gradient ("adam" is Lion's and AdamW's too); those
            that are missing have no known rule.
        vectors: Likewise, of norms' gains and of biases.
        attention: Of the head size, in what q·k is multiplied by.
        epsilon: Of Adam's epsilon.
        in_depth: Of depth; None for a parametrization that says nothing of it.
    """

    source: str
    multipliers: tuple[float, float, float]
    stds: tuple[float, float, float]
    rates: Mapping[str, tuple[float, float, float]]
    vectors: Mapping[str, float] = field(default_factory=dict)
    attention: float = -1.0
    epsilon: float = 0.0
    in_depth: InDepth | None = None

    def multiplier(self, role: str) -> float:
        """Of the forward pass; 0 for what is no matrix."""
        return self.multipliers[LAYERS.index(role)] if role in LAYERS else 0.0

    def usual_multipliers(self, role: str) -> tuple[float, ...]:
        """Of a weight whose multiplier nobody read: the row's own, or none."""
        return tuple(dict.fromkeys((self.multiplier(role), 0.0)))

    def std(self, role: str, multiplier: float = 0.0) -> float:
        """Of the init std of a weight whose product is multiplied by that power of width.

        A projection keeps the size of what it makes, as a hidden weight does; what is no matrix has a constant one.
        """
        layer = {"projection": "hidden"}.get(role, role)
        return self.stds[LAYERS.index(layer)] + self.multiplier(layer) - multiplier if layer in LAYERS else 0.0

    def rate(self, role: str, update: str, multiplier: float = 0.0) -> float | None:
        """Of the learning rate of such a weight; None where no rule is known.

        A projection's output is finite, as a readout's.
        """
        layer = {"projection": "readout"}.get(role, role)
        if layer not in LAYERS:
            return self.vectors.get(update, 0.0) if update in self.rates and role == "vector" else 0.0
        if update not in self.rates:
            return None
        folded = {"sgd": 2.0, "adafactor": 0.0}.get(update, 1.0) * (self.multiplier(layer) - multiplier)
        return self.rates[update][LAYERS.index(layer)] + folded

    def gradient(self, zero_readout: bool = False) -> float:
        """Of the loss's gradient by an entry of a hidden activation: the readout's weights pass it on.

        One that starts at zero has but its first update, which is of the size that makes logits change by width^0.
        """
        return -1.0 if zero_readout else self.multiplier("readout") + self.stds[LAYERS.index("readout")]

    def effective_update(self, role: str, update: str, zero_readout: bool = False) -> float | None:
        """Of what the update of such a weight does to its output, in the limit; None where no rule is known."""
        rate = self.rate(role, update, self.multiplier(role))
        if rate is None or role not in (*LAYERS, "vector"):
            return None if rate is None else 0.0
        a = self.multiplier(role)
        if update == "sgd":
            rate += a + (0.0 if role == "readout" else self.gradient(zero_readout))
        if update == "adafactor":
            rate += self.std(role, a)
        # a step of operator norm 1 has rows of norm 1 for a readout, and for an input entries of width^-1/2
        muon = {"input": -0.5, "hidden": 0.0, "readout": 0.5, "vector": 0.0}[role]
        terms = 1.0 if role in ("hidden", "readout") else 0.0
        return rate + a + (muon if update == "muon" else terms)


def _same(*rates: float) -> dict[str, tuple[float, float, float]]:
    """One learning rate at every width, whatever the optimizer."""
    row = (rates[0], rates[1], rates[2])
    return dict.fromkeys(("sgd", "adam", "adafactor", "muon"), row)


MUP_RATES: Mapping[str, tuple[float, float, float]] = {
    "sgd": (1.0, 0.0, 1.0),
    "adam": (0.0, -1.0, 0.0),
    "adafactor": (0.0, -0.5, 0.0),
    "muon": (0.5, 0.0, 0.5),
}

# Muon's rates are derived: its step has operator norm 1, which makes an output of sqrt(fan_in / fan_out) times the
# input's size. Those of SGD and Adafactor in mean field are derived likewise, the others stand in the sources.
TABLES = {
    "mup": Table(
        f"{TPV}, tables 3, 8 and 9, as the mup package writes it",
        (0.0, 0.0, -1.0),
        (0.0, -0.5, 0.0),
        MUP_RATES,
        {"sgd": 1.0},
    ),
    "sp": Table(
        f"{EVERETT}: fan-in initialization, one learning rate",
        (0.0, 0.0, 0.0),
        (0.0, -0.5, -0.5),
        _same(0.0, 0.0, 0.0),
        attention=-0.5,
    ),
    "sp_full_align": Table(
        f"{EVERETT}: standard, full alignment",
        (0.0, 0.0, 0.0),
        (0.0, -0.5, -0.5),
        {
            "sgd": (0.5, -0.5, -1.0),
            "adam": (0.0, -1.0, -1.0),
            "adafactor": (0.0, -0.5, -0.5),
            "muon": (0.5, 0.0, -0.5),
        },
        {"sgd": 0.5},
    ),
    "ntk": Table(
        f"{EVERETT}: NTK, full alignment",
        (0.0, -0.5, -0.5),
        (0.0, 0.0, 0.0),
        {
            "sgd": (0.5, 0.5, 0.0),
            "adam": (0.0, -0.5, -0.5),
            "adafactor": (0.0, -0.5, -0.5),
            "muon": (0.5, 0.5, 0.0),
        },
        {"sgd": 0.5},
    ),
    "mean_field": Table(
        f"{EVERETT}: mean field, full alignment",
        (0.0, -0.5, -1.0),
        (0.0, 0.0, 0.0),
        {
            "sgd": (1.0, 1.0, 1.0),
            "adam": (0.0, -0.5, 0.0),
            "adafactor": (0.0, -0.5, 0.0),
            "muon": (0.5, 0.5, 0.5),
        },
        {"sgd": 1.0},
    ),
    # an input's rate falls with width: its own design (graphcore-research/unit-scaling, unit_scaling/optim.py)
    "umup": Table(
        "u-muP, arXiv 2407.17465, as unit-scaling has it",
        (0.0, -0.5, -1.0),
        (0.0, 0.0, 0.0),
        {"adam": (-0.5, -0.5, 0.0)},
    ),
    # The source has Adam's exponents. Those in depth of the other optimizers are derived: a block must change what it
    # adds by depth^-1, which a branch that is multiplied by depth^-1 does by itself where steps do not depend on the
    # gradient. SGD's shrink with the gradient, which comes through the same multiplier.
    "completep": Table(
        "CompleteP, arXiv 2505.01618, table 1 with alpha 1",
        (0.0, 0.0, -1.0),
        (0.0, -0.5, 0.0),
        MUP_RATES,
        {"sgd": 1.0},
        epsilon=-1.0,
        in_depth=InDepth(-1.0, {"sgd": 1.0, "adam": 0.0, "adafactor": 0.0, "muon": 0.0}, -1.0),
    ),
}
RULES = ("adam", "sgd", "muon", "adafactor")  # of steps that theory knows
