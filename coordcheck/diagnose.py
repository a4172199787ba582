"""From verdicts and audit to findings: where a fault starts, what it is, and what to do.

A fault spreads downstream, so most curves that fail are symptoms. The audit's faults are causes, each of one parameter,
whose curves show what they do. Of the curves that no such cause reaches, the earliest is where a fault starts that only
the forward pass or the training knows: at step 0 the first module in forward order; later first what is local to a
module (its own update's part, the attention logits), then the changes and sizes of its output, which carry what came
in. Each kind of fault is a rule, a function from evidence to a diagnosis or None; the first rule that speaks names it.

Frames in, findings out, without torch: stored checks are diagnosed anew.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from coordcheck.audit_result import FAULTS, Audit
from coordcheck.config import ROOT, DiagnosisConfig, GateConfig
from coordcheck.initial_loss import LOSS, InitialLoss
from coordcheck.theory import forms
from coordcheck.verdict import FAILURES, Finding, describe, finding_of, format_range, undecided, weights

CLASSES = {
    "init": "the init std scales wrongly, or there is none",
    "reinitialized": "initialized again, by another rule",
    "learning_rate": "the learning rate scales wrongly",
    "multiplier": "a forward multiplier is missing or applied twice: readout, attention, embedding, residual",
    "shared_readout": "the init of a readout was rescaled, and the embedding that shares its weight with it",
    "width": "the width does not reach a module",
    "base_shapes": "the base shapes forget a dimension, or are lost",
    "untrained": "not trained, or in no parameter group",
    "decay": "the weight decay is coupled to the scaled learning rate",
    "epsilon": "the optimizer's epsilon is not small beside the gradient",
    "dead": "nothing passes",
    "nonfinite": "not finite",
    "gentle": "training is too gentle to see a fault",
    "harness": "the runs differ in what they must share",
    "unexplained": "what causes it is not known",
}
# the fault that an audit's verdict stands for
AUDITED = {
    "uninitialized": "init",
    "init": "init",
    "ungrouped": "untrained",
    "regrouped": "learning_rate",
    "learning_rate": "learning_rate",
    "decay": "decay",
    "epsilon": "epsilon",
}
# what a curve is of, and how it changes
GROWTH = {
    LOSS: ("it", "grows", "shrinks"),
    "activation": ("its output", "grows", "shrinks"),
    "delta": ("its output's change", "grows", "shrinks"),
    "effective_update": ("its updates", "grow", "shrink"),
    "gradient": ("its gradient", "grows", "shrinks"),
    "attention_logits": ("its attention logits", "grow", "shrink"),
}


@dataclass(frozen=True)
class Diagnosis:
    """What a rule says: the class of fault, why, and what to do."""

    fault: str
    cause: str
    advice: str


@dataclass(frozen=True, eq=False)
class Evidence:
    """What rules look at.

    Attributes:
        gate: What turned slopes into verdicts.
        records: Of the check.
        curves: Slopes with verdicts.
        audit: None if there was none.
        seen: Whether the control's fault was seen; None without a control.
    """

    gate: GateConfig
    records: pd.DataFrame
    curves: pd.DataFrame
    audit: Audit | None
    seen: bool | None

    @property
    def limits(self) -> DiagnosisConfig:
        """What counts as certain, as the same, and as nothing."""
        return self.gate.diagnosis

    @cached_property
    def failing(self) -> pd.DataFrame:
        """Curves at fault, without those that training too gentle to see leaves to rounding or at zero."""
        at_fault = self.curves[self.curves["verdict"].isin(FAILURES)]
        if self.drowned:
            return at_fault[at_fault["step"] == 0]
        return at_fault[at_fault["verdict"] != "dead"] if self.seen is False else at_fault

    @cached_property
    def drowned(self) -> bool:
        """Whether changes are no larger than what rounding makes of outputs."""
        size = self.records.pivot_table(index=["module", "width", "seed", "step"], columns="kind", values="l1")
        if not {"activation", "delta"} <= set(size.columns):
            return False
        moved = size[size["delta"] > 0]  # a layer before a zero readout waits for its first gradient
        changed = (moved["delta"] / moved["activation"]).groupby("step").median()
        return bool(changed.max() < self.limits.rounding)

    @cached_property
    def parameters(self) -> pd.DataFrame:
        """The audit's rows by parameter; empty without an audit."""
        return pd.DataFrame() if self.audit is None else self.audit.parameters.set_index("parameter")

    @cached_property
    def orders(self) -> dict[str, int]:
        """Place of each module in the forward pass, under its name without an output's index."""
        forward = self.curves[self.curves["kind"] != "gradient"]  # which names parameters as well
        orders = forward.groupby(_without_index(forward["module"]))["order"].min()
        return {str(module): int(order) for module, order in orders.items()}

    def order(self, module: str) -> int:
        """Place of a module in the forward pass; a module that was not recorded comes last."""
        return self.orders.get(module.partition("[")[0], len(self.orders))

    def weight(self, module: str) -> pd.Series | None:
        """The audit's row of a module's own weight."""
        if not len(self.parameters):
            return None
        name = f"{module}.weight".removeprefix(f"{ROOT}.")
        tied = self.parameters["tied_to"].str.split(", ").map(lambda names: name in names)
        mine = self.parameters[tied | (self.parameters.index == name)]
        return mine.iloc[0] if len(mine) else None

    def reached(self, module: str, since: int) -> pd.Series:
        """Which failing curves a fault may have caused: those after it in this forward pass, and in later ones all."""
        later = self.failing["step"] > max(since, 0)
        return later | ((self.failing["step"] == since) & (self.failing["order"] >= self.order(module)))


