"""Faults that the audit names: causes, each of some parameters, with the curve that shows what they do.

Parameters of which the audit says the same share one finding. What holds memory that nothing wrote comes first and
alone: every number of such a model is garbage.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator

import pandas as pd

from coordcheck.judge.audit import AUDIT_FAULTS
from coordcheck.judge.audit_findings import AuditFinding
from coordcheck.judge.diagnose.evidence import Diagnosis, Evidence, by_locality, capitalized, symptom, without_index
from coordcheck.judge.finding import Curve, Finding

# the fault that a verdict of an audit stands for
AUDITED = {
    "uninitialized": "init",
    "multiplier": "multiplier",
    "init": "init",
    "ungrouped": "untrained",
    "regrouped": "learning_rate",
    "learning_rate": "learning_rate",
    "decay": "decay",
    "epsilon": "epsilon",
    "width": "width",
}
NAMED = 3  # parameters that a sentence lists


AuditRule = Callable[[AuditFinding, pd.Series, Evidence], Diagnosis | None]


def audited(evidence: Evidence) -> Iterator[Finding]:
    """A finding for each fault that the audit names, once for all parameters that share it."""
    found = [] if evidence.audit is None else [f for f in evidence.audit.findings if f.verdict in AUDIT_FAULTS]
    garbage = [finding for finding in found if finding.verdict == "uninitialized"]
    single = [_one(finding, evidence) for finding in garbage or found]
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in single:
        change = finding.change
        what = finding.advice if change is None else f"{change.quantity} {round(4 * change.exponent)}"
        key = (finding.fault, what)
        groups.setdefault(key, []).append(finding)
    for group in groups.values():
        yield _together(sorted(group, key=lambda finding: _place(finding, evidence)), evidence)


def _place(finding: Finding, evidence: Evidence) -> tuple[bool, int, int]:
    """Where among those of the same cause: what shows in a curve first, then in forward order."""
    return finding.curve is None, finding.step or 0, evidence.order(finding.module)


def _one(finding: AuditFinding, evidence: Evidence) -> Finding:
    """The finding of one parameter, with the curve that shows it."""
    row = evidence.parameters.loc[finding.parameter]
    assert isinstance(row, pd.Series)
    said = next(filter(None, (rule(finding, row, evidence) for rule in AUDIT_RULES)), None)
    if said is not None and said.advice != finding.advice:
        finding = dataclasses.replace(finding, change=None)  # what is to be done is no longer that number
    said = said or Diagnosis(AUDITED[finding.verdict], capitalized(finding.cause), finding.advice)
    since = 0 if {said.fault, finding.verdict} & AT_STEP_0 else 1
    shown = None if said.fault == "decay" else _shown(evidence, finding, row, since)
    module, curve, explains = finding.module, None, 0
    if finding.verdict == "uninitialized":
        explains = len(evidence.failing)
    if shown is not None:
        explains = max(explains, int(evidence.reached(shown["module"], int(shown["step"]), inside=True).sum()))
        module, curve = shown["module"], Curve.of(shown)
        if finding.verdict != "uninitialized":
            said = dataclasses.replace(said, cause=f"{symptom(shown)} {said.cause}")
    return Finding(
        said.fault,
        module,
        finding.parameter,
        said.cause,
        said.advice,
        curve,
        finding.quantity,
        explains,
        (finding.parameter,),
        finding.change,
    )


def _together(findings: list[Finding], evidence: Evidence) -> Finding:
    """Several parameters with one cause as one finding, that of the first and the names of the others."""
    first, *others = findings
    if not others:
        return first
    names = tuple(finding.parameters[0] for finding in findings)
    more = len(names) - NAMED
    listed = ", ".join(names[1:NAMED]) + (f" and {more} more" if more > 0 else "")
    advice = f"{first.advice} The same holds for {listed} ({len(names)} in all)."
    if whole := _whole_parametrization(names, first, evidence):
        advice = f"{advice} {whole}"
    explains = max(finding.explains for finding in findings)
    return dataclasses.replace(first, advice=advice, parameters=names, explains=explains)


def _whole_parametrization(names: tuple[str, ...], first: Finding, evidence: Evidence) -> str:
    """What it means that all hidden matrices have the same fault."""
    hidden = evidence.parameters[evidence.parameters["role"] == "hidden"]
    if not len(hidden) or not {*hidden.index} <= {*names} or evidence.gate.expect != "mup":
        return ""
    constant = (hidden["lr_exponent"].abs() < evidence.limits.certain).all()
    of_adam = hidden["update"].isin(("adam",)).all()
    return "This is standard parametrization." if first.fault == "learning_rate" and constant and of_adam else ""


def _shown(evidence: Evidence, finding: AuditFinding, row: pd.Series, since: int) -> pd.Series | None:
    """The curve that shows a fault: of the parameter's module, or of the one in which it was used.

    The first to fail, what is local to it before the rest. A curve that goes the other way than the fault would push it
    does not show it.
    """
    uses = (str(row[name]).partition(" in ")[2] for name in ("used_in", "readout_used_in"))
    names = {finding.module, finding.parameter, *uses} - {""}
    mine = evidence.failing[without_index(evidence.failing["module"]).isin(names)]
    mine = mine[mine["step"] >= since]
    if finding.change is not None and len(mine):
        # what must be made smaller was too large
        away = mine["verdict"].map({"explodes": -1.0, "vanishes": 1.0}) * finding.change.exponent
        mine = mine[~(away < 0)]
    mine = by_locality(mine)
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


def _lost_tie(finding: AuditFinding, row: pd.Series, evidence: Evidence) -> Diagnosis | None:
    """Memory that nothing wrote, of the shape of a weight that something wrote: they may have been one."""
    if finding.verdict != "uninitialized":
        return None
    others = evidence.parameters[
        (evidence.parameters["shape"] == row["shape"]) & (evidence.parameters["unwritten"] == 0)
    ]
    embeddings = others[others["role"] == "input"]
    if row["role"] != "readout" or not len(embeddings):
        return None
    return Diagnosis(
        "init",
        capitalized(finding.cause),
        f"Initialize it. {embeddings.index[0]} has its shape: if they should be one weight, the tie was lost, for "
        f"example by to_empty() after a construction on meta; tie them again afterwards.",
    )


def _typed_as_readout(finding: AuditFinding, row: pd.Series, evidence: Evidence) -> Diagnosis | None:
    """A hidden layer that divides its input by width, and has its init rescaled, for its class is a readout's."""
    by_class = row["class_multiplier_exponent"] == -1.0 or (row["multiplier_exponent"] == -1.0 and not row["used_in"])
    if row["role"] != "hidden" or not by_class or finding.verdict not in ("init", "learning_rate", "multiplier"):
        return None
    return Diagnosis(
        "multiplier",
        "It grows in both dimensions, but its module is a readout of the mup package, which divides its input by "
        "width_mult.",
        "Make it a plain layer.",
    )


