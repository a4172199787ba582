"""Faults that the audit names: causes, each of one parameter, with the curve that shows what it does."""

import dataclasses
from collections.abc import Callable, Iterator

import pandas as pd

from coordcheck.judge.audit import AUDIT_FAULTS, AuditFinding
from coordcheck.judge.diagnose.evidence import Diagnosis, Evidence, by_locality, capitalized, symptom, without_index
from coordcheck.judge.finding import Curve, Finding
from coordcheck.judge.theory import forms

# the fault that a problem of an audit stands for
AUDITED = {
    "uninitialized": "init",
    "init": "init",
    "ungrouped": "untrained",
    "regrouped": "learning_rate",
    "learning_rate": "learning_rate",
    "decay": "decay",
    "epsilon": "epsilon",
}
AuditRule = Callable[[AuditFinding, pd.Series, Evidence], Diagnosis | None]


def audited(evidence: Evidence) -> Iterator[Finding]:
    """A finding for each parameter that the audit finds at fault, with the curve that shows it."""
    found = [] if evidence.audit is None else [f for f in evidence.audit.findings if f.verdict in AUDIT_FAULTS]
    worst = {finding.parameter: finding for finding in reversed(found)}
    for parameter, finding in worst.items():
        row = evidence.parameters.loc[str(parameter)]
        assert isinstance(row, pd.Series)
        said = next(filter(None, (rule(finding, row, evidence) for rule in AUDIT_RULES)), None)
        said = said or Diagnosis(AUDITED[finding.verdict], capitalized(finding.cause), finding.advice)
        since = 0 if said.fault in AT_STEP_0 else 1
        shown = _shown(evidence, finding.module, since)
        module, curve, explains = finding.module, None, 0
        if shown is not None:
            explains = int(evidence.reached(finding.module, int(shown["step"])).sum())
            module, curve = shown["module"], Curve.of(shown)
            said = dataclasses.replace(said, cause=f"{symptom(shown)} {said.cause}")
        yield Finding(said.fault, module, parameter, said.cause, said.advice, curve, finding.quantity, explains)


def _shown(evidence: Evidence, module: str, since: int) -> pd.Series | None:
    """The curve of a module that shows its fault: the first to fail, what is local to it before the rest."""
    mine = evidence.failing[without_index(evidence.failing["module"]) == module]
    mine = by_locality(mine[mine["step"] >= since])
    return mine.iloc[0] if len(mine) else None


def _shared_readout(finding: AuditFinding, row: pd.Series, evidence: Evidence) -> Diagnosis | None:
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


def _typed_as_readout(finding: AuditFinding, row: pd.Series, evidence: Evidence) -> Diagnosis | None:
    """A hidden layer divides its input by width because its class is that of a readout."""
    if row["multiplier_exponent"] != -1.0 or row["role"] != "hidden":
        return None
    return Diagnosis(
        "multiplier",
        "It grows in both dimensions, but its module is a readout of the mup package, which divides its input by "
        "width_mult.",
        "Make it a plain layer.",
    )


def _width(finding: AuditFinding, row: pd.Series, evidence: Evidence) -> Diagnosis | None:
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


def _missing_multiplier(finding: AuditFinding, row: pd.Series, evidence: Evidence) -> Diagnosis | None:
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


def _base_shapes(finding: AuditFinding, row: pd.Series, evidence: Evidence) -> Diagnosis | None:
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


def _reinitialized(finding: AuditFinding, row: pd.Series, evidence: Evidence) -> Diagnosis | None:
    """The last of several initializations is the wrong one."""
    if finding.verdict != "init" or not row["conflict"]:
        return None
    return Diagnosis(
        "reinitialized",
        f"{_std(row)} It was initialized {row['repeats']} times: {row['rules']}; the last won.",
        "Let one rule write it once, the one that knows the width.",
    )


def _decay(finding: AuditFinding, row: pd.Series, evidence: Evidence) -> Diagnosis | None:
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
