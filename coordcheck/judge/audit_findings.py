"""What an audit says of one parameter: who wrote it, how it is trained, and whether its exponents fit together.

Init std, learning rate and forward multiplier are judged together, since (a+t, b-t, c-t) is the same training under
Adam: where one number alone makes the others right, it is the one that is named.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from coordcheck.judge.finding import Change, Quantity
from coordcheck.judge.parametrizations import RULES
from coordcheck.judge.theory import Form, forms
from coordcheck.records.schema import ARROW

ACCEPTED = "accepted"  # the verdict of a deviation that a user accepts by name
SMALL_EPSILON = 0.1  # of a gradient's small entries, up to which Adam's epsilon changes nothing


@dataclass(frozen=True)
class AuditFinding:
    """What an audit says of a parameter.

    Attributes:
        verdict: One of :data:`coordcheck.judge.audit.ORDER`.
        module: That holds the parameter.
        parameter: Its name.
        cause: What was seen, in numbers.
        advice: What to do.
        quantity: What was looked at.
        change: What to do, as a number; None where it is none.
    """

    verdict: str
    module: str
    parameter: str
    cause: str
    advice: str
    quantity: Quantity
    change: Change | None = None

    def __str__(self) -> str:
        return f"{self.parameter}: {self.cause} {self.advice}"


Row = Mapping[str, Any]


def expected_form(row: Row, expect: str, tolerance: float) -> tuple[Form, tuple[Form, ...]]:
    """The form that a parameter has, else the usual one; and all that it may have."""
    # without a reading the class of a tied readout tells of that use alone
    multiplier = None if _is_tied(row) and not row["used_in"] else _known(row["multiplier_exponent"])
    of_readout = _known(row["readout_multiplier_exponent"])
    std, step = _known(row["std_exponent"]), _known(row["step_exponent"])
    allowed = forms(
        expect,
        row["role"],
        row["update"] if row["update"] in RULES else "adam",
        tied=_is_tied(row),
        multiplier=None if row["role"] in ("vector", "fixed") else multiplier,
        readout_multiplier=of_readout,
        step=step or 0.0,
        std=std or 0.0,
    )

    def fits(form: Form) -> bool:
        return not (_std_is_off(row, form, tolerance) or _off(row["lr_exponent"], form.lr, tolerance))

    return next(filter(fits, allowed), allowed[0]), allowed


def _known(exponent: float) -> float | None:
    return None if np.isnan(exponent) else float(exponent)


def _is_tied(row: Row) -> bool:
    """Whether an embedding's weight is a readout's too, as it was read; else whether it has another name."""
    return not np.isnan(row["readout_multiplier_exponent"]) or (bool(row["tied_to"]) and not row["used_in"])


def _off(exponent: float, expected: float, tolerance: float) -> bool:
    """Whether a known exponent lies beyond the tolerance."""
    return abs(exponent - expected) > tolerance


def _std_is_off(row: Row, form: Form, tolerance: float) -> bool:
    """Whether the whole interval of an init exponent lies beyond what a form allows and the tolerance."""
    smallest = form.std if np.isnan(form.smallest) else form.smallest
    return bool(row["std_low"] > form.std + tolerance or row["std_high"] < smallest - tolerance)


def findings(
    row: Row, expect: str, tolerance: float, policy: str | None, accepted: Collection[str] = ()
) -> Iterator[AuditFinding]:
    """Everything there is to say of a parameter; of which quantities it is accepted."""
    every = chain(
        _writing_findings(row),
        _grouping_findings(row),
        # what memory held scales like nothing
        _scaling_findings(row, expect, tolerance, accepted) if row["unwritten"] == 0 else (),
        _decay_findings(row, tolerance, policy),
        _epsilon_findings(row, tolerance),
    )
    for finding in every:
        yield as_accepted(finding, accepted)


def as_accepted(finding: AuditFinding, accepted: Collection[str]) -> AuditFinding:
    """A finding, told as accepted where its quantity is."""
    if finding.quantity.name not in accepted:
        return finding
    return replace(finding, verdict=ACCEPTED, advice="This is accepted.", change=None)


def _writing_findings(row: Row) -> Iterator[AuditFinding]:
    if row["unwritten"] > 0:
        yield accuse(
            row,
            "uninitialized",
            "writes",
            cause=f"nothing wrote {row['unwritten']} of its {row['entries']} entries; they hold whatever memory held.",
            advice="Initialize it, or take it out of the model.",
        )
    if row["repeats"] > 1:
        *_, last = row["rules"].split(ARROW)
        yield accuse(
            row,
            "conflict" if row["conflict"] else "repeated",
            "writes",
            cause=f"it was initialized {row['repeats']} times: {row['rules']}"
            + (f"; the last, {last}, won." if row["conflict"] else "."),
            advice="Let one rule write it once." if row["conflict"] else "Call the rule once.",
        )


def _grouping_findings(row: Row) -> Iterator[AuditFinding]:
    if row["groups"] == 0:
        yield accuse(
            row,
            "ungrouped",
            "groups",
            cause="it is in no parameter group of the optimizer, so it is never trained.",
            advice="Add it to a group, or set requires_grad=False if that is meant.",
        )
    if row["groups"] > 1:
        yield accuse(
            row,
            "regrouped",
            "groups",
            cause=f"parameter groups hold it {row['groups']:.0f} times, so a step updates it as often.",
            advice="Keep it in one group, once.",
        )
    if row["groups"] > 0 and not row["update"]:
        yield accuse(
            row,
            "unknown",
            "learning_rate",
            cause=_unknown_step(row),
            advice="Look up how the learning rate of this optimizer should scale; a coordinate check judges it all the "
            "same.",
        )
    elif row["groups"] > 0 and np.isnan(row["lr_exponent"]):
        yield accuse(
            row,
            "unknown",
            "learning_rate",
            cause="its learning rate is zero, so how it scales cannot be seen.",
            advice="Audit the optimizer without a schedule that starts at zero.",
        )


def _unknown_step(row: Row) -> str:
    size = (
        ""
        if np.isnan(row["step_exponent"])
        else (f" At one learning rate and the same gradients its size scales like width^{row['step_exponent']:+.2f}.")
    )
    return (
        "a step of its optimizer is none of Adam's, SGD's, Muon's or Adafactor's, or could not be tried, so how the "
        f"learning rate should scale is not known.{size}"
    )


def _scaling_findings(row: Row, expect: str, tolerance: float, accepted: Collection[str]) -> Iterator[AuditFinding]:
    form = Form(row["expected_std_exponent"], row["expected_lr_exponent"], np.nan, "", row["smallest_std_exponent"])
    std_off = _std_is_off(row, form, tolerance)
    lr_off = row["update"] in RULES and _off(row["lr_exponent"], form.lr, tolerance)
    if std_off and lr_off and row["role"] == "readout" and np.isnan(row["multiplier_exponent"]):
        row = {**row, "multiplier_exponent": 0.0}  # nothing tells of one
    # an accepted number is told by itself; else the one number is named that makes the others right
    meant = (std_off and "init_std" in accepted) or (lr_off and "learning_rate" in accepted)
    if multiplier := _one_multiplier(row, form, expect, tolerance) if (std_off or lr_off) and not meant else None:
        yield _multiplier_finding(row, form, multiplier)
        return
    if (apart := _between_uses(row, expect, tolerance)) is not None:
        yield accuse(
            row,
            "multiplier",
            "multiplier",
            row["readout_multiplier_exponent"],
            row["readout_multiplier_exponent"] + apart,
            cause=f"as a readout its product is multiplied by width^{row['readout_multiplier_exponent']:+.2f}, as an "
            f"embedding by width^{row['multiplier_exponent']:+.2f}; expected a readout {-1.0:+.2f} below.",
            advice=f"Multiply what the readout reads {_times(apart)}.",
            change=Change("multiplier", apart),
        )
    if std_off:
        yield accuse(
            row,
            "init",
            "init_std",
            row["std_exponent"],
            form.std,
            cause=f"its init std scales like width^{row['std_exponent']:+.2f} [{row['std_low']:+.2f}, "
            f"{row['std_high']:+.2f}]; expected {form.std:+.2f} ({_what(row)}). "
            f"Written by {row['rules'] or 'unknown code'}.",
            advice=f"Make its std {_times(form.std - row['std_exponent'])}.",
            change=Change("init_std", form.std - row["std_exponent"]),
        )
    if lr_off:
        change = form.lr - row["lr_exponent"]
        scaled = f"Put it in a parameter group with lr {_times(change)}{_EXAMPLES[row['update']]}."
        grows = abs(row["step_exponent"]) > tolerance
        step = _STEPS.get(row["update"], "").format(row["step_exponent"]) if grows else ""
        yield accuse(
            row,
            "learning_rate",
            "learning_rate",
            row["lr_exponent"],
            form.lr,
            cause=f"its learning rate scales like width^{row['lr_exponent']:+.2f}; expected {form.lr:+.2f} "
            f"({_what(row)}).{step}",
            advice=scaled if abs(form.lr) > tolerance else "Give it the same learning rate at every width.",
            change=Change("learning_rate", change),
        )


_EXAMPLES = {"adam": ", for example mup.MuAdam", "sgd": ", for example mup.MuSGD", "muon": "", "adafactor": ""}
_STEPS = {"muon": " Its steps have an operator norm that grows like width^{:+.2f} with the shape of the matrix."}


def _what(row: Row) -> str:
    """What a parameter is, in words."""
    known = row["used_in"] and row["role"] not in ("vector", "fixed") and abs(row["multiplier_exponent"]) > 1e-6
    read = f" whose product is multiplied by width^{row['multiplier_exponent']:+.2f}" if known else ""
    update = "SGD" if row["update"] == "sgd" else row["update"].capitalize()
    optimizer = f" under an optimizer like {update}" if row["update"] in RULES else ""
    return f"{row['role']} weight{' that is tied' if _is_tied(row) else ''}{read}{optimizer}"


def _one_multiplier(row: Row, form: Form, expect: str, tolerance: float) -> float | None:
    """By which power of width more its product would have to be multiplied, where that alone rights std and rate.

    A readout is usually multiplied by 1/width, everything else by nothing.
    """
    known = row["multiplier_exponent"]
    usual = -1.0 if row["role"] == "readout" else 0.0
    if expect != "mup" or np.isnan(known) or row["role"] in ("vector", "fixed") or _is_tied(row) or known == usual:
        return None
    more = usual - known
    slope = 2 if row["update"] == "sgd" else 1
    smallest = -np.inf if row["role"] == "readout" else form.smallest - more
    changed = Form(form.std - more, form.lr - slope * more, usual, "", smallest)
    rights_lr = row["update"] not in RULES or not _off(row["lr_exponent"], changed.lr, tolerance)
    return more if rights_lr and not _std_is_off(row, changed, tolerance) else None


def _multiplier_finding(row: Row, form: Form, more: float) -> AuditFinding:
    known, usual = row["multiplier_exponent"], row["multiplier_exponent"] + more
    right = f"its init std and learning rate are right for a product that is multiplied by width^{usual:+.2f}"
    if row["class_multiplier_exponent"] == -1.0 and known == 0.0 and row["used_in"]:
        cause = (
            f"it belongs to a readout of the mup package, whose multiplier never runs: its weight is used past it "
            f"({row['used_in']})."
        )
        advice = "Call the readout itself, or multiply what its weight reads by 1 / width_mult."
    elif row["role"] == "readout" and known == 0.0:
        cause = f"{right}, but nothing multiplies ({row['used_in'] or 'as its class tells'})."
        known_rate = not np.isnan(row["lr_exponent"])
        rate = f"its learning rate {_times(form.lr - row['lr_exponent'])} and " if known_rate else ""
        advice = (
            f"Use mup.MuReadout, or multiply its input by 1 / width_mult; or else make {rate}its std no larger than "
            f"width^{form.std:+.2f}."
        )
    else:
        cause = f"its product is multiplied by width^{known:+.2f}; {right}."
        advice = f"Multiply it {_times(more)}."
    return accuse(
        row, "multiplier", "multiplier", known, usual, cause=cause, advice=advice, change=Change("multiplier", more)
    )


def _between_uses(row: Row, expect: str, tolerance: float) -> float | None:
    """What is missing between the multipliers of an embedding and of the readout that shares its weight, in muP."""
    apart = row["multiplier_exponent"] - 1.0 - row["readout_multiplier_exponent"]
    return apart if expect == "mup" and abs(apart) > tolerance else None


# of learning rate times weight decay, by policy: what a step decays is constant (arXiv 2405.13698), or shrinks like
# width^-1/2 (arXiv 2510.15262); "constant" leaves the decay alone, so that the product follows the learning rate
POLICIES = {"independent": 0.0, "width^-1/2": -0.5}


def _decay_findings(row: Row, tolerance: float, policy: str | None) -> Iterator[AuditFinding]:
    """How what a step decays scales with width; published rules differ, so without a chosen one it is a warning."""
    product, decay = row["effective_decay_exponent"], row["decay_exponent"]
    said = (
        f"a step decays it by learning rate x weight decay, which scales like width^{product:+.2f} (learning rate "
        f"{row['lr_exponent']:+.2f}, weight decay {decay:+.2f})"
    )
    if policy == "constant" and _off(decay, 0.0, tolerance):
        change = -decay
        advice = "Give it the same weight decay at every width."
    elif policy in POLICIES and _off(product, POLICIES[policy], tolerance):
        change = POLICIES[policy] - product
        advice = f"Make its weight decay {_times(change)}{', as mup.MuAdamW does' if policy == 'independent' else ''}."
    elif policy is None and _off(product, 0.0, tolerance):
        yield accuse(
            row,
            "decay_policy",
            "weight_decay",
            product,
            0.0,
            cause=f"{said}.",
            advice=f"Whether that is meant is for you to say: decay=constant if it is; decay=independent wants the "
            f"product constant, its weight decay {_times(-product)} as mup.MuAdamW has it.",
        )
        return
    else:
        return
    cause = f"{said}; decay={policy} was chosen. A coordinate check cannot see that."
    quantity = decay if policy == "constant" else product
    yield accuse(
        row,
        "decay",
        "weight_decay",
        quantity,
        quantity + change,
        cause=cause,
        advice=advice,
        change=Change("weight_decay", change),
    )


def _epsilon_findings(row: Row, tolerance: float) -> Iterator[AuditFinding]:
    if row["eps_exponent"] > tolerance:
        yield accuse(
            row,
            "epsilon",
            "epsilon",
            row["eps_exponent"],
            0.0,
            cause=f"its epsilon grows like width^{row['eps_exponent']:+.2f} while gradients shrink with width.",
            advice="Keep epsilon constant and small, or let it shrink like the gradient.",
            change=Change("epsilon", -row["eps_exponent"]),
        )
    grows = row["eps_exponent"] - row["gradient_exponent"] > tolerance
    if row["update"] == "adam" and grows and row["eps"] > SMALL_EPSILON * row["gradient"]:
        yield accuse(
            row,
            "large_epsilon",
            "epsilon",
            row["eps_exponent"],
            row["gradient_exponent"],
            cause=f"its epsilon, {row['eps']:.1g}, is not small beside its gradient: a quarter of the entries is below "
            f"{row['gradient']:.1g} at the largest width audited, like width^{row['gradient_exponent']:+.2f}. "
            f"Steps shrink with it.",
            advice=f"Make epsilon much smaller, for example {min(1e-12, row['gradient'] / 1e4):.0e}.",
        )


def accuse(
    row: Row,
    verdict: str,
    quantity: str,
    exponent: float = np.nan,
    expected: float = np.nan,
    *,
    cause: str,
    advice: str,
    change: Change | None = None,
) -> AuditFinding:
    """A finding about the parameter of a row."""
    looked_at = Quantity(quantity, float(exponent), float(expected))
    return AuditFinding(verdict, row["module"], row["parameter"], cause, advice, looked_at, change)


def _times(exponent: float) -> str:
    """A change of an exponent as what to do with the number."""
    known = {-1.0: "/ width_mult", -0.5: "/ sqrt(width_mult)", 0.5: "* sqrt(width_mult)", 1.0: "* width_mult"}
    nearest = min(known, key=lambda x: abs(x - exponent))
    return known[nearest] if abs(nearest - exponent) < 0.1 else f"* width_mult^{exponent:+.2f}"
