"""The gate of a CI run: a check against a baseline, or against theory alone, in words that CI systems show."""

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd

from coordcheck.baseline import Baseline, compare
from coordcheck.plot import describe_cell
from coordcheck.report import markdown_table, worst_curves
from coordcheck.result import CoordCheck
from coordcheck.storage import write_atomically
from coordcheck.verdict import describe


@dataclass(frozen=True)
class Case:
    """One curve of a gate.

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


@dataclass(frozen=True)
class Gate:
    """What a gate decided.

    Attributes:
        verdict: "pass", "fail" or "inconclusive".
        sentence: Why.
        cases: One for each curve.
        title: What was checked.
        table: What is worth reading, as text; may be empty.
    """

    verdict: str
    sentence: str
    cases: list[Case]
    title: str
    table: pd.DataFrame

    def markdown(self) -> str:
        """For a pull request or a job's summary."""
        lines = [f"## coordcheck: {self.verdict.upper()}", "", self.title, "", self.sentence, ""]
        return "\n".join(lines) + (markdown_table(self.table) + "\n" if len(self.table) else "")

    def write_junit(self, path: Path) -> None:
        """Writes JUnit's XML: a test case for each curve, an undecided one skipped."""
        counts = pd.Series([case.outcome for case in self.cases]).value_counts()
        suite = ElementTree.Element(
            "testsuite",
            name="coordcheck",
            tests=str(len(self.cases)),
            failures=str(counts.get("fail", 0)),
            skipped=str(counts.get("inconclusive", 0)),
            errors="0",
        )
        for case in self.cases:
            element = ElementTree.SubElement(suite, "testcase", classname=f"coordcheck.{case.kind}", name=case.name)
            if case.outcome != "pass":
                tag = "failure" if case.outcome == "fail" else "skipped"
                ElementTree.SubElement(element, tag, message=case.message)
        ElementTree.indent(suite)
        tree = ElementTree.ElementTree(suite)
        write_atomically(path, lambda temporary: tree.write(temporary, encoding="utf-8", xml_declaration=True))


def gate_on_theory(check: CoordCheck) -> Gate:
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
    worth = worst_curves(check, int((check.slopes["verdict"] != "pass").sum()))
    return Gate(check.verdict, check.sentence(), cases, describe_cell(check), worth)


def gate_on_baseline(check: CoordCheck, baseline: Baseline, tolerance: float) -> Gate:
    """Holds a check against stored slopes.

    A curve that regressed fails. Curves that are new or vanished, or changed by more than the tolerance where there
    is only one seed, cannot be compared: the gate is then inconclusive.

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
    worth = table[table["status"] != "same"]
    shown = pd.DataFrame(
        {
            "module": worth["module"],
            "kind": worth["kind"],
            "step": worth["step"].astype(str),
            "status": worth["status"],
            "change": [describe_change(row) for _, row in worth.iterrows()],
        }
    )
    return Gate(verdict, _sentence(table, verdict, baseline, check), cases, describe_cell(check), shown)


def _sentence(table: pd.DataFrame, verdict: str, baseline: Baseline, check: CoordCheck) -> str:
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
    if pd.isna(row["change"]):
        return "no slope, as in the baseline."
    return (
        f"slope {row['before']:+.3f} before, {row['now']:+.3f} now: changed by {row['change']:+.3f} "
        f"[{row['low']:+.3f}, {row['high']:+.3f}]."
    )
