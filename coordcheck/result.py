"""What a check and an audit give their users: data that can write itself, draw itself and be read back.

The data alone is in :mod:`coordcheck.judge`; here it meets files and pictures. Without torch.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from coordcheck.config.load import default_gate, gate_from
from coordcheck.config.rules import member
from coordcheck.config.schema import Expect, GateConfig
from coordcheck.judge.audit import COLUMNS, AuditResult
from coordcheck.judge.control import Control
from coordcheck.judge.judgement import Judgement
from coordcheck.judge.trial import Trial
from coordcheck.records.files import (
    ALIGNMENTS,
    AUDIT_PICTURE,
    AUDIT_TABLE,
    AUDIT_TEXT,
    RECORDS,
    REPORT_PAGE,
    REPORT_PICTURE,
    REPORT_TEXT,
    SLOPES,
    VERDICT,
    write_atomically,
    write_text,
)
from coordcheck.records.lock import locked
from coordcheck.records.merge import read_records
from coordcheck.records.mup_format import to_mup
from coordcheck.records.verdict import AGAIN, AUDIT_AGAIN, JUDGED, read_audit_table, read_verdict, sha256

NOTEBOOK_DOTS = 80  # an inch, of the picture in a notebook
PATIENCE = 60.0  # seconds to wait for another process that saves to the same directory


class Audit(AuditResult):
    """The result of an audit: ``parameters``, ``findings`` and ``verdict``, see :class:`AuditResult`."""

    def __repr__(self) -> str:
        first = f"\n{self.findings[0]}" if self.findings else ""
        return f"{self.sentence()}{first}"

    def plot(self, path: str | Path) -> None:
        """Writes the picture of the audit, a PNG: exponents of init std and learning rate beside the expected ones."""
        from coordcheck.report.figures.audit import audit_figure
        from coordcheck.report.figures.style import save_figure

        save_figure(audit_figure(self), Path(path), {"widths": self.widths, "expect": self.expect})

    def save(self, directory: str | Path) -> None:
        """Writes ``audit.csv audit.md audit.png``, each atomically."""
        with locked(Path(directory), PATIENCE):
            self.save_text(directory)
            self.plot(Path(directory) / AUDIT_PICTURE)

    def save_text(self, directory: str | Path) -> None:
        """Writes ``audit.csv audit.md``, each atomically."""
        from coordcheck.report.markdown import audit_markdown

        with locked(Path(directory), PATIENCE):
            write_text(Path(directory) / AUDIT_TABLE, _table_of(self))
            write_text(Path(directory) / AUDIT_TEXT, audit_markdown(self))


class CoordCheck(Judgement):
    """The result of a check: ``verdict``, ``findings``, ``records``, ``slopes``, ``audit``, see :class:`Judgement`."""

    audit: Audit | None

    def __repr__(self) -> str:
        return "\n".join(filter(None, [self.cell(), self.sentence(), str(self.control), self.rerun_sentence()]))

    def _repr_html_(self) -> str:
        """What a notebook shows: the verdict, the findings, the control and the picture, which is drawn only here."""
        from coordcheck.report.figures.check import report_figure
        from coordcheck.report.figures.style import write_png
        from coordcheck.report.notebook import check_html

        picture = BytesIO()
        write_png(report_figure(self), picture, self.config, NOTEBOOK_DOTS)
        return check_html(self, picture.getvalue())

    def plot(self, path: str | Path) -> None:
        """Writes the picture of the check, a PNG: the curves, and the slope of every module at every step."""
        from coordcheck.report.figures.check import report_figure
        from coordcheck.report.figures.style import save_figure

        save_figure(report_figure(self), Path(path), self.config)

    def save(self, directory: str | Path) -> None:
        """Writes ``records.parquet slopes.csv verdict.json report.png report.md report.html``, atomically.

        And the audit's files, and ``alignment.csv`` where there are alignment exponents.
        """
        with locked(Path(directory), PATIENCE):
            self.save_text(directory)
            self.save_pictures(directory)

    def save_text(self, directory: str | Path) -> None:
        """Writes all of it but the pictures, which take longest."""
        from coordcheck.report.markdown import check_markdown

        directory = Path(directory)
        with locked(directory, PATIENCE):
            write_atomically(directory / RECORDS, self.records.to_parquet)
            write_atomically(directory / SLOPES, lambda path: self.slopes.to_csv(path, index=False))
            if len(self.alignments):
                write_text(directory / ALIGNMENTS, self.alignments.to_csv(index=False))
            else:
                (directory / ALIGNMENTS).unlink(missing_ok=True)
            write_text(directory / VERDICT, self.to_json())
            write_text(directory / REPORT_TEXT, check_markdown(self))
            if self.audit is not None:
                self.audit.save_text(directory)

    def save_pictures(self, directory: str | Path) -> None:
        """Writes ``report.png`` and ``report.html``, and ``audit.png`` where there is an audit."""
        from coordcheck.report.page.html import check_page

        directory = Path(directory)
        with locked(directory, PATIENCE):
            self.plot(directory / REPORT_PICTURE)
            write_text(directory / REPORT_PAGE, check_page(self))
            if self.audit is not None:
                self.audit.plot(directory / AUDIT_PICTURE)

    def to_mup(self) -> pd.DataFrame:
        """The recorded activations in the format of ``mup.coord_check``: ``width module t l1 l2``."""
        return to_mup(self.records)

    def to_json(self) -> str:
        """The content of ``verdict.json``."""
        content = {
            "verdict": self.verdict,
            "sentence": self.sentence(),
            "findings": [finding.facts() for finding in self.findings],
            "control": dataclasses.asdict(self.control),
            "audit": None if self.audit is None else {**self.audit.facts(), "sha256": _sha256_of(self.audit)},
            "accepted": [] if self.audit is None else [str(finding) for finding in self.audit.accepted],
            "unaudited": self.unaudited,
            "trials": [trial.facts() for trial in self.trials],
            "skipped": self.skipped,
            "versions": self.versions,
            "corpus_sha256": self.corpus_sha256,
            "config": {**self.config, "gate": dataclasses.asdict(self.gate)},
        }
        return json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n"

    @classmethod
    def load(cls, directory: str | Path, expect: str | None = None) -> "CoordCheck":
        """Reads stored records, with what ``verdict.json`` says of them if it is there, and judges them anew.

        Args:
            directory: Of a check, or where recorders saved, see :meth:`coordcheck.Recorder.save`.
            expect: Whose exponents the slopes are held against, for example "mup"; None for what ``verdict.json``
                says, "mup" without it.

        Raises:
            ValueError: if the directory holds no records, or files that no check wrote.
        """
        directory = Path(directory)
        records = read_records(directory)
        said = _read_verdict(directory / VERDICT)
        if expect is not None:
            said["gate"] = dataclasses.replace(said["gate"], expect=member(Expect, "expect", expect))
        tolerance = said["gate"].tolerance
        if lacking := sorted({*records["kind"]} - ({*tolerance.explodes} & {*tolerance.vanishes})):
            raise ValueError(
                f"{directory / VERDICT}: `gate.tolerance` has no number for {lacking}, which the records hold. For "
                f"example {AGAIN}"
            )
        try:
            return cls.from_records(records, **said)
        except ValueError as error:
            raise ValueError(f"{directory}: {error}") from error


def _read_verdict(path: Path) -> dict[str, Any]:
    """What :meth:`CoordCheck.from_records` takes besides records; the default gate alone if there is no such file."""
    if not os.path.lexists(path):
        return {"gate": default_gate()}
    said = read_verdict(path)
    try:
        gate = gate_from(said["config"]["gate"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    audited, unaudited, table = None, said["unaudited"], path.parent / AUDIT_TABLE
    if said["audit"] is not None and os.path.lexists(table):
        audited = read_audit(table, said["audit"], gate)
    elif said["audit"] is not None:
        unaudited = f"{AUDIT_TABLE}, which {VERDICT} tells of, is missing"
    return {
        "gate": gate,
        "gate_source": path.name,
        "control": Control(**said["control"]),
        "audit": audited,
        "unaudited": unaudited,
        "readout": said["config"].get("readout", {}).get("name"),
        "trials": [Trial.of_facts(row) for row in said.get("trials", [])],
        **{name: said[name] for name in ("skipped", "config", "versions", "corpus_sha256")},
    }


def read_audit(path: Path, said: Mapping[str, Any], gate: GateConfig) -> Audit:
    """A stored audit, judged anew.

    Args:
        path: ``audit.csv``.
        said: What ``verdict.json`` says of it; with a checksum only the very file that it was written with is taken.
        gate: What judges it.

    Raises:
        ValueError: naming the file, the place and the rule.
    """
    if said.get("sha256", own := sha256(path)) != own:
        raise ValueError(f"{path} is not the file that {VERDICT} beside it was written with. For example {AUDIT_AGAIN}")
    table = read_audit_table(path, [name for name in COLUMNS if name not in JUDGED])
    tolerance = gate.tolerance.exponent
    try:
        return Audit.from_parameters(table, list(said["widths"]), said["expect"], tolerance, gate.decay, gate.accept)
    except (KeyError, ValueError, TypeError) as error:  # a role or a rule of which theory knows nothing
        raise ValueError(f"{path} holds what no audit writes ({error}). For example {AUDIT_AGAIN}") from error


def _sha256_of(audit: Audit) -> str:
    return hashlib.sha256(_table_of(audit).encode()).hexdigest()


def _table_of(audit: Audit) -> str:
    """The content of ``audit.csv``."""
    return audit.parameters.to_csv(index=False, lineterminator="\n")


def _without_nan(value: Any) -> Any:
    """`value` with every float that JSON lacks replaced by None, and enums by their values."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