AuditRule = Callable[[Finding, pd.Series, Evidence], Diagnosis | None]
CurveRule = Callable[[pd.Series, Evidence], Diagnosis | None]


def diagnose(
    records: pd.DataFrame, judged: pd.DataFrame, gate: GateConfig, audit: Audit | None = None, seen: bool | None = None
) -> list[Finding]:
    """What is at fault, what explains most of the failing curves first; then what is undecided.

    Args:
        records: Of one cell.
        judged: Their slopes, as :func:`coordcheck.verdict.judge` returns them.
        gate: As given to it.
        audit: What was known before the first step.
        seen: Whether the control's fault was seen; None without a control.

    Returns:
        One finding for each parameter or module where a fault starts, with the class of the fault in ``fault`` and the
        number of failing curves that it may have caused in ``explains``; curves that only follow have none.
    """
    evidence = Evidence(gate, records, judged, audit, seen)
    if harness := _harness(evidence):
        return [harness]
    known = [*_audited(evidence), *_growing_heads(evidence)]
    found = [_with_the_loss(finding, evidence) for finding in (*known, *_origins(evidence, known))]
    found.sort(key=lambda finding: (-finding.explains, evidence.order(finding.module)))
    if evidence.drowned or (seen is False and not found):
        found.insert(0, _gentle(evidence))
    return [*found, *undecided(judged, gate, weights(records))]


# faults of the check itself


def _harness(evidence: Evidence) -> Finding | None:
    """A batch or a number of calls that differs where it must not makes every slope that of something else."""
    counts = evidence.records.dropna(subset="count").query("kind == 'activation'")
    # what the model returns: experts inside it may have other shares of the batch each time
    counts = counts[counts["module"].str.startswith(ROOT)]
    if not len(counts):
        return None
    size = counts.groupby(["module", "width", "step"])["count"].max().unstack("step")
    varying = size[size.gt(size[size.columns[0]], axis=0).any(axis=1)].index.get_level_values("module").unique()
    if len(varying):
        return _whole(
            evidence,
            "harness",
            f"{varying[0]} gave more entries at a later step than at step 0: one forward pass more is pooled with the "
            f"one that is trained.",
            "Run the same forward passes in every step, for example evaluate outside the recorder.",
        )
    by_width = size[size.columns[0]].unstack("width")
    growth = by_width.iloc[:, -1] / by_width.iloc[:, 0]
    exponents = np.log(growth) / np.log(float(by_width.columns[-1]) / float(by_width.columns[0]))
    strange = exponents[(exponents < -evidence.limits.certain) | (exponents > 1 + evidence.limits.certain)]
    if not len(strange):
        return None
    return _whole(
        evidence,
        "harness",
        f"the number of entries of {strange.index[0]} scales like width^{strange.iloc[0]:+.2f}, so the batch is not "
        f"the same at every width.",
        "Train all widths on the same batch; split it into micro-batches where memory is short.",
    )


