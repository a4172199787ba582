"""Records of one cell, judged: slopes, verdict, findings, and what was known besides. Data alone, without torch.

Made from records wherever they were recorded, so that stored ones are judged anew. Who writes files or draws is above.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import pandas as pd

from coordcheck.config.schema import Expect, GateConfig
from coordcheck.judge import verdict as verdicts
from coordcheck.judge.alignment import alignments
from coordcheck.judge.audit import AuditResult
from coordcheck.judge.control import MORE, Control
from coordcheck.judge.diagnose import diagnose
from coordcheck.judge.finding import Finding
from coordcheck.judge.looks import confidence_of
from coordcheck.judge.loss import InitialLoss
from coordcheck.judge.slopes import fit
from coordcheck.judge.trial import Trial, told
from coordcheck.judge.words import of_jax, over_axis
from coordcheck.records.names import over, printable
from coordcheck.records.schema import (
    AXIS,
    PARAMETERS_OF,
    WIDTH,
    axis_of,
    cell_columns,
    check_records,
    independent,
    repeated_seeds,
)


@dataclass(frozen=True, eq=False, repr=False)
class Judgement:
    """What records of one cell say.

    Attributes:
        records: One row per (cell, width, seed, step, module, kind).
        slopes: One row per curve, with its expected range and verdict.
        verdict: "pass", "fail" or "inconclusive".
        findings: Where faults start, with cause and advice, what explains most first; then what is undecided.
        control: What the control showed.
        audit: What was known before the first step; None if it was turned off or failed.
        unaudited: Why it failed.
        gate: What turned slopes into verdicts.
        gate_source: The file that gate and control were read from; empty where this process made them.
        skipped: One sentence for each width that could not run.
        config: What was run, JSON-serializable.
        versions: Of Python and of the packages that made the numbers.
        corpus_sha256: Of the text, where there was one.
        alignments: One row per layer and step, see :func:`coordcheck.judge.alignment.alignments`; none unless the kinds
            "effective_update" and "update" were recorded.
        trials: What came of doing what findings advise, where that was tried.
    """

    records: pd.DataFrame
    slopes: pd.DataFrame
    verdict: str
    findings: list[Finding]
    control: Control
    audit: AuditResult | None
    unaudited: str
    gate: GateConfig
    gate_source: str
    skipped: list[str]
    config: dict[str, Any]
    versions: dict[str, str]
    corpus_sha256: str | None
    alignments: pd.DataFrame
    trials: tuple[Trial, ...] = ()

    @classmethod
    def from_records(
        cls,
        records: pd.DataFrame,
        gate: GateConfig,
        *,
        control: Control | None = None,
        audit: AuditResult | None = None,
        unaudited: str = "",
        readout: str | None = None,
        skipped: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
        corpus_sha256: str | None = None,
        gate_source: str = "",
        trials: Sequence[Trial] = (),
    ) -> Self:
        """Fits and judges records of one cell, wherever they were recorded.

        Raises:
            ValueError: see :func:`coordcheck.records.schema.check_records`, or if there are several cells.
        """
        records = check_records(records)
        axis = axis_of(records)
        gate = gate if axis == WIDTH else replace(gate, expect=Expect.completep)  # no other says anything of depth
        names = cell_columns(records)
        cells = records[names].drop_duplicates()
        if names and len(cells) > 1:
            raise ValueError(
                f"a check judges one cell; these records hold {len(cells)}: "
                f"{printable(cells.head(5).to_dict('records'), 400)}. "
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
        config = {"widths": sorted(int(width) for width in records["width"].unique()), **(config or {})}
        judged = judged_curves(records, gate, confidence_of(gate, config), readout, audit)
        findings = diagnose(records, judged, gate, audit, control.saw)
        findings = [over_axis(finding, axis) for finding in findings]
        if PARAMETERS_OF in records.attrs:
            findings = [of_jax(finding) for finding in findings]
            audit = None if audit is None else replace(audit, findings=[of_jax(f) for f in audit.findings])
        return cls(
            records=records,
            slopes=judged,
            verdict=verdicts.overall(judged, control.saw, {finding.fault for finding in findings if finding.fault}),
            findings=told(findings, trials),
            control=control,
            audit=audit,
            unaudited=unaudited,
            gate=gate,
            gate_source=gate_source,
            skipped=[over(axis, sentence) for sentence in skipped],
            config=config,
            versions=dict(versions or {}),
            corpus_sha256=corpus_sha256,
            alignments=alignments(records, gate.confidence),
            trials=tuple(trials),
        )

    def with_trials(self, trials: Sequence[Trial]) -> Self:
        """The same with what came of doing what its findings advise."""
        return replace(self, findings=told(self.findings, trials), trials=tuple(trials))

    @property
    def axis(self) -> str:
        """What varies: "width", or "depth"; slopes are exponents of it, and the column ``width`` holds it."""
        return axis_of(self.records)

    def cell(self) -> str:
        """What was checked, its widths and seeds, on one line."""
        first = self.records.iloc[0]
        widths = sorted(self.records["width"].unique())
        seeds = self.records.groupby("width")["seed"].nunique()
        return " · ".join(
            [
                *(str(first[name]) for name in cell_columns(self.records) if name != AXIS),
                f"{self.axis}s {widths[0]}–{widths[-1]} ({len(widths)})",
                f"{', '.join(map(str, seeds))} runs"
                if independent(self.records)
                else f"{self.records['seed'].nunique()} seeds",
            ]
        )

    def rerun_sentence(self) -> str:
        """That some narrow runs recorded more than was asked for, to tell why the check fails; empty where none did."""
        kinds, steps = self.config.get("kinds"), self.config.get("steps")
        if not isinstance(kinds, list) or not isinstance(steps, int):
            return ""
        more = self.records[~self.records["kind"].isin(kinds) | (self.records["step"] >= steps)]
        runs = more[["width", "seed"]].drop_duplicates()
        if not len(more):
            return ""
        added = [f"the kind {kind}" for kind in more["kind"].unique() if kind not in kinds]
        added += [f"{more['step'].max() + 1} steps"] if more["step"].max() >= steps else []
        widths = sorted(int(width) for width in runs["width"].unique())
        return (
            f"To tell why it fails, {len(runs)} runs at widths {widths} recorded {' and '.join(added)} as well; "
            f"rerun=false leaves them out."
        )

    def headline(self) -> str:
        """The verdict in one short sentence, without its cause."""
        counts = self.slopes["verdict"].value_counts()
        if self.verdict == "fail":
            at_fault = int(counts[counts.index.isin(verdicts.FAILURES)].sum())
            if not at_fault:
                return "FAIL: every curve keeps its size, but there is a fault that shows in none."
            return f"FAIL: {at_fault} of {len(self.slopes)} curves {'is' if at_fault == 1 else 'are'} at fault."
        if self.verdict == "pass":
            every = f"every {self.axis}"
            widths = every if not self.skipped else f"{every} that ran ({'; '.join(self.skipped)})"
            return f"PASS: all {len(self.slopes)} curves have the size that {self.gate.expect} expects at {widths}."
        if self.control.undecided:
            return (
                "INCONCLUSIVE: the control's fault shows, but not for certain, so a fault of this model might not "
                f"either. {MORE}"
            )
        if self.control.saw is False:
            return "INCONCLUSIVE: the control's fault was not seen, so a fault of this model would not be either."
        if self.findings[0].fault:
            return "INCONCLUSIVE: these runs cannot tell."
        undecided = int(counts.get("inconclusive", 0))
        return f"INCONCLUSIVE: {undecided} of {len(self.slopes)} curves are undecided."

    def sentence(self) -> str:
        """The verdict and its reason, and what was accepted."""
        return self._reason() + ("" if self.audit is None else self.audit.accepted_sentence())

    def _reason(self) -> str:
        if self.verdict == "fail":
            return f"{self.headline()} First at fault: {self.findings[0]}"
        if self.verdict == "pass" or self.control.saw is False:
            return self.headline()
        if self.findings[0].fault:
            return f"INCONCLUSIVE: {self.findings[0]}"
        return f"{self.headline()} {self.findings[0]}"


def judged_curves(
    records: pd.DataFrame, gate: GateConfig, confidence: float, readout: str | None, audit: AuditResult | None
) -> pd.DataFrame:
    """The slopes of records with what was expected of them and their verdicts, see :func:`verdict.judge`."""
    return verdicts.judge(
        fit(records, confidence),
        gate,
        readout,
        InitialLoss.of(records),
        parameters=None if audit is None else audit.parameters,
        heads_grow=_heads_grow(records),
        accepted=() if audit is None else audit.accepted,
    )


def _heads_grow(records: pd.DataFrame) -> bool:
    """Whether the size of attention heads grows with width: their number, and so that of logits, then does not."""
    logits = records[(records["role"] == "attention_logits") & records["count"].notna()]
    counts = logits.groupby("module")[["width", "count"]].agg("nunique")
    return bool((counts["count"] < counts["width"]).any()) if len(counts) else True
