"""Slopes and expectations to verdicts: of each curve, and of a check."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from coordcheck.config.schema import GateConfig
from coordcheck.judge.accepted import explained
from coordcheck.judge.audit_findings import AuditFinding
from coordcheck.judge.loss import InitialLoss
from coordcheck.judge.norms import weight_ranges
from coordcheck.judge.slopes import MIN_WIDTHS
from coordcheck.judge.theory import Expectation, expected, expected_in_depth
from coordcheck.records.schema import DEPTH, LOSS, ROOT, axis_of

FAILURES = ("nonfinite", "dead", "explodes", "vanishes")
SEEN = 0.1  # how well a slope shows an exponent that was read
MOVED = ("delta", "effective_update", "update")  # kinds of what training changes


def judge(
    slopes: pd.DataFrame,
    gate: GateConfig,
    readout: str | None = None,
    initial_loss: InitialLoss | None = None,
    *,
    parameters: pd.DataFrame | None = None,
    heads_grow: bool = True,
    accepted: Sequence[AuditFinding] = (),
) -> pd.DataFrame:
    """Adds to each curve what was expected of it and its verdict.

    Args:
        slopes: As :func:`coordcheck.judge.slopes.fit` returns.
        gate: Whose exponents, and how far beyond them still passes.
        readout: The readout's init where known, see :func:`coordcheck.judge.theory.expected`.
        initial_loss: Where it is too high, it may not grow with width.
        parameters: Of an audit, for what it read of the forward pass and of the optimizer; None without one.
        heads_grow: Whether the size of attention heads grows with width, not their number alone.
        accepted: What that audit found and a user accepts.

    Returns:
        `slopes` with the columns ``expected_low expected_high verdict`` after the interval, and ``excess``: how far the
        slope lies outside the range and its tolerance (negative inside), and ``source``: who says what was expected.
    """
    if axis_of(slopes) == DEPTH:
        names = zip(slopes["module"], slopes["role"], slopes["kind"], strict=True)
        judged = _with_ranges(slopes, [expected_in_depth(*name) for name in names])
        return _against_range(judged, gate, _zero_is_due(slopes, _before_zero_logits(slopes, readout)))
    read = _read(parameters)
    update = _common_update(parameters)
    ranges = [
        expected(gate.expect, role, kind, step, readout, update=update, heads_grow=heads_grow)
        for role, kind, step in zip(slopes["role"], slopes["kind"], slopes["step"], strict=True)
    ]
    # a tied readout's logit of the token that is read grows by itself
    tied = read["readout_multiplier_exponent"].notna().any()
    if initial_loss is not None and initial_loss.exceeds_chance(gate.diagnosis.initial_loss) and not tied:
        starts = (slopes["role"] == LOSS) & (slopes["step"] == 0)
        ranges = [replace(r, high=0.0) if start else r for r, start in zip(ranges, starts, strict=True)]
    ranges = weight_ranges(slopes, ranges, parameters)
    silent = _before_zero_logits(slopes, readout)
    zero_is_due = _zero_is_due(slopes, silent)
    judged = _against_range(_with_ranges(slopes, ranges), gate, zero_is_due)
    multiplied = _multiplied_afterwards(judged, gate.diagnosis.exact, read) + _embedded(judged, read)
    smaller = _small_embeddings(judged, gate, read) + _small_outputs(judged, gate, read)
    larger = _own_part(judged, read, multiplied)
    smaller -= _own_part(judged, read, multiplied, below=True)
    meant = explained(judged, accepted, parameters)
    judged["expected_low"] += multiplied + smaller + meant["low"]
    judged["expected_high"] += multiplied + larger + meant["high"]
    judged["source"] = judged["source"].mask(meant["who"] != "", "accepted: what deviates at " + meant["who"])
    decayed = judged["kind"].isin(MOVED) & (judged["n_zero"] == 0) & (silent | _decayed(judged, read))
    judged["expected_low"] = judged["expected_low"].mask(decayed, -np.inf)
    judged["source"] = judged["source"].mask(decayed, "no gradient has come here yet: only weight decay moves it")
    return _against_range(judged, gate, zero_is_due)


def _with_ranges(slopes: pd.DataFrame, ranges: Sequence[Expectation]) -> pd.DataFrame:
    """Slopes with what is expected of them, and who says so; the verdicts are open."""
    judged = slopes.copy()
    position = judged.columns.get_loc("ci_high")
    assert isinstance(position, int)
    judged.insert(position + 1, "expected_low", [r.low for r in ranges])
    judged.insert(position + 2, "expected_high", [r.high for r in ranges])
    judged.insert(position + 3, "verdict", "")
    return judged.assign(source=[r.source for r in ranges])


def _own_part(judged: pd.DataFrame, read: pd.DataFrame, told: pd.Series, below: bool = False) -> pd.Series:
    """How far above its range, or below, the own part of a layer's change may lie that a factor follows.

    It is taken inside the layer, which a factor that is applied behind it, or by a hook, does not reach. So is what a
    hidden layer gives to a branch that is multiplied as a whole.
    """
    beyond = pd.Series(0.0, judged.index)
    for row in read[read["after_exponent"].abs() > 0].to_dict("records"):
        of_layer = judged["module"] == row["place"]
        mine = of_layer & (judged["kind"] == "effective_update")
        if row["role"] == "hidden":
            mine |= (of_layer | _handing_on(judged, row["place"])) & judged["kind"].isin(("activation", "delta"))
        beyond[mine & (told == 0)] = max(0.0, row["after_exponent"] if below else -row["after_exponent"])
    return beyond


def _handing_on(judged: pd.DataFrame, layer: str) -> pd.Series:
    """Curves of containers that return what a layer inside them does, bit for bit."""
    around = judged["module"].map(lambda name: layer.startswith(f"{name.partition('[')[0]}."))
    own = judged[judged["module"] == layer].set_index(["kind", "step"])["slope"]
    same = pd.Series(False, judged.index)
    for _, curves in judged[around].groupby("module"):
        theirs = curves.set_index(["kind", "step"])["slope"]
        same[curves.index] = bool((theirs == own.reindex(theirs.index)).all())
    return same


def _small_outputs(judged: pd.DataFrame, gate: GateConfig, read: pd.DataFrame) -> pd.Series:
    """How far below their range curves may lie in muP because a readout or a projection starts smaller than it must.

    A readout may, as it may start at zero: its output is then as much smaller. Behind a projection of std 1/width every
    change starts at width^-1/2, until the projection itself has moved.
    """
    below = pd.Series(0.0, judged.index)
    if gate.expect != "mup":
        return below
    for row in read[read["role"].isin(("readout", "projection"))].to_dict("records"):
        size = row["std_exponent"] + row["multiplier_exponent"] + 0.5
        mine = judged["module"].str.partition("[")[0] == row["place"]
        if row["role"] == "readout" and row["returned"]:
            mine |= judged["module"].str.startswith(ROOT) & (judged["role"] == "readout")
        if row["role"] == "readout" and size < -0.5:
            below[mine & (judged["kind"] == "activation")] = size + 0.5
        if row["role"] == "projection" and size < -0.5 + SEEN and mine.any():
            behind = judged["order"] >= judged["order"][mine].min()
            below[behind & judged["kind"].isin(("delta", "effective_update")) & (judged["expected_low"] == 0)] = -0.5
            below[behind & (judged["role"] == "input") & (judged["kind"] == "activation")] = -0.5
            below[mine & (judged["kind"] == "delta")] = -0.5
    return below


def _decayed(judged: pd.DataFrame, read: pd.DataFrame) -> pd.Series:
    """Which changes of layers shrink as their weight decay does, before the last step.

    A layer behind a zero branch, as LoRA's A, has no gradient at first. Its weight then moves by learning rate x weight
    decay alone, which shrinks with width where nothing makes up for the learning rate.
    """
    alone = pd.Series(False, judged.index)
    waiting = judged["step"] < judged.groupby("kind")["step"].transform("max")
    for row in read[read["effective_decay_exponent"] < -SEEN].to_dict("records"):
        as_much = (judged["slope"] - row["effective_decay_exponent"]).abs() < SEEN
        alone |= (judged["module"] == row["place"]) & waiting & as_much
    return alone


READ = ("role", "used_in", "after_exponent", "multiplier_exponent", "readout_multiplier_exponent", "returned", "update")
READ_EXPONENTS = ("std_exponent", "expected_std_exponent", "effective_decay_exponent")


def _read(parameters: pd.DataFrame | None) -> pd.DataFrame:
    """The parameters whose uses an audit read, by the module that uses them; none without an audit."""
    if parameters is None or not len(parameters):
        return pd.DataFrame(columns=[*READ, *READ_EXPONENTS, "place"])
    read = parameters[parameters["used_in"] != ""]
    return read.assign(place=read["used_in"].str.split(" in ").str[-1])


def _common_update(parameters: pd.DataFrame | None) -> str:
    """How the steps of most parameters depend on the gradient."""
    known = pd.Series(dtype=str) if parameters is None else parameters["update"][parameters["update"] != ""]
    return "adam" if known.empty else str(known.mode().iloc[0])


def _embedded(judged: pd.DataFrame, read: pd.DataFrame) -> pd.Series:
    """By which power of width less an embedding grows than what is made of it, where a factor comes after its module.

    Whether the factor is applied inside the module, so that its output shows it, is told by the slope at step 0.
    """
    shift = pd.Series(0.0, judged.index)
    for row in read[(read["role"] == "input") & (read["after_exponent"].abs() > 0)].to_dict("records"):
        mine = judged[(judged["module"] == row["place"]) & (judged["kind"] != "gradient")]
        start = mine[(mine["kind"] == "activation") & (mine["step"] == 0)]["slope"]
        after = row["after_exponent"]
        outside = row["std_exponent"] + row["multiplier_exponent"] - after
        if len(start) and abs(start.iloc[0] - outside) < abs(start.iloc[0] - outside - after):
            shift[mine.index] = -after
    return shift


def _small_embeddings(judged: pd.DataFrame, gate: GateConfig, read: pd.DataFrame) -> pd.Series:
    """How far below its range an embedding may start whose weight is a readout's too, in standard parametrization."""
    below = pd.Series(0.0, judged.index)
    tied = read[read["readout_multiplier_exponent"].notna()] if gate.expect == "sp" else read.iloc[:0]
    for row in tied.to_dict("records"):
        mine = judged[(judged["module"] == row["place"]) & (judged["kind"] == "activation")]
        below[mine.index] = min(0.0, row["expected_std_exponent"] + row["multiplier_exponent"])
    return below


