"""A finding: what is wrong with a model, as one sentence with numbers, and what shows it."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from coordcheck.judge.slopes import MIN_WIDTHS


@dataclass(frozen=True)
class Curve:
    """A curve that shows a finding.

    Attributes:
        module: Whose.
        kind: Of record.
        step: Optimizer updates before it.
        verdict: Of the curve.
        slope: Exponent of width, NaN if there is none.
        expected: Lowest and highest exponent that theory allows.
    """

    module: str
    kind: str
    step: int
    verdict: str
    slope: float
    expected: tuple[float, float]

    @classmethod
    def of(cls, row: pd.Series) -> "Curve":
        """That of a row of slopes."""
        expected = float(row["expected_low"]), float(row["expected_high"])
        return cls(row["module"], row["kind"], int(row["step"]), row["verdict"], float(row["slope"]), expected)


@dataclass(frozen=True)
class Quantity:
    """What an audit looked at.

    Attributes:
        name: "init_std", "learning_rate", "weight_decay", "epsilon", "writes", "groups" or "shape".
        exponent: Of width, NaN if it has none.
        expected: Likewise.
    """

    name: str
    exponent: float = math.nan
    expected: float = math.nan


@dataclass(frozen=True)
class Change:
    """What makes it right, as a number.

    Attributes:
        quantity: "init_std", "learning_rate", "weight_decay", "epsilon", or "multiplier" of the product.
        exponent: Of width_mult, by which to multiply it.
    """

    quantity: str
    exponent: float


@dataclass(frozen=True)
class Finding:
    """What is at fault, or undecided.

    Attributes:
        fault: Class of the fault, see :data:`coordcheck.judge.diagnose.evidence.FAULT_CLASSES`; empty for what is only
            undecided.
        module: Where it is; "(model)" for what concerns the whole check.
        parameter: The parameter at fault, else the module's weight where it has one, else None.
        cause: What was seen, in numbers, and why it is so.
        advice: What to do.
        curve: The curve that shows it; None if no curve does.
        quantity: What an audit looked at; None if the audit has nothing to do with it.
        explains: How many of the failing curves it may have caused.
        parameters: All parameters that share the cause, `parameter` among them.
        change: What makes them right, as a number; None where it is none.
        tried: What came of doing what it advises; empty where that was not tried.
    """

    fault: str
    module: str
    parameter: str | None
    cause: str
    advice: str
    curve: Curve | None = None
    quantity: Quantity | None = None
    explains: int = 0
    parameters: tuple[str, ...] = ()
    change: Change | None = None
    tried: str = ""

    @property
    def verdict(self) -> str:
        """Of the curve; empty without one."""
        return "" if self.curve is None else self.curve.verdict

    @property
    def kind(self) -> str | None:
        """Of the curve; None without one."""
        return None if self.curve is None else self.curve.kind

    @property
    def step(self) -> int | None:
        """Of the curve; None without one."""
        return None if self.curve is None else self.curve.step

    @property
    def slope(self) -> float:
        """Of the curve; NaN without one."""
        return math.nan if self.curve is None else self.curve.slope

    @property
    def expected(self) -> tuple[float, float]:
        """Of the curve; NaN without one."""
        return (math.nan, math.nan) if self.curve is None else self.curve.expected

    @property
    def shown_by(self) -> str:
        """What shows it and by how much, in a few words."""
        if self.curve is not None:
            slope = "" if math.isnan(self.curve.slope) else f" {self.curve.slope:+.2f}"
            return f"{self.curve.kind}, step {self.curve.step}{slope}"
        if self.quantity is None:
            return ""
        exponent = "" if math.isnan(self.quantity.exponent) else f" {self.quantity.exponent:+.2f}"
        return f"{self.quantity.name}{exponent}"

    def facts(self) -> dict[str, Any]:
        """What ``verdict.json`` keeps: the curve's fields beside the finding's own."""
        own = {name: value for name, value in asdict(self).items() if name != "curve"}
        shown = {"kind": self.kind, "step": self.step, "verdict": self.verdict, "slope": self.slope}
        return {**own, **shown, "expected": self.expected}

    def __str__(self) -> str:
        if self.curve is not None and not self.fault:
            where = f"{self.module}, {self.curve.kind}, step {self.curve.step}"
        else:
            where = self.parameter or self.module
        return " ".join(filter(None, [f"{where}:", self.cause, self.advice, self.tried]))


def describe(row: pd.Series) -> str:
    """What was seen of a curve, as a sentence with its numbers."""
    of_runs = f"of {row['n_runs']} runs"
    if row["verdict"] == "nonfinite":
        return f"NaN or infinite in {row['n_nonfinite']} {of_runs}."
    if row["n_zero"] > 0:
        return f"exactly zero in {row['n_zero']} {of_runs}."
    if row["n_widths"] < MIN_WIDTHS:
        return f"known at fewer than {MIN_WIDTHS} widths: no slope."
    seen = f"scales like width^{row['slope']:+.2f} [{row['ci_low']:+.2f}, {row['ci_high']:+.2f}]"
    bend = "" if np.isnan(row["curvature"]) else f", {row['curvature']:+.2f} steeper at the wide end"
    return f"{seen}{bend}; expected {format_range(row['expected_low'], row['expected_high'])}."


def format_range(low: float, high: float) -> str:
    """An expected range in words."""
    if np.isinf(low):
        return "any" if np.isinf(high) else f"at most {high:+.2f}"
    return f"{low:+.2f}" if low == high else f"{low:+.2f} to {high:+.2f}"
