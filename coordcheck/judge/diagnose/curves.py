"""Faults that only curves show: the earliest failing curve that no cause reaches, and what it is."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import pandas as pd

from coordcheck.judge.accepted import places
from coordcheck.judge.diagnose.evidence import Diagnosis, Evidence, beyond, by_locality, capitalized, symptom
from coordcheck.judge.diagnose.lacking import PLACE
from coordcheck.judge.finding import Change, Curve, Finding
from coordcheck.judge.loss import InitialLoss
from coordcheck.judge.undecided import weights
from coordcheck.judge.verdict import FAILURES
from coordcheck.records.schema import LOSS, ROOT, WEIGHTS

CurveRule = Callable[[pd.Series, Evidence], Diagnosis | None]


def growing_heads(evidence: Evidence) -> Iterator[Finding]:
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
            yield Finding(
                "multiplier",
                curve["module"],
                None,
                f"its attention logits scale like width^{curve['slope']:+.2f} at step 0 although the size of its "
                f"heads grows (expected -0.50): q·k is multiplied by 1/sqrt(head size).",
                "Multiply q·k by a constant / head size, for queries and keys that training aligns.",
                dataclasses.replace(Curve.of(curve), verdict="explodes", expected=(-0.5, -0.5)),
                explains=int(evidence.reached(curve["module"], 1).sum()),
            )


def origins(evidence: Evidence, known: Sequence[Finding]) -> Iterator[Finding]:
    """A finding for the earliest failing curve that no cause reaches, as long as there is one."""
    names = weights(evidence.records)
    rest = evidence.failing
    for finding in known:
        if finding.step is not None:
            rest = rest[~evidence.reached(finding.module, finding.step, inside=True).loc[rest.index]]
    told: dict[tuple[str, str], Finding] = {}
    while len(rest):
        curve = by_locality(rest).iloc[0]
        said = next(filter(None, (rule(curve, evidence) for rule in CURVE_RULES)))
        reached = evidence.reached(curve["module"], int(curve["step"]))
        parameters = tuple(filter(None, [names.get(curve["module"])]))
        cause = f"{symptom(curve)} {said.cause}{_behind_accepted(curve, evidence)}"
        finding = Finding(
            said.fault,
            curve["module"],
            names.get(curve["module"]),
            cause,
            said.advice,
            Curve.of(curve),
            explains=int(reached.sum()),
            parameters=parameters,
            change=said.change,
        )
        key = (said.fault, said.advice) if said.fault in ("epsilon", "untrained") else (said.fault, cause)
        if key in told:  # one cause is told once, where it explains most
            first = max(told[key], finding, key=lambda either: either.explains)
            finding = dataclasses.replace(first, parameters=(*told[key].parameters, *parameters))
        told[key] = finding
        rest = rest[~reached.loc[rest.index]].drop(curve.name, errors="ignore")
    yield from told.values()


def _behind_accepted(curve: pd.Series, evidence: Evidence) -> str:
    """That an accepted deviation comes before what only a curve shows, and goes the same way; it may be the cause."""
    for finding in [] if evidence.audit is None else evidence.audit.accepted:
        shift = finding.quantity.exponent - finding.quantity.expected
        row = evidence.parameters.loc[finding.parameter]
        assert isinstance(row, pd.Series)
        before = min(map(evidence.order, places(row))) <= curve["order"]
        if before and shift * beyond(curve) > 0:
            return f" What is accepted of {finding.parameter} comes before it and goes the same way."
    return ""


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
    if curve["verdict"] != "dead" or curve["kind"] not in ("effective_update", "update"):
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
    """A readout of the mup package whose use was not read, and which multiplies by the same number at every width."""
    row = evidence.weight(curve["module"])
    if row is None or row["multiplier_exponent"] != -1.0 or curve["verdict"] != "explodes":
        return None
    return evidence.lost_base_shapes()


def _readout_multiplier(curve: pd.Series, evidence: Evidence) -> Diagnosis | None:
    row = evidence.weight(curve["module"])
    if evidence.gate.expect != "mup" or (row is not None and row["used_in"]):
        return None  # what was read of its use is judged by the audit
    if curve["kind"] in WEIGHTS:
        return None
    if curve["role"] != "readout" or curve["module"].startswith(ROOT) or abs(beyond(curve)) < evidence.limits.certain:
        return None
    if _input_fails(curve, evidence):
        return None
    if beyond(curve) > 0:
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
    grows = beyond(curve) > 0
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
        f"{capitalized(loss.excess())}, although the readout's logits keep their size.",
        "Look at what is added to the logits, or at targets that a model of this width can tell better than chance.",
    )


def with_the_loss(finding: Finding, evidence: Evidence) -> Finding:
    """A readout at fault, with what it does to the initial loss where that is too high and grows."""
    loss = InitialLoss.of(evidence.records)
    starts = evidence.failing[(evidence.failing["role"] == LOSS) & (evidence.failing["step"] == 0)]
    of_readout = evidence.curves[evidence.curves["role"] == "readout"]["module"]
    if loss is None or not len(starts) or finding.module not in set(of_readout) or not finding.fault:
        return finding
    said = "std does not shrink with width" if finding.fault == "init" else "logits grow with width"
    return dataclasses.replace(finding, cause=f"{finding.cause} {capitalized(loss.excess())}: the readout's {said}.")


def _epsilon(curve: pd.Series, evidence: Evidence) -> Diagnosis | None:
    """A change that shrinks where Adam's epsilon is not small beside the gradient, in this module or in one before."""
    if curve["verdict"] != "vanishes" or curve["step"] == 0 or curve["role"] in (LOSS, "attention_logits"):
        return None
    rows = evidence.epsilons(curve["module"])
    if not len(rows):
        return None
    row = rows.sort_values("gradient").iloc[0]
    return Diagnosis(
        "epsilon",
        f"The optimizer's epsilon, {row['eps']:.1g}, is not small beside the gradient of {row.name}: a quarter of its "
        f"entries is below {row['gradient']:.1g} at the largest width audited, which scales like "
        f"width^{row['gradient_exponent']:+.2f}. Steps shrink with it.",
        "Make epsilon much smaller than the gradient's entries, for example 1e-12, or let it shrink like them.",
    )


