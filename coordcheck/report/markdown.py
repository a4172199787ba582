"""``report.md``, ``audit.md`` and what a pull request or a job's summary shows."""

from collections.abc import Mapping

import pandas as pd

from coordcheck.config.schema import PARAMETERS
from coordcheck.judge.audit import AuditResult
from coordcheck.judge.judgement import Judgement
from coordcheck.judge.loss import InitialLoss
from coordcheck.judge.ruling import Ruling
from coordcheck.records.files import AUDIT_PICTURE, AUDIT_TEXT, REPORT_PICTURE
from coordcheck.report.tables import audit_rows, audit_sentences, changed_curves, markdown_table, worst_curves


def check_markdown(check: Judgement) -> str:
    """The content of ``report.md``."""
    initial_loss = InitialLoss.of(check.records)
    lines = [
        f"# {check.verdict.upper()}: {check.cell()}",
        "",
        check.sentence(),
        "",
        str(check.control),
        *(["", str(initial_loss)] if initial_loss else []),
        *parameters_section(check.config.get(PARAMETERS, {})),
        *(["", *check.skipped] if check.skipped else []),
        "",
        f"![curves and slopes]({REPORT_PICTURE})",
        "",
        "## Worst curve of each module",
        "",
        markdown_table(worst_curves(check, len(check.slopes))),
        "",
        "## Findings",
        "",
        *([f"- **{finding.fault or 'undecided'}** {finding}" for finding in check.findings] or ["None."]),
        "",
        *([] if check.audit is None else audit_section(check.audit)),
        *sources_section(check.slopes["source"], "curves"),
        *([unaudited(check), ""] if check.unaudited else []),
        "## Made with",
        "",
        ", ".join(f"{name} {number}" for name, number in check.versions.items()) or "unknown versions",
        *(["", f"Corpus sha256 {check.corpus_sha256}"] if check.corpus_sha256 else []),
    ]
    return "\n".join(lines) + "\n"


def parameters_section(counts: Mapping[str, int]) -> list[str]:
    """Lines on the size of the models; none for records of unknown models.

    >>> parameters_section({"64": 904_320, "1024": 42_012_672})
    ['', 'Parameters: 0.904 M (width 64) to 42 M (width 1024).']
    """
    sizes = " to ".join(f"{count / 1e6:.3g} M (width {width})" for width, count in counts.items())
    return ["", f"Parameters: {sizes}."] if sizes else []


def audit_section(audit: AuditResult) -> list[str]:
    """Lines on the audit for the report of a check."""
    said = [f"- {sentence}" for sentence in audit_sentences(audit)]
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
        *([f"- {sentence}" for sentence in audit_sentences(audit)] or ["None."]),
        "",
        f"## Parameters: exponents over widths {', '.join(map(str, audit.widths))}",
        "",
        markdown_table(audit_rows(audit)),
        "",
        *(
            f"{row.parameter} fits only with a forward multiplier width^{row.assumed_multiplier_exponent:+.1f}, which "
            f"an audit cannot see. Its forms: {row.forms}.\n"
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
    lines = [f"## coordcheck: {ruling.verdict.upper()}", "", check.cell(), "", ruling.sentence, ""]
    lines += [ruling.theory, ""] if ruling.theory else []
    return "\n".join(lines) + (markdown_table(table) + "\n" if len(table) else "")
