"""The result of a check as one object: its records, slopes, verdict and findings, and its files.

Made from records alone, without torch, so that stored records are judged anew wherever they were recorded.
"""

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from coordcheck import verdict as verdicts
from coordcheck.audit_result import TABLE as AUDIT_TABLE
from coordcheck.audit_result import Audit
from coordcheck.config import GateConfig, default_gate, gate_from
from coordcheck.diagnose import diagnose
from coordcheck.initial_loss import InitialLoss
from coordcheck.slopes import cell_columns, check_records, fit, repeated_seeds
from coordcheck.storage import write_atomically
from coordcheck.verdict import Finding

RECORDS, SLOPES, VERDICT, PICTURE, TEXT = "records.parquet", "slopes.csv", "verdict.json", "report.png", "report.md"
MORE = "Use more seeds, for example seeds=5, or a larger learning rate."


@dataclass(frozen=True)
class Control:
    """Whether the check can see: a twin with a known fault, which must fail.

    Attributes:
        twin: What it was, in words; "none" if it was turned off.
        widths: At which it ran.
        seeds: How many.
        saw: Whether its fault was seen; None without a control.
        evidence: The curve that shows it best, in words.
        undecided: Whether a slope lies beyond its limit where none does so for certain; `saw` is then False.
    """

    twin: str = "none"
    widths: list[int] = field(default_factory=list)
    seeds: int = 0
    saw: bool | None = None
    evidence: str = ""
    undecided: bool = False

    def __str__(self) -> str:
        if self.saw is None:
            return "Control: none, so a pass does not show that a fault would have been seen."
        ran = f"Control ({self.twin}; widths {self.widths}, {self.seeds} seeds)"
        if self.saw:
            return f"{ran}: fails as it must; {self.evidence}"
        if self.undecided:
            return f"{ran}: its fault shows, but not for certain; {self.evidence} {MORE}"
        return f"{ran}: its fault was not seen. The learning rate or the number of steps is too small to see a fault."


