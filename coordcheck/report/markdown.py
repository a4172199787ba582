"""``report.md``, ``audit.md`` and what a pull request or a job's summary shows."""

import dataclasses
from collections.abc import Mapping

import pandas as pd

from coordcheck.config.load import default_gate, flatten
from coordcheck.config.schema import PARAMETERS
from coordcheck.judge.audit import AuditResult
from coordcheck.judge.judgement import Judgement
from coordcheck.judge.loss import InitialLoss
from coordcheck.judge.ruling import Ruling
from coordcheck.records.files import AUDIT_PICTURE, AUDIT_TEXT, REPORT_PICTURE
from coordcheck.records.names import over
from coordcheck.report.tables import (
    alignment_rows,
    audit_rows,
    audit_sentences,
    changed_curves,
    in_markdown,
    markdown_table,
    worst_curves,
)

MOST_ROWS = 200  # that a pull request or a job's summary shows; GitHub takes a mebibyte


def check_markdown(check: Judgement) -> str:
    """The content of ``report.md``."""
    initial_loss, gate = InitialLoss.of(check.records), gate_sentence(check)
    findings = [f"- **{finding.fault or 'undecided'}** {in_markdown(finding)}" for finding in check.findings]
    lines = [
        f"# {check.verdict.upper()}: {in_markdown(check.cell())}",
        "",
        in_markdown(check.sentence()),
        "",
        in_markdown(check.control),
        *(["", in_markdown(rerun)] if (rerun := check.rerun_sentence()) else []),
        *(["", in_markdown(gate)] if gate else []),
        *(["", in_markdown(over(check.axis, str(initial_loss)))] if initial_loss else []),
        *parameters_section(check.config.get(PARAMETERS, {}), check.axis),
        *(["", *map(in_markdown, check.skipped)] if check.skipped else []),
        "",
        f"![curves and slopes]({REPORT_PICTURE})",
        "",
        "## Worst curve of each module",
        "",
        markdown_table(worst_curves(check, len(check.slopes))),
        "",
        "## Findings",
        "",
        *(findings or ["None."]),
        "",
        *(alignment_section(check.alignments) if len(check.alignments) else []),
        *([] if check.audit is None else audit_section(check.audit)),
        *sources_section(check.slopes["source"], "curves"),
        *([in_markdown(unaudited(check)), ""] if check.unaudited else []),
        "## Made with",
        "",
        in_markdown(", ".join(f"{name} {number}" for name, number in check.versions.items()) or "unknown versions"),
        *(["", f"Corpus sha256 {in_markdown(check.corpus_sha256)}"] if check.corpus_sha256 else []),
    ]
    return "\n".join(lines) + "\n"


def gate_sentence(check: Judgement) -> str:
    """Where the gate is not the default one, in what, and who says so; empty where it is."""
    said_elsewhere = {"expect", "accept"}
    default = flatten(dataclasses.asdict(default_gate()), without=said_elsewhere)
    own = flatten(dataclasses.asdict(check.gate), without=said_elsewhere)
    # a check that was stored before there was a kind has no number for it
    names = [name for name in own if own[name] != default.get(name)]
    if not names:
        return ""
    said = ", ".join(f"{name}={own.get(name)} (default {default.get(name)})" for name in names)
    source = f"Gate and control are those of {check.gate_source}. " if check.gate_source else ""
    return f"{source}The gate is not the default one: {said}."


def parameters_section(counts: Mapping[str, int], axis: str = "width") -> list[str]:
    """Lines on the size of the models; none for records of unknown models.

    >>> parameters_section({"64": 904_320, "1024": 42_012_672})
    ['', 'Parameters: 0.904 M (width 64) to 42 M (width 1024).']
    """
    sizes = " to ".join(f"{count / 1e6:.3g} M ({axis} {width})" for width, count in counts.items())
    return ["", in_markdown(f"Parameters: {sizes}.")] if sizes else []


def alignment_section(alignments: pd.DataFrame) -> list[str]:
    """Lines on how well the updates of layers are aligned with their inputs."""
    return [
        "## Alignment of updates with their inputs",
        "",
        "The slope of a layer's effective update minus those of W_t - W_0 and of its input: +0.50 if the terms that it "
        "sums are independent, +1.00 if they are aligned (Everett et al., arXiv 2407.05872). "
        "Under Adam aligned terms need a learning rate of width^-1, independent ones of width^-1/2.",
        "",
        markdown_table(alignment_rows(alignments)),
        "",
    ]


def audit_section(audit: AuditResult) -> list[str]:
    """Lines on the audit for the report of a check."""
    said = [f"- {in_markdown(sentence)}" for sentence in audit_sentences(audit)]
    return [
        "## Audit",
        "",
        f"{audit.sentence()} All of it is in {AUDIT_TEXT}.",
        "",
        *said,
        *([""] if said else []),
    ]


def unaudited(check: Judgement) -> str:
    """Why there is no audit."""
    return f"Audit: none could be made ({check.unaudited}). The check does not depend on it."


def sources_section(sources: pd.Series, what: str) -> list[str]:
    """Lines on who says what was expected, and of how many curves or parameters."""
    counts = sources.value_counts()
    table = pd.DataFrame({what: counts.to_numpy(), "source": counts.index}).astype(str)
    return ["## Who says so", "", markdown_table(table), ""]


def audit_markdown(audit: AuditResult) -> str:
    """The content of ``audit.md``."""
    written = audit.parameters[["parameter", "writes", "operations", "rules"]].astype(str)
    assumed = audit.parameters.query("multiplier_exponent.isna() and assumed_multiplier_exponent != 0")
    lines = [
        f"# Audit: {audit.verdict.upper()}",
        "",
        audit.sentence(),
        "",
        f"![exponents of init std and learning rate]({AUDIT_PICTURE})",
        "",
        "## Findings",
        "",
        *([f"- {in_markdown(sentence)}" for sentence in audit_sentences(audit)] or ["None."]),
        "",
        f"## Parameters: exponents over widths {', '.join(map(str, audit.widths))}",
        "",
        markdown_table(audit_rows(audit)),
        "",
        *(
            f"{in_markdown(row.parameter)} fits only with a forward multiplier "
            f"width^{row.assumed_multiplier_exponent:+.1f}, which an audit cannot see. Its forms: {row.forms}.\n"
            for row in assumed.itertuples()
        ),
        "## Who wrote each parameter, and what it was then",
        "",
        markdown_table(written),
        "",
        *sources_section(audit.parameters["source"], "parameters"),
    ]
    return "\n".join(lines) + "\n"


def ruling_markdown(ruling: Ruling) -> str:
    """What the gate decided, with the curves that are worth reading."""
    check = ruling.judgement
    if ruling.changes is None:
        table = worst_curves(check, int((check.slopes["verdict"] != "pass").sum()))
    else:
        table = changed_curves(ruling.changes)
    lines = [
        f"## coordcheck: {ruling.verdict.upper()}",
        "",
        in_markdown(check.cell()),
        "",
        in_markdown(ruling.sentence),
        "",
    ]
    if ruling.theory:
        lines += [in_markdown(ruling.theory), ""]
    if gate := gate_sentence(check):
        lines += [in_markdown(gate), ""]
    if len(table):
        lines += [markdown_table(table.head(MOST_ROWS))]
    if len(table) > MOST_ROWS:
        lines += ["", f"{len(table) - MOST_ROWS} more are not shown."]
    return "\n".join(lines) + ("\n" if len(table) else "")
