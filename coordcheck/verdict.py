"""Slopes and expectations to verdicts: of each curve, of a check, and the findings in words."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from coordcheck.config import ROOT, GateConfig
from coordcheck.initial_loss import LOSS, InitialLoss
from coordcheck.slopes import MIN_WIDTHS
from coordcheck.theory import expected

FAILURES = ("nonfinite", "dead", "explodes", "vanishes")
MANY_SEEDS = 1000


@dataclass(frozen=True)
class Finding:
    """A module or a parameter that is at fault, or undecided.

    Attributes:
        verdict: Of the curve that shows it; what an audit says where no curve does.
        module: Its name.
        parameter: The parameter at fault, else the module's weight where it has one, else None.
        kind: Of the curve, or what an audit looked at.
        step: Of the curve; None if it was found without one.
        slope: Exponent of width, NaN if there is none.
        expected: Lowest and highest exponent that theory allows.
        cause: What was seen, in numbers, and why it is so.
        advice: What to do.
        fault: Class of the fault, see :data:`coordcheck.diagnose.CLASSES`; empty for what is only undecided.
        explains: How many of the failing curves it may have caused.
    """

    verdict: str
    module: str
    parameter: str | None
    kind: str
    step: int | None
    slope: float
    expected: tuple[float, float]
    cause: str
    advice: str
    fault: str = ""
    explains: int = 0

    def __str__(self) -> str:
        curve = f"{self.module}, {self.kind}, step {self.step}"
        where = curve if self.step is not None and not self.fault else self.parameter or self.module
        return f"{where}: {self.cause} {self.advice}"


def judge(
    slopes: pd.DataFrame, gate: GateConfig, readout: str | None = None, initial_loss: InitialLoss | None = None
) -> pd.DataFrame:
    """Adds to each curve what was expected of it and its verdict.

    Args:
        slopes: As :func:`coordcheck.slopes.fit` returns.
        gate: Whose exponents, and how far beyond them still passes.
        readout: The readout's init where known, see :func:`coordcheck.theory.expected`.
        initial_loss: Where it is too high, it may not grow with width.

    Returns:
        `slopes` with the columns ``expected_low expected_high verdict`` after the interval, and ``excess``: how far the
        slope lies outside the range and its tolerance (negative inside).
    """
    ranges = [
        expected(gate.expect, role, kind, step, readout)
        for role, kind, step in zip(slopes["role"], slopes["kind"], slopes["step"], strict=True)
    ]
    if initial_loss is not None and initial_loss.exceeds_chance(gate.diagnosis.initial_loss):
        starts = (slopes["role"] == LOSS) & (slopes["step"] == 0)
        ranges = [replace(r, high=0.0) if start else r for r, start in zip(ranges, starts, strict=True)]
    judged = slopes.copy()
    position = judged.columns.get_loc("ci_high")
    assert isinstance(position, int)
    judged.insert(position + 1, "expected_low", [r.low for r in ranges])
    judged.insert(position + 2, "expected_high", [r.high for r in ranges])
    judged.insert(position + 3, "verdict", "")
    zero_is_due = _zero_is_due(slopes, readout)
    judged = _against_range(judged, gate, zero_is_due)
    multiplied = _multiplied_afterwards(judged, gate.diagnosis.exact)
    if not multiplied.any():
        return judged
    judged["expected_low"] += multiplied
    judged["expected_high"] += multiplied
    return _against_range(judged, gate, zero_is_due)


def _against_range(judged: pd.DataFrame, gate: GateConfig, zero_is_due: pd.Series) -> pd.DataFrame:
    """Fills in the verdict of each curve, and how far it lies beyond its range and tolerance."""
    low = judged["expected_low"] - judged["kind"].map(gate.tolerance.vanishes).astype(float)
    high = judged["expected_high"] + judged["kind"].map(gate.tolerance.explodes).astype(float)
    verdict = np.select(
        [
            judged["n_nonfinite"] > 0,
            ((judged["n_zero"] == judged["n_runs"]) & zero_is_due) | ((judged["role"] == LOSS) & np.isinf(high)),
            judged["n_zero"] > 0,
            judged["n_widths"] < MIN_WIDTHS,
            judged["ci_low"] > high,
            judged["ci_high"] < low,
            (judged["ci_low"] >= low) & (judged["ci_high"] <= high),
        ],
        ["nonfinite", "pass", "dead", "inconclusive", "explodes", "vanishes", "pass"],
        default="inconclusive",
    )
    return judged.assign(verdict=verdict, excess=np.fmax(judged["slope"] - high, low - judged["slope"]))


def _multiplied_afterwards(judged: pd.DataFrame, exact: float) -> pd.Series:
    """By which power of width less each curve of a readout grows in what the model returns: 0, or one constant.

    A model may multiply its logits by 1/width after the readout instead of the readout's input before it. The logits
    are then right, and the readout is as much larger as its multiplier is missing, at every step exactly.
    """
    shift = pd.Series(0.0, judged.index)
    returned = judged[judged["module"].str.startswith(ROOT)]
    for _, whole in returned.groupby("module"):
        if whole["verdict"].isin(FAILURES).any():
            continue
        slopes = whole.set_index(["kind", "step"])["slope"]
        readouts = judged[(judged["role"] == "readout") & ~judged["module"].str.startswith(ROOT)]
        for _, mine in readouts.groupby("module"):
            difference = (mine.set_index(["kind", "step"])["slope"] - slopes).dropna()
            if len(difference) and difference.std(ddof=0) < exact and abs(difference.mean()) > exact:
                shift[mine.index] = difference.mean()
    return shift


def _zero_is_due(slopes: pd.DataFrame, readout: str | None) -> pd.Series:
    """Where a curve may be exactly zero.

    At step 0 a zero readout, a tied zero embedding or a zero branch gives zeros. While the logits are zero no
    gradient passes the readout, so at step 1 nothing before it has changed. Zero queries hold the gradient of the keys
    back for a step more, and so on: that a layer has no gradient or update of its own counts at the last step only.
    """
    first = slopes["step"] == 0
    logits = slopes[(slopes["role"] == "readout") & first & (slopes["kind"] == "activation")]
    of_layers = logits[~logits["module"].str.startswith(ROOT)]  # what a model returns may be a sigmoid of its logits
    logits = of_layers if len(of_layers) else logits
    last = logits[logits["order"] == logits["order"].max()]
    starts_at_zero = readout == "zero" or (len(last) > 0 and bool((last["n_zero"] > 0).all()))
    final = slopes.groupby("kind")["step"].transform("max")
    waiting = slopes["kind"].isin(("effective_update", "gradient")) & (slopes["step"] < final)
    before = (slopes["role"] != "readout") | (slopes["order"] < last["order"].min())
    before_readout = (slopes["step"] == 1) & before & starts_at_zero
    due: pd.Series = first | waiting | before_readout
    return due


def overall(judged: pd.DataFrame, control_saw: bool | None, faults: Collection[str] = ()) -> str:
    """The verdict of a check.

    Args:
        judged: As :func:`judge` returns.
        control_saw: Whether the control failed, as it must; None if there was none.
        faults: Classes of what was found, see :data:`coordcheck.diagnose.CLASSES`.

    Returns:
        "fail" if anything is at fault; else "inconclusive" if the control passed, or if any curve is
        undecided; else "pass". Where the control passed too, what is exactly zero shows training too gentle to
        see, not a fault; where changes drown in rounding, only step 0 counts; where runs differ in what they must
        share, no curve tells of the model.
    """
    if "harness" in faults:
        return "inconclusive"
    at_fault = judged[judged["verdict"].isin(FAILURES)]
    if "gentle" in faults:
        at_fault = at_fault[at_fault["step"] == 0]
    too_gentle = control_saw is False and bool((at_fault["verdict"] == "dead").all())
    if (len(at_fault) and not too_gentle) or {*faults} - {"gentle"}:
        return "fail"
    if "gentle" in faults or control_saw is False or (judged["verdict"] == "inconclusive").any():
        return "inconclusive"
    return "pass"


def worst_first(judged: pd.DataFrame) -> pd.DataFrame:
    """Curves at fault, then undecided ones, then the rest, each by how far they lie outside their range."""
    rank = judged["verdict"].map({name: i for i, name in enumerate((*FAILURES[:2], "explodes", "vanishes"))})
    rank = rank.where(~judged["verdict"].isin(("explodes", "vanishes")), 2)
    rank = rank.fillna(judged["verdict"].map({"inconclusive": 3, "pass": 4}))
    return (
        judged.assign(rank=rank)
        .sort_values(["rank", "excess", "order", "step"], ascending=[True, False, True, True], kind="stable")
        .drop(columns="rank")
    )


def undecided(judged: pd.DataFrame, gate: GateConfig, parameters: Mapping[str, str]) -> list[Finding]:
    """One finding for each module that is neither at fault nor right for certain, worst first.

    Args:
        judged: As :func:`judge` returns.
        gate: As given to it.
        parameters: The weight of each module that has one, see :func:`weights`.
    """
    open_questions = judged[judged["verdict"] == "inconclusive"]
    worst = worst_first(open_questions).drop_duplicates("module")
    return [
        finding_of(row, parameters.get(row["module"]), describe(row), _advice(row, gate)) for _, row in worst.iterrows()
    ]


def weights(records: pd.DataFrame) -> dict[str, str]:
    """The name of each recorded module's own weight, where it has one.

    A recorder states the role of these modules only, and that of attention logits and the loss, which have none. Frames
    in mup's format, which know no count, state other roles.
    """
    parameter = records["module"].str.endswith(("weight", "bias"))  # as gradients are recorded
    stated = (
        ~parameter
        & records["role"].notna()
        & ~records["role"].isin(("attention_logits", LOSS))
        & records["count"].notna()
    )
    modules = records.loc[stated, "module"].unique()
    own = {module: f"{module.partition('[')[0]}.weight".removeprefix(f"{ROOT}.") for module in modules}
    return own | {name: name for name in records.loc[parameter, "module"].unique()}


def finding_of(row: pd.Series, parameter: str | None, cause: str, advice: str) -> Finding:
    """What a curve shows of its module."""
    return Finding(
        verdict=row["verdict"],
        module=row["module"],
        parameter=parameter,
        kind=row["kind"],
        step=int(row["step"]),
        slope=float(row["slope"]),
        expected=(float(row["expected_low"]), float(row["expected_high"])),
        cause=cause,
        advice=advice,
    )


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


def _advice(row: pd.Series, gate: GateConfig) -> str:
    if row["n_widths"] < MIN_WIDTHS:
        return "Choose widths that fit into memory, or leave this module out with `modules`."
    if row["n_seeds"] < 2:
        return "One seed gives no interval: use at least 2, better 5."
    needed = seeds_to_decide(row, gate)
    return f"About {needed} seeds would decide." if needed else "The slope lies on the border: use wider widths."


def seeds_to_decide(row: pd.Series, gate: GateConfig) -> int | None:
    """The smallest number of seeds whose interval, with the spread seen so far, leaves the borders out.

    Returns:
        None if more than 1000 would be needed.
    """
    borders = (
        row["expected_low"] - gate.tolerance.vanishes[row["kind"]],
        row["expected_high"] + gate.tolerance.explodes[row["kind"]],
    )
    margin = min(abs(row["slope"] - border) for border in borders)
    seeds = np.arange(2, MANY_SEEDS + 1)
    half = stdtrit(seeds - 1, (1 + gate.confidence) / 2) * row["slope_std"] / np.sqrt(seeds)
    enough = seeds[half < margin]
    return int(enough[0]) if len(enough) else None