def _gentle(evidence: Evidence) -> Finding:
    """Nothing can be said of training that moves too little."""
    seen = "outputs change by less than a rounding error" if evidence.drowned else "not even the control's fault shows"
    return _whole(
        evidence,
        "gentle",
        f"{seen}, so training is too gentle to see a fault of any learning rate.",
        "Use a larger learning rate, no warmup, and at least 3 steps.",
    )


def _whole(evidence: Evidence, fault: str, cause: str, advice: str) -> Finding:
    """A finding about the whole check."""
    nan = float("nan")
    return Finding(
        fault, ROOT, None, "records", None, nan, (nan, nan), cause, advice, fault=fault, explains=len(evidence.failing)
    )


# faults that the audit names


def _audited(evidence: Evidence) -> Iterator[Finding]:
    """A finding for each parameter that the audit finds at fault, with the curve that shows it."""
    found = [] if evidence.audit is None else [f for f in evidence.audit.findings if f.verdict in FAULTS]
    worst = {finding.parameter: finding for finding in reversed(found)}
    for parameter, finding in worst.items():
        row = evidence.parameters.loc[str(parameter)]
        assert isinstance(row, pd.Series)
        said = next(filter(None, (rule(finding, row, evidence) for rule in AUDIT_RULES)), None)
        said = said or Diagnosis(AUDITED[finding.verdict], _capitalized(finding.cause), finding.advice)
        since = 0 if said.fault in AT_STEP_0 else 1
        shown = _shown(evidence, finding.module, since)
        explains = 0
        if shown is not None:
            explains = int(evidence.reached(finding.module, int(shown["step"])).sum())
            finding = finding_of(shown, parameter, "", "")
            said = dataclasses.replace(said, cause=f"{_symptom(shown)} {said.cause}")
        yield dataclasses.replace(finding, cause=said.cause, advice=said.advice, fault=said.fault, explains=explains)


def _shown(evidence: Evidence, module: str, since: int) -> pd.Series | None:
    """The curve of a module that shows its fault: the first to fail, what is local to it before the rest."""
    mine = evidence.failing[_without_index(evidence.failing["module"]) == module]
    mine = _by_locality(mine[mine["step"] >= since])
    return mine.iloc[0] if len(mine) else None


def _without_index(modules: pd.Series) -> pd.Series:
    """Names of modules without that of an output: a layer that returns several tensors is one layer."""
    return modules.str.replace(r"\[.*", "", regex=True)


def _shared_readout(finding: Finding, row: pd.Series, evidence: Evidence) -> Diagnosis | None:
    """microsoft/mup#55: the rescaling of a readout's init reaches the embedding that shares its weight."""
    if finding.verdict != "init" or not row["tied_to"] or abs(row["std_exponent"] - 0.5) > evidence.limits.certain:
        return None
    return Diagnosis(
        "shared_readout",
        f"{_std(row)} It is shared with {row['tied_to']}, whose readout was rescaled by sqrt(width_mult), and the "
        f"embedding with it. Written by {row['rules']}.",
        "Call mup.set_base_shapes with rescale_params=False, or use a shared readout whose _rescale_parameters does "
        "nothing (https://github.com/microsoft/mup/issues/55).",
    )


def _typed_as_readout(finding: Finding, row: pd.Series, evidence: Evidence) -> Diagnosis | None:
    """A hidden layer divides its input by width because its class is that of a readout."""
    if row["multiplier_exponent"] != -1.0 or row["role"] != "hidden":
        return None
    return Diagnosis(
        "multiplier",
        "It grows in both dimensions, but its module is a readout of the mup package, which divides its input by "
        "width_mult.",
        "Make it a plain layer.",
    )


