"""What a terminal shows."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coordcheck.judge.audit import AUDIT_FAULTS, AuditResult
from coordcheck.judge.judgement import Judgement
from coordcheck.judge.loss import InitialLoss
from coordcheck.records.files import RECORDS, REPORT_PICTURE, REPORT_TEXT, SLOPES, VERDICT
from coordcheck.report.markdown import unaudited
from coordcheck.report.tables import WORST, audit_rows, audit_sentences, worst_curves

STYLES = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}


def make_console() -> Console:
    """Standard output; wide enough for the tables where it is not a terminal."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=130)


def print_check(check: Judgement, console: Console, directory: Path, picture: Path | None = None) -> None:
    """The table of the worst curves, the verdict, the control and the files."""
    table = Table(title=check.cell(), title_justify="left", title_style="bold")
    rows = worst_curves(check)
    for name in rows.columns:
        table.add_column(name, justify="right" if name in ("step", "slope", "expected") else "left", no_wrap=True)
    for *cells, said in rows.to_numpy().tolist():
        table.add_row(*map(escape, cells), f"[{STYLES.get(said, STYLES['fail'])}]{said}[/]")
    console.print(table)
    rest = check.slopes["module"].nunique() - len(rows)
    if rest > 0:
        console.print(
            f"... the worst curve of each module; {rest} modules more in {REPORT_TEXT}, all curves in {SLOPES}"
        )
    console.print(check.sentence(), style=STYLES[check.verdict], markup=False)
    console.print(str(check.control), markup=False)
    if initial_loss := InitialLoss.of(check.records):
        console.print(str(initial_loss), markup=False)
    if check.audit is not None:
        print_audit_findings(check.audit, console)
    if check.unaudited:
        console.print(unaudited(check), style="yellow", markup=False)
    for sentence in check.skipped:
        console.print(sentence, style="yellow", markup=False)
    console.print(f"Files in {directory}: {REPORT_PICTURE} {REPORT_TEXT} {SLOPES} {VERDICT} {RECORDS}", markup=False)
    if picture is not None:
        console.print(f"Picture: {picture}", markup=False)


def print_audit(audit: AuditResult, console: Console, every: bool = False) -> None:
    """The table of an audit, what it found, and its verdict.

    Args:
        audit: The audit.
        console: Where to.
        every: Show every row, not only what does not pass.
    """
    rows = audit_rows(audit)
    shown = rows if every else rows[rows["verdict"] != "pass"].head(WORST)
    if len(shown):
        table = Table(title="audit", title_justify="left", title_style="bold")
        for name in shown.columns:
            table.add_column(name, no_wrap=name == "parameter")
        for *cells, said in shown.to_numpy().tolist():
            style = STYLES["fail" if said in AUDIT_FAULTS else "pass" if said == "pass" else "inconclusive"]
            table.add_row(*map(escape, cells), f"[{style}]{said}[/]")
        console.print(table)
    print_audit_findings(audit, console)


def print_audit_findings(audit: AuditResult, console: Console) -> None:
    """What an audit found, each thing once, and its verdict."""
    for sentence in audit_sentences(audit)[:WORST]:
        console.print(f"Audit: {sentence}", markup=False)
    console.print(f"Audit: {audit.sentence()}", style=STYLES[audit.verdict], markup=False)