@dataclass(frozen=True, eq=False)
class CoordCheck:
    """The result of a check.

    Attributes:
        records: One row per (cell, width, seed, step, module, kind).
        slopes: One row per curve, with its expected range and verdict.
        verdict: "pass", "fail" or "inconclusive".
        findings: Where faults start, with cause and advice, what explains most first; then what is undecided.
        control: What the control showed.
        audit: What was known before the first step; None if it was turned off or failed.
        unaudited: Why it failed.
        gate: What turned slopes into verdicts.
        skipped: One sentence for each width that could not run.
        config: What was run, JSON-serializable.
        versions: Of Python and of the packages that made the numbers.
        corpus_sha256: Of the text, where there was one.
    """

    records: pd.DataFrame
    slopes: pd.DataFrame
    verdict: str
    findings: list[Finding]
    control: Control
    audit: Audit | None
    unaudited: str
    gate: GateConfig
    skipped: list[str]
    config: dict[str, Any]
    versions: dict[str, str]
    corpus_sha256: str | None

    @classmethod
    def from_records(
        cls,
        records: pd.DataFrame,
        gate: GateConfig,
        *,
        control: Control | None = None,
        audit: Audit | None = None,
        unaudited: str = "",
        readout: str | None = None,
        skipped: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
        corpus_sha256: str | None = None,
    ) -> "CoordCheck":
        """Fits and judges records of one cell, wherever they were recorded.

        Raises:
            ValueError: see :func:`coordcheck.slopes.check_records`, or if there are several cells.
        """
        check_records(records)
        names = cell_columns(records)
        cells = records[names].drop_duplicates()
        if names and len(cells) > 1:
            raise ValueError(
                f"a check judges one cell; these records hold {len(cells)}: {cells.to_dict('records')}. "
                f"For example records.groupby({list(cells.columns)}), one directory each."
            )
        if repeated := repeated_seeds(records):
            warnings.warn(
                f"seeds {repeated} repeat the numbers of an earlier seed bit for bit, so they count as one: `build` "
                f"seems to seed itself. Let it draw from torch's global generator, or give `batch` as a function of "
                f"the seed.",
                stacklevel=2,
            )
        control = Control() if control is None else control
        initial_loss = InitialLoss.of(records)
        judged = verdicts.judge(fit(records, gate.confidence), gate, readout, initial_loss)
        findings = diagnose(records, judged, gate, audit, control.saw)
        return cls(
            records=records,
            slopes=judged,
            verdict=verdicts.overall(judged, control.saw, {finding.fault for finding in findings if finding.fault}),
            findings=findings,
            control=control,
            audit=audit,
            unaudited=unaudited,
            gate=gate,
            skipped=list(skipped),
            config={"widths": sorted(int(width) for width in records["width"].unique()), **(config or {})},
            versions=dict(versions or {}),
            corpus_sha256=corpus_sha256,
        )

    def sentence(self) -> str:
        """The verdict and its reason."""
        counts = self.slopes["verdict"].value_counts()
        if self.verdict == "fail":
            at_fault = int(counts[counts.index.isin(verdicts.FAILURES)].sum())
            return f"FAIL: {at_fault} of {len(self.slopes)} curves are at fault. First at fault: {self.findings[0]}"
        if self.verdict == "pass":
            widths = "every width" if not self.skipped else f"every width that ran ({'; '.join(self.skipped)})"
            return f"PASS: all {len(self.slopes)} curves have the size that {self.gate.expect} expects at {widths}."
        if self.control.undecided:
            return (
                "INCONCLUSIVE: the control's fault shows, but not for certain, so a fault of this model might not "
                f"either. {MORE}"
            )
        if self.control.saw is False:
            return "INCONCLUSIVE: the control's fault was not seen, so a fault of this model would not be either."
        if self.findings[0].fault:
            return f"INCONCLUSIVE: {self.findings[0]}"
        undecided = int(counts.get("inconclusive", 0))
        return f"INCONCLUSIVE: {undecided} of {len(self.slopes)} curves are undecided. {self.findings[0]}"

    def plot(self, path: str | Path) -> None:
        """Writes the picture of the check, a PNG: the curves, and the slope of every module at every step."""
        from coordcheck.plot import report_figure, save_figure

        save_figure(report_figure(self), Path(path), self.config)

    def save(self, directory: str | Path) -> None:
        """Writes ``records.parquet slopes.csv verdict.json report.png report.md`` and the audit's files, atomically."""
        from coordcheck.report import markdown

        directory = Path(directory)
        write_atomically(directory / RECORDS, self.records.to_parquet)
        write_atomically(directory / SLOPES, lambda path: self.slopes.to_csv(path, index=False))
        write_atomically(directory / VERDICT, lambda path: path.write_text(self.to_json()))
        self.plot(directory / PICTURE)
        write_atomically(directory / TEXT, lambda path: path.write_text(markdown(self)))
        if self.audit is not None:
            self.audit.save(directory)

    def to_mup(self) -> pd.DataFrame:
        """The recorded activations in the format of ``mup.coord_check``: ``width module t l1 l2``."""
        from coordcheck.mup_format import to_mup

        return to_mup(self.records)

    def to_json(self) -> str:
        """The content of ``verdict.json``."""
        content = {
            "verdict": self.verdict,
            "sentence": self.sentence(),
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "control": dataclasses.asdict(self.control),
            "audit": None if self.audit is None else self.audit.facts(),
            "unaudited": self.unaudited,
            "skipped": self.skipped,
            "versions": self.versions,
            "corpus_sha256": self.corpus_sha256,
            "config": {**self.config, "gate": dataclasses.asdict(self.gate)},
        }
        return json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n"

    @classmethod
    def load(cls, directory: str | Path) -> "CoordCheck":
        """Reads stored records, with what ``verdict.json`` says of them if it is there, and judges them anew.

        Raises:
            ValueError: if the directory holds no records, or files that no check wrote.
        """
        directory = Path(directory)
        records = _read_records(directory / RECORDS)
        said = _read_verdict(directory / VERDICT)
        try:
            return cls.from_records(records, **said)
        except ValueError as error:
            raise ValueError(f"{directory}: {error}") from error


def _read_records(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise ValueError(
            f"{path.parent} holds no {RECORDS}; a check's directory does. For example "
            f"coordcheck-report checks/gpt-mup-untied-zero-adam."
        )
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no parquet file that can be read ({error}). Record it anew.") from error


def _read_verdict(path: Path) -> dict[str, Any]:
    """What :meth:`CoordCheck.from_records` takes besides records; the default gate alone if there is no such file."""
    if not path.is_file():
        return {"gate": default_gate()}
    try:
        said = json.loads(path.read_text())
        gate = gate_from(said["config"]["gate"])
        audited = said["audit"] is not None and (path.parent / AUDIT_TABLE).is_file()
        audit = Audit.load(path.parent, said["audit"], gate.tolerance.exponent) if audited else None
        return {
            "gate": gate,
            "control": Control(**said["control"]),
            "audit": audit,
            "readout": said["config"].get("readout", {}).get("name"),
            **{name: said[name] for name in ("unaudited", "skipped", "config", "versions", "corpus_sha256")},
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not what a check wrote ({type(error).__name__}: {error}). "
            f"Without that file the records are judged by the default gate."
        ) from error


def _without_nan(value: Any) -> Any:
    """`value` with every float that JSON lacks replaced by None, and enums by their values."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