def _width(finding: Finding, row: pd.Series, evidence: Evidence) -> Diagnosis | None:
    """A layer inside a block whose output does not grow with width, although later layers there do."""
    parent = finding.module.rpartition(".")[0]
    if row["role"] not in ("readout", "fixed") or not parent:
        return None
    peers = evidence.parameters[evidence.parameters["module"].str.startswith(f"{parent}.")]
    peers = peers[peers["role"].isin(("hidden", "input"))]
    later = [m for m in peers["module"] if evidence.order(m) > evidence.order(finding.module)]
    if not later:
        return None
    return Diagnosis(
        "width",
        f"Its output has {row['fan_out']} entries at every width, but {later[0]} after it grows.",
        "Let the width reach this size, as in the other layers.",
    )


def _missing_multiplier(finding: Finding, row: pd.Series, evidence: Evidence) -> Diagnosis | None:
    """A weight whose std and learning rate are both wrong, where a forward multiplier alone would right the rate."""
    wrong = (
        {f.verdict for f in evidence.audit.findings if f.parameter == finding.parameter} if evidence.audit else set()
    )
    if row["role"] != "readout" or not wrong >= {"init", "learning_rate"} or evidence.audit is None:
        return None
    allowed = forms(evidence.audit.expect, row["role"], row["update"] or "adam")
    fitting = [
        form for form in allowed if form.multiplier and abs(form.lr - row["lr_exponent"]) < evidence.limits.certain
    ]
    if not fitting:
        return None
    return Diagnosis(
        "multiplier",
        f"Its learning rate (exponent {row['lr_exponent']:+.2f}) is right for a forward multiplier "
        f"width^{fitting[0].multiplier:+.1f}, but nothing multiplies.",
        "Use mup.MuReadout, or multiply its input by 1 / width_mult.",
    )


def _base_shapes(finding: Finding, row: pd.Series, evidence: Evidence) -> Diagnosis | None:
    """The learning rates of exactly those matrices are not scaled that share one dimension."""
    hidden = evidence.parameters[evidence.parameters["role"] == "hidden"]
    wrong = (hidden["lr_exponent"] - hidden["expected_lr_exponent"]).abs() > evidence.limits.certain
    if (
        finding.verdict != "learning_rate"
        or row["role"] != "hidden"
        or abs(row["lr_exponent"]) > evidence.limits.certain
        or wrong.all()
    ):
        return None
    dimensions = hidden["shape"].str.split(" x ").map(frozenset)
    common = frozenset.intersection(*dimensions[wrong]) - frozenset().union(*dimensions[~wrong])
    if not common:
        return None
    return Diagnosis(
        "base_shapes",
        f"The learning rates of all {int(wrong.sum())} matrices with the dimension {min(common)} (at the largest width "
        f"audited), and of no others, do not shrink with width: the base shapes take this dimension for finite.",
        "Let it differ between the base and the delta model that are given to mup.set_base_shapes.",
    )


def _std(row: pd.Series) -> str:
    return f"Its std scales like width^{row['std_exponent']:+.2f}; expected {row['expected_std_exponent']:+.2f}."


def _reinitialized(finding: Finding, row: pd.Series, evidence: Evidence) -> Diagnosis | None:
    """The last of several initializations is the wrong one."""
    if finding.verdict != "init" or not row["conflict"]:
        return None
    return Diagnosis(
        "reinitialized",
        f"{_std(row)} It was initialized {row['repeats']} times: {row['rules']}; the last won.",
        "Let one rule write it once, the one that knows the width.",
    )


