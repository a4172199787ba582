"""What an audit found: expectations beside the measured exponents, verdicts and findings.

Made from the table that :mod:`coordcheck.observe.parameters` measures, without torch. A *fault* changes what is trained
and fails the audit; a *warning* (a parameter written more often than needed, a module in which nothing grows) is
reported and changes no number.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd

from coordcheck.config.accept import QUANTITIES, accepted_quantities, entries
from coordcheck.judge.audit_findings import ACCEPTED, AuditFinding, Row, accuse, as_accepted, expected_form, findings

AUDIT_FAULTS = (
    *("uninitialized", "ungrouped", "regrouped", "multiplier", "init", "learning_rate", "decay", "epsilon", "width"),
)
UNDECIDED = ("unknown",)
WARNINGS = ("decay_policy", "large_epsilon", "conflict", "repeated", "fixed")
ORDER = (*AUDIT_FAULTS, *UNDECIDED, *WARNINGS, ACCEPTED)


@dataclass(frozen=True, eq=False)
class AuditResult:
    """The result of an audit.

    Attributes:
        parameters: One row per parameter, tied ones once, in the model's order, with its verdict.
        findings: What is wrong or worth knowing, worst first.
        verdict: "fail" with any fault, "inconclusive" if a learning rate could not be judged, else "pass".
        expect: Whose exponents were expected.
        widths: At which the model was built.
        accept: Deviations that are meant, "PARAMETER: QUANTITY"; their findings have the verdict "accepted".
    """

    parameters: pd.DataFrame
    findings: list[AuditFinding]
    verdict: str
    expect: str
    widths: list[int]
    accept: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def from_parameters(
        cls,
        measured: pd.DataFrame,
        widths: list[int],
        expect: str,
        tolerance: float,
        policy: str | None = None,
        accept: Sequence[str] = (),
    ) -> Self:
        """Judges a table as :func:`coordcheck.observe.parameters.measure` returns it.

        Args:
            measured: One row per parameter.
            widths: At which the model was built.
            expect: Whose exponents to expect, for example "mup".
            tolerance: How far an exponent may lie from the expected one.
            policy: How learning rate times weight decay should scale: "independent", "width^-1/2", "constant" (the
                decay itself), "off"; None warns where the product scales.
            accept: Deviations that are meant, "PARAMETER: QUANTITY".

        Raises:
            ValueError: if `accept` names what is not there.
        """
        measured = measured.assign(**{name: value for name, value in UNREAD.items() if name not in measured})
        expected = [expected_form(row, expect, tolerance) for row in _rows(measured)]
        judged = measured.assign(
            expected_std_exponent=[form.std for form, _ in expected],
            expected_lr_exponent=[form.lr for form, _ in expected],
            assumed_multiplier_exponent=[form.multiplier for form, _ in expected],
            forms=[" or ".join(map(str, all_forms)) for _, all_forms in expected],
            smallest_std_exponent=[form.std if np.isnan(form.smallest) else form.smallest for form, _ in expected],
            source=[form.source for form, _ in expected],
        )
        names = {row["parameter"]: [row["parameter"], *_names(row["tied_to"])] for row in _rows(judged)}
        meant = accepted_quantities(accept, names)
        found = [
            finding
            for row in _rows(judged)
            for finding in findings(row, expect, tolerance, policy, meant[row["parameter"]])
        ]
        found += [as_accepted(finding, meant[finding.parameter]) for finding in _fixed_findings(judged)]
        told = {finding.parameter for finding in found if finding.verdict in AUDIT_FAULTS}
        uneven = (finding for finding in _uneven_findings(judged) if finding.parameter not in told)
        found += [as_accepted(finding, meant[finding.parameter]) for finding in uneven]
        found.sort(key=lambda finding: ORDER.index(finding.verdict))
        worst = {finding.parameter: finding.verdict for finding in reversed(found)}
        judged["verdict"] = [worst.get(name, "pass") for name in judged["parameter"]]
        verdicts = {finding.verdict for finding in found}
        verdict = "fail" if verdicts & {*AUDIT_FAULTS} else "inconclusive" if verdicts & {*UNDECIDED} else "pass"
        return cls(judged[COLUMNS], found, verdict, expect, widths, list(accept))

    def sentence(self) -> str:
        """The verdict in words."""
        total = len(self.parameters)
        at_fault = self.parameters["verdict"].isin(AUDIT_FAULTS).sum()
        warned = self.parameters["verdict"].isin(WARNINGS).sum()
        also = (f" {warned} have a warning." if warned else "") + self.accepted_sentence()
        if self.verdict == "fail":
            return f"FAIL: {at_fault} of {total} parameters are at fault.{also}"
        if self.verdict == "inconclusive":
            unknown = self.parameters["verdict"].isin(UNDECIDED).sum()
            return f"INCONCLUSIVE: the learning rates of {unknown} of {total} parameters cannot be judged.{also}"
        return (
            f"PASS: all {total} parameters are initialized, trained and scale with width as {self.expect} says"
            f"{', but for what is accepted' if self.accepted else ''}.{also}"
        )

    @property
    def accepted(self) -> list[AuditFinding]:
        """Deviations that are there and accepted."""
        return [finding for finding in self.findings if finding.verdict == ACCEPTED]

    def accepted_sentence(self) -> str:
        """What was accepted, and which entry accepts nothing since nothing deviates; begun with a space, or empty."""
        if not self.accept:
            return ""
        there = [(finding.parameter, finding.quantity.name) for finding in self.accepted]
        tied = dict(zip(self.parameters["parameter"], self.parameters["tied_to"], strict=True))
        idle = [
            text
            for text, entry in zip(self.accept, entries(self.accept), strict=True)
            if not any(
                entry.names([name, *_names(tied[name])]) and QUANTITIES[entry.word] == quantity
                for name, quantity in there
            )
        ]
        used = [text for text in self.accept if text not in idle]
        said = f" Accepted: {', '.join(used)}." if used else ""
        return said + (f" Accepted, but nothing deviates: {', '.join(idle)}." if idle else "")

    def facts(self) -> dict[str, Any]:
        """What ``verdict.json`` keeps of an audit, besides its table; JSON-serializable."""
        return {
            "verdict": self.verdict,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "expect": str(self.expect),
            "widths": self.widths,
        }

    def roles(self) -> dict[str, str]:
        """The roles of parameters whose uses were read, by each of their names but for tied ones."""
        read = self.parameters[(self.parameters["used_in"] != "") & (self.parameters["tied_to"] == "")]
        return dict(zip(read["parameter"], read["role"], strict=True))

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


# what stands for a use that was not read
UNREAD: dict[str, Any] = {
    "used_in": "",
    "readout_used_in": "",
    "trained": True,
    "returned": False,
    "step_exponent": 0.0,
    **dict.fromkeys(("readout_multiplier_exponent", "class_multiplier_exponent", "after_exponent"), np.nan),
    **dict.fromkeys(("gradient", "gradient_exponent", "eps"), np.nan),
}
COLUMNS = [
    *("parameter", "role", "tied_to", "writes", "rules", "init_std", "std_exponent", "expected_std_exponent"),
    *("lr_exponent", "expected_lr_exponent", "decay_exponent", "verdict"),
    # beyond those of the public contract
    *("effective_decay_exponent", "eps_exponent", "std_low", "std_high", "fan_in", "fan_out", "std_fan_in", "update"),
    *("multiplier_exponent", "assumed_multiplier_exponent", "forms", "operations", "unwritten", "entries", "repeats"),
    *("conflict", "groups", "shape", "module", "source", "used_in", "trained", "step_exponent"),
    *("readout_multiplier_exponent", "readout_used_in", "class_multiplier_exponent", "smallest_std_exponent"),
    *("after_exponent", "returned", "gradient", "gradient_exponent", "eps"),
]


def _rows(frame: pd.DataFrame) -> list[Row]:
    return frame.to_dict("records")  # type: ignore[return-value]


def _fixed_findings(judged: pd.DataFrame) -> Iterator[AuditFinding]:
    """A warning for each module in which nothing grows with width, unless its parent is such a module."""
    names = {name: row for row in _rows(judged) for name in [row["parameter"], *_names(row["tied_to"])]}
    modules = {name[:end] for name in names for end in range(len(name)) if name[end] == "."}
    inside = {m: [row for name, row in names.items() if name.startswith(f"{m}.")] for m in modules}
    fixed = {m for m, rows in inside.items() if all(row["role"] == "fixed" for row in rows)}
    for module in sorted(m for m in fixed if m.rpartition(".")[0] not in fixed):
        first = inside[module][0]
        yield accuse(
            first,
            "fixed",
            "shape",
            cause=f"nothing in {module} grows with width: {len(inside[module])} parameters, the first of shape "
            f"({first['shape']}) at every width.",
            advice="Let the width reach it, unless it is meant to be the same at every width.",
        )


def _uneven_findings(judged: pd.DataFrame) -> Iterator[AuditFinding]:
    """Layers whose output has one size at every width, although that of their counterparts in other blocks grows.

    Only where the block reads it again itself, by a weight whose counterparts read what grows: a code of fixed size, or
    logits, leave the block that makes them.
    """
    roles = dict(zip(judged["parameter"], judged["role"], strict=True))
    for row in _rows(judged[(judged["role"] == "projection") & judged["trained"]]):
        for block, rest in _blocks(row["parameter"]):
            mine = [name for name in roles if name.startswith((f"{block}.", f"{block}_"))]
            inside = {name[len(block) + 1 :]: roles[name] for name in mine}
            reads = [name for name, role in inside.items() if role == "input" and _grown(block, name, roles)]
            peers = _grown(block, rest, roles)
            if peers and reads:
                yield accuse(
                    row,
                    "width",
                    "shape",
                    cause=f"its output has {row['fan_out']:.0f} entries at every width, but that of {peers[0]} grows.",
                    advice="Let the width reach this size, as in the other layers.",
                )
                break


def _blocks(name: str) -> Iterator[tuple[str, str]]:
    """The numbered blocks that hold a parameter's module, each with the rest of its name.

    "blocks.1" as torch has them, "blocks_1" as flax has them, in whose flat names "block_1_up.kernel" is one more.
    """
    for number in re.finditer(r"(?<=[._])\d+(?=[._])", name):
        rest = name[number.end() + 1 :]
        if "." in rest:
            yield name[: number.end()], rest


def _grown(block: str, rest: str, roles: Mapping[str, str]) -> list[str]:
    """The counterparts of a parameter in other blocks that grow in both dimensions."""
    siblings = re.compile(re.escape(block.rstrip("0123456789")) + r"\d+[._]" + re.escape(rest))
    return [name for name, role in roles.items() if role == "hidden" and siblings.fullmatch(name)]


def _names(tied_to: str) -> list[str]:
    return tied_to.split(", ") if tied_to else []
