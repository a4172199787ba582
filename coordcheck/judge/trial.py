"""Advice that was tried: what a check says of the model once it is changed as findings say.

A trial is cheap: a few runs at the three narrowest widths. All changes are made together first, since a model in
standard parametrization passes with all of them and with none alone. Where something is still at fault then, each
finding that is still told is tried alone before its advice is withdrawn. Who trains is above; this decides what is
tried, and what it shows. Without torch.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any

from coordcheck.judge.audit import AuditResult
from coordcheck.judge.cure import POWERS, CureTable, Entry, Exponents, cure_of, rounded, times
from coordcheck.judge.finding import Finding

if TYPE_CHECKING:
    from coordcheck.judge.judgement import Judgement

NAMED = 3  # findings that are tried alone, at most


@dataclass(frozen=True)
class Trial:
    """What a change showed.

    Attributes:
        fault: Of the finding whose advice it is.
        module: Of the same.
        parameters: Of the same.
        change: What was done, in words.
        others: Findings whose changes were made with it.
        helped: Whether the finding is gone.
        verdict: Of the check with the change.
        undecided: Curves of that check.
        widths: Of that check.
        runs: Of that check.
    """

    fault: str
    module: str
    parameters: tuple[str, ...]
    change: str
    others: int
    helped: bool
    verdict: str
    undecided: int
    widths: tuple[int, ...]
    runs: int

    def __str__(self) -> str:
        if not self.helped:
            return f"Tried: {self.change} does not help, so that is not the advice."
        change = "this change"
        if self.others:
            change += f" and {'that' if self.others == 1 else 'those'} of the other findings"
        if self.verdict == "pass":
            return f"Tried: with {change} the check passes."
        if self.verdict == "inconclusive":
            curves = f"{self.undecided} curve{'s' * (self.undecided != 1)}"
            runs = f"{self.runs} runs at widths {', '.join(map(str, self.widths))}"
            return f"Tried: with {change} nothing is at fault; {runs} leave {curves} undecided."
        return f"Tried: with {change} this is mended, and something else is at fault."

    def facts(self) -> dict[str, Any]:
        """What ``verdict.json`` keeps."""
        return asdict(self)

    @classmethod
    def of_facts(cls, row: dict[str, Any]) -> "Trial":
        """From what :meth:`facts` returned."""
        return cls(**{**row, "parameters": tuple(row["parameters"]), "widths": tuple(row["widths"])})


def told(findings: Sequence[Finding], trials: Collection[Trial]) -> list[Finding]:
    """Findings with what their trials showed; advice that did not help is not given."""
    by_finding = {(trial.fault, trial.module, trial.parameters): trial for trial in trials}

    def with_trial(finding: Finding) -> Finding:
        trial = by_finding.get((finding.fault, finding.module, finding.parameters))
        if trial is None:
            return finding
        kept = finding if trial.helped else replace(finding, advice="", change=None)
        return replace(kept, tried=str(trial))

    return [with_trial(finding) for finding in findings]


def trials_of(
    findings: Sequence[Finding],
    audit: AuditResult | None,
    widths: Sequence[int],
    check_with: "Callable[[CureTable], Judgement]",
) -> list[Trial]:
    """Tries what findings advise where that is a number.

    Args:
        findings: Of a check that fails.
        audit: Of the same; without one nothing is tried.
        widths: Of a trial; at the narrowest a change changes nothing.
        check_with: From a table of changes to a check of the model with them.

    Returns:
        A trial for each finding that was tried.
    """
    tables = [] if audit is None else [(f, table_of(f, audit, min(widths))) for f in findings if f.fault]
    tables = [(finding, table) for finding, table in tables if table]
    if not tables:
        return []
    apart: list[CureTable] = []
    for _, table in tables:
        if table not in apart:  # that epsilon is too large may show in several places
            apart.append(table)
    together = check_with(reduce(CureTable.plus, apart))
    trials = []
    alone = 0
    for finding, table in tables:
        others, seen = len(tables) - 1, together
        if others and not _is_gone(finding, findings, together):
            if alone == NAMED:
                continue
            alone += 1
            others, seen = 0, check_with(table)
        trials.append(
            Trial(
                finding.fault,
                finding.module,
                finding.parameters,
                _words(table),
                others,
                _is_gone(finding, findings, seen),
                seen.verdict,
                int((seen.slopes["verdict"] == "inconclusive").sum()),
                tuple(widths),
                len(seen.records[["width", "seed"]].drop_duplicates()),
            )
        )
    return trials


def table_of(finding: Finding, audit: AuditResult, base_width: int) -> CureTable:
    """What a finding advises, as a table; an empty one where that is no number."""
    change = finding.change
    if change is None:
        meant = [known for known in audit.findings if known.verdict == "large_epsilon" and finding.fault == "epsilon"]
    else:
        same = (f for f in audit.findings if f.change is not None and f.change.quantity == change.quantity)
        meant = [known for known in same if known.parameter in finding.parameters]
    table = cure_of(replace(audit, findings=meant), base_width)
    if table or change is None or change.quantity not in POWERS:
        return table
    powers = Exponents(**{POWERS[change.quantity]: rounded(change.exponent)})
    roles = audit.parameters.set_index("parameter")["role"]
    return CureTable(base_width, (Entry(finding.parameters, str(roles.get(finding.parameters[0], "")), powers),))


def _words(table: CureTable) -> str:
    """The changes of a table, without what they are made to."""
    changes = [str(entry.exponents) for entry in table.entries]
    changes += [f"what {module} reads {times(power)}" for module, power in (table.multipliers or {}).items()]
    return "; ".join(dict.fromkeys(changes))


def _is_gone(finding: Finding, before: Sequence[Finding], seen: "Judgement") -> bool:
    """Whether a changed model no longer has a fault, nor another one in the same place that it did not have before."""
    if seen.verdict != "fail":
        return True
    mine = _places(finding)
    known = {(other.fault, place) for other in before for place in _places(other)}
    known -= {(finding.fault, place) for place in mine}
    left = {(other.fault, place) for other in seen.findings if other.fault for place in _places(other) & mine}
    return not left - known


def _places(finding: Finding) -> set[str]:
    return {*finding.parameters} or {finding.module}
