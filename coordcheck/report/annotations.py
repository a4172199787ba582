"""Findings where code is reviewed: annotations of GitHub, and the code-quality report of GitLab."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from coordcheck.judge.audit import AUDIT_FAULTS, AuditResult
from coordcheck.judge.audit_findings import ACCEPTED
from coordcheck.judge.ruling import Ruling
from coordcheck.records.names import one_line
from coordcheck.report.places import Place, place_of

MOST = 10  # that GitHub shows of one step


class Annotation(NamedTuple):
    """A sentence at a line of source.

    Attributes:
        place: None where no line could be found.
        fails: Whether it fails the check.
        rule: The class of fault.
        about: What it is about, which no edit elsewhere changes.
        text: The sentence.
    """

    place: Place | None
    fails: bool
    rule: str
    about: str
    text: str


def of_ruling(ruling: Ruling) -> list[Annotation]:
    """What a gate says that does not pass: the check's findings, or its own sentence where there is none."""
    if ruling.verdict == "pass":
        return []
    check, fails = ruling.judgement, ruling.verdict == "fail"
    functions, parameters = functions_of(check.config), None if check.audit is None else check.audit.parameters
    found = [
        Annotation(
            place_of(finding.fault, finding.parameter, parameters, functions),
            fails,
            finding.fault,
            finding.parameter or finding.module,
            str(finding),
        )
        for finding in check.findings
        if finding.fault
    ]
    if ruling.changes is None and found:
        return found
    whole = Annotation(place_of("", None, None, functions), fails, "changed", check.cell(), ruling.sentence)
    return [whole, *found]


def of_audit(audit: AuditResult, functions: Mapping[str, str]) -> list[Annotation]:
    """What an audit found, the same of several parameters once; what was accepted is left out."""
    return [
        Annotation(
            place_of(finding.quantity.name, finding.parameter, audit.parameters, functions),
            finding.verdict in AUDIT_FAULTS,
            finding.verdict,
            finding.parameter,
            f"{finding}{f' The same holds for {len(names) - 1} more.' if len(names) > 1 else ''}",
        )
        for finding, names in audit.grouped_findings()
        if finding.verdict != ACCEPTED
    ]


def functions_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The user's functions that a check's configuration names."""
    model = config.get("model")
    names = model if isinstance(model, Mapping) else {}
    return {name: str(names[name]) for name in ("build", "optimizer") if names.get(name)}


def github(annotations: Sequence[Annotation]) -> str:
    """Lines for the log of a GitHub workflow, which shows them in the pull request.

    Source: docs.github.com, "Workflow commands for GitHub Actions"; what is escaped: actions/toolkit, command.ts.
    """
    return "".join(f"{_command(annotation)}\n" for annotation in annotations[:MOST])


def _command(annotation: Annotation) -> str:
    where = {} if annotation.place is None else {"file": annotation.place.path, "line": str(annotation.place.line)}
    properties = {**where, "title": f"coordcheck: {annotation.rule}"}
    said = ",".join(f"{name}={_escaped(value, ':,')}" for name, value in properties.items())
    return f"::{'error' if annotation.fails else 'warning'} {said}::{_escaped(one_line(annotation.text))}"


def _escaped(text: str, more: str = "") -> str:
    return "".join(f"%{ord(c):02X}" if c in f"%\r\n{more}" else c for c in text)


def code_quality(annotations: Sequence[Annotation]) -> str:
    """A code-quality report of GitLab, JSON; what has no line is at the repository's root.

    Source: docs.gitlab.com, "Code Quality", "Code Quality report format".
    """
    rows = [
        {
            "description": one_line(each.text),
            "check_name": f"coordcheck-{each.rule}",
            "fingerprint": hashlib.sha256(
                json.dumps([each.place and each.place.path, *each[2:4]]).encode()
            ).hexdigest(),
            "severity": "major" if each.fails else "minor",
            "location": {
                "path": "." if each.place is None else each.place.path,
                "lines": {"begin": 1 if each.place is None else each.place.line},
            },
        }
        for each in annotations
    ]
    return json.dumps(rows, indent=2) + "\n"