def _width(finding: AuditFinding, row: pd.Series, evidence: Evidence) -> Diagnosis | None:
    """A layer whose output does not grow with width, although that of the same layer elsewhere does."""
    if finding.verdict == "uninitialized" or row["role"] not in ("readout", "projection", "fixed"):
        return None
    peer = _growing_peer(str(row.name), row, evidence.parameters)
    if peer is None:
        return None
    return Diagnosis(
        "width",
        f"Its output has {row['fan_out']} entries at every width, but that of {peer} grows.",
        "Let the width reach this size, as in the other layers.",
    )


def _growing_peer(name: str, row: pd.Series, parameters: pd.DataFrame) -> str | None:
    """A trained weight that is the counterpart of this one, and grows in both dimensions.

    The same name in another block; or a sibling used alike, unless a layer beside them takes in what does not grow:
    then the size is meant, as LoRA's rank is.
    """
    hidden = parameters[(parameters["role"] == "hidden") & parameters["trained"]]
    pattern = re.sub(r"\d+", r"\\d+", re.escape(name))
    counterparts = [other for other in hidden.index if re.fullmatch(pattern, other)]
    parent = name.rpartition(".")[0].rpartition(".")[0]
    beside = parameters[parameters["module"].str.rpartition(".")[0] == parent]
    meant = not parent or (beside["role"] == "input").any()
    alike = [
        other
        for other in hidden.index
        if other in beside.index
        and hidden.loc[other, "fan_in"] == row["fan_in"]
        and hidden.loc[other, "shape"].count("x") == row["shape"].count("x")  # a router stands beside stacked experts
    ]
    siblings = [] if meant else alike
    return next(iter([*counterparts, *siblings]), None)


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


def _lost_base_shapes(finding: AuditFinding, row: pd.Series, evidence: Evidence) -> Diagnosis | None:
    """A readout of the mup package that multiplies by the same number at every width, where no rate shrinks."""
    if finding.verdict != "multiplier" or row["class_multiplier_exponent"] != -1.0 or row["role"] != "readout":
        return None
    return evidence.lost_base_shapes() if row["multiplier_exponent"] == 0.0 else None


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
    _lost_tie,
    _typed_as_readout,
    _width,
    _lost_base_shapes,
    _base_shapes,
    _reinitialized,
    _decay,
)
AT_STEP_0 = frozenset({"init", "shared_readout", "multiplier", "width", "reinitialized"})
