"""What an audit found: expectations beside the measured exponents, verdicts and findings.

Made from the table that :mod:`coordcheck.observe.parameters` measures, without torch. A *fault* changes what is trained
and fails the audit; a *warning* (a parameter written more often than needed, a module in which nothing grows) is
reported and changes no number.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd

from coordcheck.judge.finding import Quantity
from coordcheck.judge.theory import Form, forms
from coordcheck.records.schema import ARROW

AUDIT_FAULTS = ("uninitialized", "ungrouped", "regrouped", "init", "learning_rate", "decay", "epsilon")
UNDECIDED = ("unknown",)
WARNINGS = ("conflict", "repeated", "fixed")
ORDER = (*AUDIT_FAULTS, *UNDECIDED, *WARNINGS)


@dataclass(frozen=True)
class AuditFinding:
    """What an audit says of a parameter.

    Attributes:
        verdict: One of :data:`ORDER`.
        module: That holds the parameter.
        parameter: Its name.
        cause: What was seen, in numbers.
        advice: What to do.
        quantity: What was looked at.
    """

    verdict: str
    module: str
    parameter: str
    cause: str
    advice: str
    quantity: Quantity

    def __str__(self) -> str:
        return f"{self.parameter}: {self.cause} {self.advice}"


@dataclass(frozen=True, eq=False)
class AuditResult:
    """The result of an audit.

    Attributes:
        parameters: One row per parameter, tied ones once, in the model's order, with its verdict.
        findings: What is wrong or worth knowing, worst first.
        verdict: "fail" with any fault, "inconclusive" if a learning rate could not be judged, else "pass".
        expect: Whose exponents were expected.
        widths: At which the model was built.
    """

    parameters: pd.DataFrame
    findings: list[AuditFinding]
    verdict: str
    expect: str
    widths: list[int]

    @classmethod
    def from_parameters(cls, measured: pd.DataFrame, widths: list[int], expect: str, tolerance: float) -> Self:
        """Judges a table as :func:`coordcheck.observe.parameters.measure` returns it.

        Args:
            measured: One row per parameter.
            widths: At which the model was built.
            expect: "mup" or "sp".
            tolerance: How far an exponent may lie from the expected one.
        """
        expected = [_expected_form(row, expect, tolerance) for row in _rows(measured)]
        judged = measured.assign(
            expected_std_exponent=[form.std for form, _ in expected],
            expected_lr_exponent=[form.lr for form, _ in expected],
            assumed_multiplier_exponent=[form.multiplier for form, _ in expected],
            forms=[" or ".join(map(str, all_forms)) for _, all_forms in expected],
            source=[form.source for form, _ in expected],
        )
        found = [finding for row in _rows(judged) for finding in _findings(row, tolerance)]
        found += _fixed_findings(judged)
        found.sort(key=lambda finding: ORDER.index(finding.verdict))
        worst = {finding.parameter: finding.verdict for finding in reversed(found)}
        judged["verdict"] = [worst.get(name, "pass") for name in judged["parameter"]]
        verdicts = {finding.verdict for finding in found}
        verdict = "fail" if verdicts & {*AUDIT_FAULTS} else "inconclusive" if verdicts & {*UNDECIDED} else "pass"
        return cls(judged[COLUMNS], found, verdict, expect, widths)

    def sentence(self) -> str:
        """The verdict in words."""
        total = len(self.parameters)
        at_fault = self.parameters["verdict"].isin(AUDIT_FAULTS).sum()
        warned = self.parameters["verdict"].isin(WARNINGS).sum()
        also = f" {warned} have a warning." if warned else ""
        if self.verdict == "fail":
            return f"FAIL: {at_fault} of {total} parameters are at fault.{also}"
        if self.verdict == "inconclusive":
            unknown = self.parameters["verdict"].isin(UNDECIDED).sum()
            return f"INCONCLUSIVE: the learning rates of {unknown} of {total} parameters cannot be judged.{also}"
        return (
            f"PASS: all {total} parameters are initialized, trained and scale with width as {self.expect} says.{also}"
        )

    def facts(self) -> dict[str, Any]:
        """What ``verdict.json`` keeps of an audit, besides its table; JSON-serializable."""
        return {
            "verdict": self.verdict,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "expect": str(self.expect),
            "widths": self.widths,
        }

    def worst_first(self) -> pd.DataFrame:
        """The rows of ``parameters``, faults first."""
        rank = self.parameters["verdict"].map({name: i for i, name in enumerate(ORDER)}).fillna(len(ORDER))
        return self.parameters.loc[rank.sort_values(kind="stable").index]

    def grouped_findings(self) -> list[tuple[AuditFinding, list[str]]]:
        """Findings that say the same of several parameters, once, with all their names."""
        groups: dict[Any, tuple[AuditFinding, list[str]]] = {}
        for finding in self.findings:
            key = (finding.verdict, finding.advice)
            groups.setdefault(key, (finding, []))[1].append(finding.parameter)
        return list(groups.values())


Row = Mapping[str, Any]
COLUMNS = [
    *("parameter", "role", "tied_to", "writes", "rules", "init_std", "std_exponent", "expected_std_exponent"),
    *("lr_exponent", "expected_lr_exponent", "decay_exponent", "verdict"),
    # beyond those of the public contract
    *("effective_decay_exponent", "eps_exponent", "std_low", "std_high", "fan_in", "fan_out", "std_fan_in", "update"),
    *("multiplier_exponent", "assumed_multiplier_exponent", "forms", "operations", "unwritten", "entries", "repeats"),
    *("conflict", "groups", "shape", "module", "source"),
]


def _rows(frame: pd.DataFrame) -> list[Row]:
    return frame.to_dict("records")  # type: ignore[return-value]


def _expected_form(row: Row, expect: str, tolerance: float) -> tuple[Form, tuple[Form, ...]]:
    """The form that a parameter has, else the usual one; and all that it may have."""
    update = row["update"] if row["update"] in ("adam", "sgd") else "adam"
    allowed = forms(expect, row["role"], update, tied=bool(row["tied_to"]))
    known = tuple(form for form in allowed if form.multiplier == row["multiplier_exponent"])
    candidates = known if known and not row["tied_to"] else allowed

    def fits(form: Form) -> bool:
        return not (_std_is_off(row, form, tolerance) or _off(row["lr_exponent"], form.lr, tolerance))

    return next(filter(fits, candidates), candidates[0]), candidates


def _off(exponent: float, expected: float, tolerance: float) -> bool:
    """Whether a known exponent lies beyond the tolerance."""
    return abs(exponent - expected) > tolerance


def _std_is_off(row: Row, form: Form, tolerance: float) -> bool:
    """Whether the whole interval of an init exponent lies beyond the tolerance.

    A vector, and a readout under a known multiplier, may also start smaller than it must, as it may start at zero.
    """
    may_vanish = row["role"] in ("vector", "fixed") or not np.isnan(row["multiplier_exponent"])
    below = row["std_high"] < form.std - tolerance
    return bool(row["std_low"] > form.std + tolerance or (below and not may_vanish))


def _findings(row: Row, tolerance: float) -> Iterator[AuditFinding]:
    """Everything there is to say of a parameter."""
    yield from _writing_findings(row)
    yield from _grouping_findings(row)
    yield from _scaling_findings(row, tolerance)
    yield from _decay_findings(row, tolerance)


def _writing_findings(row: Row) -> Iterator[AuditFinding]:
    if row["unwritten"] > 0:
        yield _finding(
            row,
            "uninitialized",
            "writes",
            cause=f"nothing wrote {row['unwritten']} of its {row['entries']} entries; they hold whatever memory held.",
            advice="Initialize it, or take it out of the model.",
        )
    if row["repeats"] > 1:
        *_, last = row["rules"].split(ARROW)
        yield _finding(
            row,
            "conflict" if row["conflict"] else "repeated",
            "writes",
            cause=f"it was initialized {row['repeats']} times: {row['rules']}"
            + (f"; the last, {last}, won." if row["conflict"] else "."),
            advice="Let one rule write it once." if row["conflict"] else "Call the rule once.",
        )


def _grouping_findings(row: Row) -> Iterator[AuditFinding]:
    if row["groups"] == 0:
        yield _finding(
            row,
            "ungrouped",
            "groups",
            cause="it is in no parameter group of the optimizer, so it is never trained.",
            advice="Add it to a group, or set requires_grad=False if that is meant.",
        )
    if row["groups"] > 1:
        yield _finding(
            row,
            "regrouped",
            "groups",
            cause=f"parameter groups hold it {row['groups']:.0f} times, so a step updates it as often.",
            advice="Keep it in one group, once.",
        )
    if row["groups"] > 0 and not row["update"]:
        yield _finding(
            row,
            "unknown",
            "learning_rate",
            cause="a step of its optimizer is neither of one size nor proportional to the gradient alone, or could "
            "not be tried, so how the learning rate should scale is not known.",
            advice="Look up the rule of this optimizer; a coordinate check judges it all the same.",
        )
    elif row["groups"] > 0 and np.isnan(row["lr_exponent"]):
        yield _finding(
            row,
            "unknown",
            "learning_rate",
            cause="its learning rate is zero, so how it scales cannot be seen.",
            advice="Audit the optimizer without a schedule that starts at zero.",
        )


def _scaling_findings(row: Row, tolerance: float) -> Iterator[AuditFinding]:
    form = Form(row["expected_std_exponent"], row["expected_lr_exponent"], np.nan, "")
    optimizer = f" under an optimizer like {row['update'].capitalize()}" if row["update"] else ""
    weight = f"{row['role']} weight{' that is tied' if row['tied_to'] else ''}{optimizer}"
    if _std_is_off(row, form, tolerance):
        yield _finding(
            row,
            "init",
            "init_std",
            row["std_exponent"],
            form.std,
            cause=f"its init std scales like width^{row['std_exponent']:+.2f} [{row['std_low']:+.2f}, "
            f"{row['std_high']:+.2f}]; expected {form.std:+.2f} ({weight}). "
            f"Written by {row['rules'] or 'unknown code'}.",
            advice=f"Make its std {_times(form.std - row['std_exponent'])}.",
        )
    if row["update"] and _off(row["lr_exponent"], form.lr, tolerance):
        example = {"adam": "mup.MuAdam", "sgd": "mup.MuSGD"}[row["update"]]
        scaled = f"Put it in a parameter group with lr {_times(form.lr - row['lr_exponent'])}, for example {example}."
        yield _finding(
            row,
            "learning_rate",
            "learning_rate",
            row["lr_exponent"],
            form.lr,
            cause=f"its learning rate scales like width^{row['lr_exponent']:+.2f}; expected {form.lr:+.2f} ({weight}).",
            advice=scaled if form.lr else "Give it the same learning rate at every width.",
        )


def _decay_findings(row: Row, tolerance: float) -> Iterator[AuditFinding]:
    if _off(row["effective_decay_exponent"], 0.0, tolerance):
        yield _finding(
            row,
            "decay",
            "weight_decay",
            row["effective_decay_exponent"],
            0.0,
            cause=f"a step decays it by learning rate x weight decay, which scales like "
            f"width^{row['effective_decay_exponent']:+.2f} (learning rate {row['lr_exponent']:+.2f}, weight decay "
            f"{row['decay_exponent']:+.2f}); a coordinate check cannot see that.",
            advice=f"Make its weight decay {_times(-row['effective_decay_exponent'])}, as mup.MuAdamW does.",
        )
    if row["eps_exponent"] > tolerance:
        yield _finding(
            row,
            "epsilon",
            "epsilon",
            row["eps_exponent"],
            0.0,
            cause=f"its epsilon grows like width^{row['eps_exponent']:+.2f} while gradients shrink with width.",
            advice="Keep epsilon constant and small, or let it shrink like the gradient.",
        )


def _fixed_findings(judged: pd.DataFrame) -> Iterator[AuditFinding]:
    """A warning for each module in which nothing grows with width, unless its parent is such a module."""
    names = {name: row for row in _rows(judged) for name in [row["parameter"], *_names(row["tied_to"])]}
    modules = {name[:end] for name in names for end in range(len(name)) if name[end] == "."}
    inside = {m: [row for name, row in names.items() if name.startswith(f"{m}.")] for m in modules}
    fixed = {m for m, rows in inside.items() if all(row["role"] == "fixed" for row in rows)}
    for module in sorted(m for m in fixed if m.rpartition(".")[0] not in fixed):
        first = inside[module][0]
        yield _finding(
            first,
            "fixed",
            "shape",
            cause=f"nothing in {module} grows with width: {len(inside[module])} parameters, the first of shape "
            f"({first['shape']}) at every width.",
            advice="Let the width reach it, unless it is meant to be the same at every width.",
        )


def _names(tied_to: str) -> list[str]:
    return tied_to.split(", ") if tied_to else []


def _finding(
    row: Row,
    verdict: str,
    quantity: str,
    exponent: float = np.nan,
    expected: float = np.nan,
    *,
    cause: str,
    advice: str,
) -> AuditFinding:
    looked_at = Quantity(quantity, float(exponent), float(expected))
    return AuditFinding(verdict, row["module"], row["parameter"], cause, advice, looked_at)


def _times(exponent: float) -> str:
    """A change of an exponent as what to do with the number."""
    known = {-1.0: "/ width_mult", -0.5: "/ sqrt(width_mult)", 0.5: "* sqrt(width_mult)", 1.0: "* width_mult"}
    nearest = min(known, key=lambda x: abs(x - exponent))
    return known[nearest] if abs(nearest - exponent) < 0.1 else f"* width_mult^{exponent:+.2f}"