def _against_range(judged: pd.DataFrame, gate: GateConfig, zero_is_due: pd.Series) -> pd.DataFrame:
    """Fills in the verdict of each curve, and how far it lies beyond its range and tolerance."""
    low, high = borders(judged, gate)
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


def borders(judged: pd.DataFrame, gate: GateConfig) -> tuple[pd.Series, pd.Series]:
    """The lowest and the highest slope that still passes, of each curve."""
    kinds = judged.reset_index()["kind"].set_axis(judged.index)
    return (
        judged["expected_low"] - kinds.map(gate.tolerance.vanishes).astype(float),
        judged["expected_high"] + kinds.map(gate.tolerance.explodes).astype(float),
    )


def _multiplied_afterwards(judged: pd.DataFrame, exact: float, read: pd.DataFrame) -> pd.Series:
    """By which power of width less each curve of a readout grows in what the model returns: 0, or one constant.

    A model may multiply its logits by 1/width after the readout instead of the readout's input before it. The logits
    are then right, and the readout is as much larger as its multiplier is missing, at every step exactly. Where the
    uses were read, they must say so too: that this readout's product is returned, multiplied by as much.
    """
    shift = pd.Series(0.0, judged.index)
    readers = read[read["role"] == "readout"].set_index("place")
    returned = judged[judged["module"].str.startswith(ROOT)]
    for _, whole in returned.groupby("module"):
        if whole["verdict"].isin(FAILURES).any():
            continue
        slopes = whole.set_index(["kind", "step"])["slope"]
        readouts = judged[(judged["role"] == "readout") & ~judged["module"].str.startswith(ROOT)]
        for _, mine in readouts.groupby("module"):
            difference = (mine.set_index(["kind", "step"])["slope"] - slopes).dropna()
            if not len(difference) or difference.std(ddof=0) >= exact or abs(difference.mean()) <= exact:
                continue
            module = mine["module"].iloc[0].partition("[")[0]
            if module in readers.index:
                row = readers.loc[[module]].iloc[0]
                if not row["returned"] or abs(row["after_exponent"] + difference.mean()) > SEEN:
                    continue
            shift[mine.index] = difference.mean()
    return shift