def _decay(finding: Finding, row: pd.Series, evidence: Evidence) -> Diagnosis | None:
    """AdamW decays by learning rate x weight decay, so a scaled learning rate scales the decay."""
    if finding.verdict != "decay":
        return None
    return Diagnosis(
        "decay",
        f"A step decays it by learning rate x weight decay, which scales like "
        f"width^{row['effective_decay_exponent']:+.2f} (learning rate {row['lr_exponent']:+.2f}, weight decay "
        f"{row['decay_exponent']:+.2f}); expected +0.00.",
        finding.advice,
    )


AUDIT_RULES: tuple[AuditRule, ...] = (
    _shared_readout,
    _typed_as_readout,
    _width,
    _missing_multiplier,
    _base_shapes,
    _reinitialized,
    _decay,
)
AT_STEP_0 = ("init", "shared_readout", "multiplier", "width", "reinitialized")


# faults that only curves show


def _growing_heads(evidence: Evidence) -> Iterator[Finding]:
    """Attention logits that keep their size at step 0 although heads grow, so that aligned ones will not.

    Queries and keys are independent then: of K entries q·k grows like sqrt(K), and 1/K makes that 1/sqrt(K). The range
    that theory allows ends at 0 because training aligns them; only the number of entries, which is that of the heads,
    tells whether K grows.
    """
    if evidence.gate.expect != "mup":
        return
    for _, curve in evidence.curves.query("role == 'attention_logits' and step == 0").iterrows():
        counts = evidence.records[evidence.records["module"] == curve["module"]].groupby("width")["count"].max()
        if counts.nunique() == 1 and curve["ci_low"] > evidence.limits.certain - 0.5 and curve["verdict"] != "explodes":
            yield dataclasses.replace(
                finding_of(
                    curve,
                    None,
                    f"its attention logits scale like width^{curve['slope']:+.2f} at step 0 although the size of its "
                    f"heads grows (expected -0.50): q·k is multiplied by 1/sqrt(head size).",
                    "Multiply q·k by a constant / head size, for queries and keys that training aligns.",
                ),
                verdict="explodes",
                expected=(-0.5, -0.5),
                fault="multiplier",
                explains=int(evidence.reached(curve["module"], 1).sum()),
            )


def _origins(evidence: Evidence, known: list[Finding]) -> Iterator[Finding]:
    """A finding for the earliest failing curve that no cause reaches, as long as there is one."""
    names = weights(evidence.records)
    rest = evidence.failing
    for finding in known:
        if finding.step is not None:
            rest = rest[~evidence.reached(finding.module, finding.step).loc[rest.index]]
    while len(rest):
        curve = _by_locality(rest).iloc[0]
        said = next(filter(None, (rule(curve, evidence) for rule in CURVE_RULES)))
        reached = evidence.reached(curve["module"], int(curve["step"]))
        yield dataclasses.replace(
            finding_of(curve, names.get(curve["module"]), f"{_symptom(curve)} {said.cause}", said.advice),
            fault=said.fault,
            explains=int(reached.sum()),
        )
        rest = rest[~reached.loc[rest.index]]


def _by_locality(curves: pd.DataFrame) -> pd.DataFrame:
    """Curves, the one where a fault starts first.

    By step; within a step a diverged or a silent module before its consequences, then what is local to a module,
    then changes, then sizes, each in forward order; gradients last, for they carry what comes after.
    """
    local = curves["kind"].eq("effective_update") | curves["role"].eq("attention_logits")
    rank = curves["kind"].map({"delta": 2, "gradient": 4}).fillna(3).mask(local, 1)
    silent = curves["verdict"].eq("dead") & curves["kind"].eq("activation")
    rank = rank.mask(curves["verdict"].eq("nonfinite") | silent, 0)
    return curves.assign(rank=rank).sort_values(["step", "rank", "order"], kind="stable")


def _nonfinite(curve: pd.Series, evidence: Evidence) -> Diagnosis | None:
    if curve["verdict"] != "nonfinite":
        return None
    if curve["step"] == 0:
        return Diagnosis(
            "nonfinite",
            "It is so before any training, and everything before it in the forward pass is finite.",
            "Look for an overflow of a narrow type, a division by zero or a logarithm of zero in this module.",
        )
    return Diagnosis(
        "nonfinite",
        "Training diverged; nothing else is at fault before.",
        "Lower the learning rate until every width trains, then check again.",
    )