def _changed_rate(curve: pd.Series, evidence: Evidence) -> Diagnosis | None:
    """Updates of the wrong size; or a change, as far as updates that grow as much make it."""
    row = evidence.weight(curve["module"])
    own = evidence.curves.query("module == @curve.module and step == @curve.step and kind == 'effective_update'")[
        "slope"
    ]
    made_by_update = (own > curve["slope"] - evidence.limits.same).any() and curve["verdict"] == "explodes"
    if row is None or not (curve["kind"] in ("effective_update", "update") or made_by_update):
        return None
    if not row["update"]:
        return Diagnosis(
            "learning_rate",
            "How the steps of its optimizer should scale is not known, so whether its learning rate is right is not "
            "either; its updates are not of one size.",
            f"Multiply its learning rate by width_mult^{-beyond(curve):+.2f}, and check again.",
            Change("learning_rate", -beyond(curve)),
        )
    rate = f"The learning rate of its group is right when training begins (exponent {row['lr_exponent']:+.2f})"
    if beyond(curve) > 0:
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


def drift_of_projection(curve: Curve, evidence: Evidence) -> Diagnosis | None:
    """A finite output that later layers read, whose weight's init std shrinks less than 1/width: in muP it drifts.

    What goes back through such a weight is of width^-1/2, what goes back through the readout of 1/width. With width the
    first outgrows the second, so that the layers before learn to change this output, and width terms of width^-1/2
    align. Measured over widths 128 to 1024: what a Mixtral's routers change by grows like up to width^+0.27, and keeps
    still where no gradient goes back through them (``benchmarks/router.py``).
    """
    row = evidence.weight(curve.module.partition("[")[0])
    if row is None or evidence.gate.expect != "mup" or row["role"] != "projection" or curve.step == 0:
        return None
    grows = curve.kind in ("activation", "delta") and curve.slope > 0
    power = -1.0 - row["std_exponent"] - row["multiplier_exponent"]
    if not grows or abs(power + 0.5) > evidence.limits.certain:
        return None  # small enough, or the audit's to accuse
    return Diagnosis(
        "init",
        f"Its init std scales like width^{row['std_exponent']:+.2f}, which suits step 0; but the wider the model, the "
        "more of the gradient before it comes through it, and what those layers learn adds up here.",
        "Let its init std shrink like 1/width, as a readout's does.",
        Change("init_std", power),
    )


def _projection(curve: pd.Series, evidence: Evidence) -> Diagnosis | None:
    return drift_of_projection(Curve.of(curve), evidence) if curve["verdict"] == "explodes" else None


def with_drift(finding: Finding, evidence: Evidence) -> Finding:
    """What is undecided, with what would make it right where that is known."""
    said = None if finding.curve is None else drift_of_projection(finding.curve, evidence)
    if said is None or finding.parameter is None:
        return finding
    cause = f"{finding.cause} {said.cause}"
    return dataclasses.replace(
        finding, cause=cause, advice=said.advice, parameters=(finding.parameter,), change=said.change
    )


def _unexplained(curve: pd.Series, evidence: Evidence) -> Diagnosis | None:
    known = PLACE in set(evidence.curves["kind"])
    without = "" if known else f" The kind {PLACE} was not recorded, which tells where a change is made."
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
    _epsilon,
    _changed_rate,
    _projection,
    _unexplained,
)


def _input_fails(curve: pd.Series, evidence: Evidence) -> bool:
    """Whether the module just before fails at the same step already."""
    before = evidence.curves.query("order < @curve.order and step == @curve.step and kind == 'activation'")
    return bool(before.sort_values("order")["verdict"].tail(1).isin(FAILURES).any())