def _before_zero_logits(slopes: pd.DataFrame, readout: str | None) -> pd.Series:
    """Which curves at step 1 stand before logits that are zero at step 0, through which no gradient passes."""
    first = slopes["step"] == 0
    logits = slopes[(slopes["role"] == "readout") & first & (slopes["kind"] == "activation")]
    of_layers = logits[~logits["module"].str.startswith(ROOT)]  # what a model returns may be a sigmoid of its logits
    logits = of_layers if len(of_layers) else logits
    last = logits[logits["order"] == logits["order"].max()]
    starts_at_zero = readout == "zero" or (len(last) > 0 and bool((last["n_zero"] > 0).all()))
    before = (slopes["role"] != "readout") | (slopes["order"] < last["order"].min())
    silent: pd.Series = (slopes["step"] == 1) & before & starts_at_zero
    return silent


def _zero_is_due(slopes: pd.DataFrame, silent: pd.Series) -> pd.Series:
    """Where a curve may be exactly zero.

    At step 0 a zero readout, a tied zero embedding or a zero branch gives zeros. While the logits are zero no
    gradient passes the readout, so at step 1 nothing before it has changed. Zero queries hold the gradient of the keys
    back for a step more, and so on: that a layer has no gradient or update of its own counts at the last step only.
    """
    final = slopes.groupby("kind")["step"].transform("max")
    waiting = slopes["kind"].isin(("effective_update", "gradient", "update")) & (slopes["step"] < final)
    # behind a zero branch, as LoRA's B, everything waits a step more; what never moves is dead
    key = slopes["module"] + "\n" + slopes["kind"]
    moves_later = key.isin(key[(slopes["step"] == final) & (slopes["n_zero"] == 0)])
    waiting |= (slopes["kind"] == "delta") & (slopes["step"] < final) & moves_later
    # a bias may start at zero and stay there; that it does not move is for its update to say
    due: pd.Series = (slopes["step"] == 0) | waiting | silent | (slopes["kind"] == "weight")
    return due


def overall(judged: pd.DataFrame, control_saw: bool | None, faults: Collection[str] = ()) -> str:
    """The verdict of a check.

    Args:
        judged: As :func:`judge` returns.
        control_saw: Whether the control failed, as it must; None if there was none.
        faults: Classes of what was found, see :data:`coordcheck.judge.diagnose.evidence.FAULT_CLASSES`.

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


def counts(judged: pd.DataFrame) -> tuple[int, int]:
    """How many curves are at fault, and how many undecided."""
    return int(judged["verdict"].isin(FAILURES).sum()), int((judged["verdict"] == "inconclusive").sum())


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