def _untrained(curve: pd.Series, evidence: Evidence) -> Diagnosis | None:
    if curve["verdict"] != "dead" or curve["kind"] != "effective_update":
        return None
    return Diagnosis(
        "untrained",
        "Its weight does not change in training, while others do.",
        "Set requires_grad=True and put it in a parameter group, or leave it out with `modules` if that is meant.",
    )


def _dead(curve: pd.Series, evidence: Evidence) -> Diagnosis | None:
    if curve["verdict"] != "dead":
        return None
    return Diagnosis(
        "dead",
        "Nothing passes this module, so no gradient does either.",
        "Look for a multiplication by zero, an activation that is always off, or a detached tensor.",
    )


def _lost_base_shapes(curve: pd.Series, evidence: Evidence) -> Diagnosis | None:
    """A readout of the mup package that multiplies by the same number at every width."""
    row = evidence.weight(curve["module"])
    if row is None or row["multiplier_exponent"] != -1.0 or curve["verdict"] != "explodes":
        return None
    hidden = evidence.parameters[evidence.parameters["role"] == "hidden"]
    if not len(hidden) or not (hidden["lr_exponent"] - hidden["expected_lr_exponent"] > evidence.limits.certain).all():
        return None
    return Diagnosis(
        "base_shapes",
        f"It is a readout of the mup package, yet nothing divides its input by width_mult, and none of the "
        f"{len(hidden)} hidden matrices' learning rates shrinks: the model's base shapes are its own at every width.",
        "Give mup.set_base_shapes the shapes of one base model, and keep what it attached to the parameters.",
    )


def _readout_multiplier(curve: pd.Series, evidence: Evidence) -> Diagnosis | None:
    if curve["role"] != "readout" or curve["module"].startswith(ROOT) or abs(_beyond(curve)) < evidence.limits.certain:
        return None
    if _input_fails(curve, evidence):
        return None
    if _beyond(curve) > 0:
        return Diagnosis(
            "multiplier",
            "Its init and learning rate are right for a readout that is multiplied by 1/width, but nothing multiplies.",
            "Use mup.MuReadout, or multiply its input by 1 / width_mult.",
        )
    return Diagnosis(
        "multiplier",
        "Its input keeps its size, and its init and learning rate are right: it is divided by width more than once.",
        "Divide once: by mup.MuReadout or by hand.",
    )


def _attention_multiplier(curve: pd.Series, evidence: Evidence) -> Diagnosis | None:
    if curve["role"] != "attention_logits":
        return None
    grows = _beyond(curve) > 0
    return Diagnosis(
        "multiplier",
        "Queries and keys keep their size, but q·k, a sum over the entries of a head, "
        + ("is not divided by the size of a head." if grows else "is divided by more than the size of a head."),
        "Multiply q·k by a constant / head size, in muP, where the size of a head grows with width.",
    )


def _forward_multiplier(curve: pd.Series, evidence: Evidence) -> Diagnosis | None:
    if curve["step"] != 0 or curve["kind"] != "activation":
        return None
    inside = "" if curve["module"].startswith(ROOT) else f"{curve['module']}."
    children = [m for m, order in evidence.orders.items() if m.startswith(inside) and order < curve["order"]]
    if children:
        return Diagnosis(
            "multiplier",
            f"Everything inside keeps its size, {max(children, key=evidence.order)} at the end too.",
            "Look at what it multiplies, or adds on the way: a residual stream, or an embedding before it.",
        )
    return Diagnosis(
        "multiplier",
        "What comes before it keeps its size"
        + (", and its init is right." if evidence.weight(curve["module"]) is not None else "."),
        "Look for a factor that depends on width between its input and its output.",
    )


def _initial_loss(curve: pd.Series, evidence: Evidence) -> Diagnosis | None:
    loss = InitialLoss.of(evidence.records)
    if curve["role"] != LOSS or loss is None:
        return None
    return Diagnosis(
        "unexplained",
        f"{_capitalized(loss.excess())}, although the readout's logits keep their size.",
        "Look at what is added to the logits, or at targets that a model of this width can tell better than chance.",
    )


