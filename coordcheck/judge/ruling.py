"""What the gate of a CI run decides: a check held against a baseline, or against theory alone."""

from dataclasses import dataclass

import pandas as pd

from coordcheck.judge.baseline import Baseline, compare
from coordcheck.judge.finding import describe
from coordcheck.judge.judgement import Judgement


@dataclass(frozen=True)
class Case:
    """One curve that was ruled on.

    Attributes:
        name: Module and step.
        kind: Of the curve.
        outcome: "pass", "fail" or "inconclusive".
        message: What was seen.
    """

    name: str
    kind: str
    outcome: str
    message: str


@dataclass(frozen=True, eq=False)
class Ruling:
    """What the gate decided.

    Attributes:
        verdict: "pass", "fail" or "inconclusive".
        sentence: Why.
        cases: One for each curve.
        judgement: What was ruled on.
        changes: Each curve beside the same one of the baseline, see :func:`coordcheck.judge.baseline.compare`; None
            where theory decided alone.
    """

    verdict: str
    sentence: str
    cases: list[Case]
    judgement: Judgement
    changes: pd.DataFrame | None = None

    @property
    def theory(self) -> str:
        """What theory says where a baseline decided; empty where theory itself did."""
        return "" if self.changes is None else f"Theory, without the baseline: {self.judgement.sentence()}"


def rule_by_theory(check: Judgement) -> Ruling:
    """Holds a check against what theory expects, as its own verdict does."""
    cases = [
        Case(
            name=f"{row['module']}, step {row['step']}",
            kind=row["kind"],
            outcome={"pass": "pass", "inconclusive": "inconclusive"}.get(row["verdict"], "fail"),
            message=f"{row['verdict']}: {describe(row)}",
        )
        for _, row in check.slopes.iterrows()
    ]
    return Ruling(check.verdict, check.sentence(), cases, check)


def rule_by_baseline(check: Judgement, baseline: Baseline, tolerance: float) -> Ruling:
    """Holds a check against stored slopes.

    A curve that regressed fails. Curves that are new or vanished, or changed by more than the tolerance where there
    is only one seed, cannot be compared: the ruling is then inconclusive.

    Raises:
        ValueError: if the baseline is of another configuration or corpus.
    """
    table = compare(check, baseline, tolerance, check.gate.confidence)
    outcomes = {"regressed": "fail", "same": "pass"}
    cases = [
        Case(
            name=f"{row['module']}, step {row['step']}",
            kind=row["kind"],
            outcome=outcomes.get(row["status"], "inconclusive"),
            message=describe_change(row),
        )
        for _, row in table.iterrows()
    ]
    decided = {case.outcome for case in cases}
    verdict = next(v for v in ("fail", "inconclusive", "pass") if v in decided)
    return Ruling(verdict, _sentence(table, verdict, baseline, check), cases, check, table)


def _sentence(table: pd.DataFrame, verdict: str, baseline: Baseline, check: Judgement) -> str:
    counts = table["status"].value_counts()
    moved = sorted(
        name
        for name in baseline.versions.keys() | check.versions.keys()
        if baseline.versions.get(name) != check.versions.get(name)
    )
    versions = "".join(f" {name} is {check.versions.get(name)}, was {baseline.versions.get(name)}." for name in moved)
    if verdict == "fail":
        worst = table.iloc[0]
        what = f"{worst['module']}, {worst['kind']}, step {worst['step']}: {describe_change(worst)}"
        return f"FAIL: {counts['regressed']} of {len(table)} curves changed how they scale. {what}{versions}"
    if "undecided" in counts:
        worst = table.iloc[0]
        what = f"{worst['module']}, {worst['kind']}, step {worst['step']}: {describe_change(worst)}"
        if worst["note"]:
            return f"INCONCLUSIVE: {counts['undecided']} of {len(table)} curves cannot be compared. {what}{versions}"
        return (
            f"INCONCLUSIVE: {counts['undecided']} of {len(table)} curves changed, but one seed says nothing of noise; "
            f"use at least 2, better 5, and write a new baseline with --update. {what}{versions}"
        )
    if verdict == "inconclusive":
        names = ", ".join(dict.fromkeys(table[table["status"].isin(("new", "vanished"))]["module"]))
        return (
            f"INCONCLUSIVE: {counts.get('new', 0)} curves are new and {counts.get('vanished', 0)} vanished ({names}); "
            f"write a new baseline with --update if that is meant.{versions}"
        )
    return f"PASS: all {len(table)} curves scale as in the baseline.{versions}"


def describe_change(row: pd.Series) -> str:
    """What became of a curve since the baseline."""
    if row["status"] in ("new", "vanished"):
        return f"{row['status']}: {'not in the baseline' if row['status'] == 'new' else 'only in the baseline'}."
    if row["note"]:
        return f"{row['note']}."
    return (
        f"slope {row['before']:+.3f} before, {row['now']:+.3f} now: changed by {row['change']:+.3f} "
        f"[{row['low']:+.3f}, {row['high']:+.3f}]."
    )