def _with_the_loss(finding: Finding, evidence: Evidence) -> Finding:
    """A readout at fault, with what it does to the initial loss where that is too high and grows."""
    loss = InitialLoss.of(evidence.records)
    starts = evidence.failing[(evidence.failing["role"] == LOSS) & (evidence.failing["step"] == 0)]
    of_readout = evidence.curves[evidence.curves["role"] == "readout"]["module"]
    if loss is None or not len(starts) or finding.module not in set(of_readout) or not finding.fault:
        return finding
    said = "std does not shrink with width" if finding.fault == "init" else "logits grow with width"
    return dataclasses.replace(finding, cause=f"{finding.cause} {_capitalized(loss.excess())}: the readout's {said}.")


def _changed_rate(curve: pd.Series, evidence: Evidence) -> Diagnosis | None:
    """Updates of the wrong size; or a change, as far as updates that grow as much make it."""
    row = evidence.weight(curve["module"])
    own = evidence.curves.query("module == @curve.module and step == @curve.step and kind == 'effective_update'")[
        "slope"
    ]
    made_by_update = (own > curve["slope"] - evidence.limits.same).any() and curve["verdict"] == "explodes"
    if row is None or not (curve["kind"] == "effective_update" or made_by_update):
        return None
    rate = f"The learning rate of its group is right when training begins (exponent {row['lr_exponent']:+.2f})"
    if _beyond(curve) > 0:
        return Diagnosis(
            "learning_rate",
            f"{rate}, so something changes it afterwards.",
            "Look for a scheduler that sets one rate for all groups; let it multiply each group's own.",
        )
    return Diagnosis(
        "epsilon",
        f"{rate}, but the step shrinks with the gradient.",
        "Make the optimizer's epsilon much smaller than the gradient's entries, for example 1e-12.",
    )


def _unexplained(curve: pd.Series, evidence: Evidence) -> Diagnosis | None:
    without = "" if "effective_update" in set(evidence.curves["kind"]) else " Record the kind effective_update as well."
    audit = " Run it with the audit." if evidence.audit is None else ""
    return Diagnosis(
        "unexplained",
        "This is the first curve to fail; what causes it is not known.",
        f"Look at the learning rate and multipliers here and just before.{without}{audit}",
    )


CURVE_RULES: tuple[CurveRule, ...] = (
    _nonfinite,
    _untrained,
    _dead,
    _lost_base_shapes,
    _readout_multiplier,
    _attention_multiplier,
    _initial_loss,
    _forward_multiplier,
    _changed_rate,
    _unexplained,
)


def _beyond(curve: pd.Series) -> float:
    """How far a slope lies above its expected range, or, negative, below."""
    return float(curve["slope"] - np.clip(curve["slope"], curve["expected_low"], curve["expected_high"]))


def _input_fails(curve: pd.Series, evidence: Evidence) -> bool:
    """Whether the module just before fails at the same step already."""
    before = evidence.curves.query("order < @curve.order and step == @curve.step and kind == 'activation'")
    return bool(before.sort_values("order")["verdict"].tail(1).isin(FAILURES).any())


def _symptom(curve: pd.Series) -> str:
    """What a curve shows, as a sentence with its numbers."""
    what, grow, shrink = GROWTH[curve["role"] if curve["role"] in ("attention_logits", LOSS) else curve["kind"]]
    at = f"at step {curve['step']}"
    if curve["verdict"] in ("nonfinite", "dead"):
        return f"{what}, {at}: {describe(curve)}"
    verb = grow if _beyond(curve) > 0 else shrink
    expected = format_range(curve["expected_low"], curve["expected_high"])
    return f"{what} {verb} like width^{curve['slope']:+.2f} {at} (expected {expected})."


def _capitalized(sentence: str) -> str:
    return re.sub(r"^\w", lambda match: match[0].upper(), sentence)
