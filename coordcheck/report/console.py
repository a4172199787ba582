"""What a terminal shows."""

import io
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coordcheck.judge.audit import AUDIT_FAULTS, AuditResult
from coordcheck.judge.judgement import Judgement
from coordcheck.judge.loss import InitialLoss
from coordcheck.records.files import RECORDS, REPORT_PICTURE, REPORT_TEXT, SLOPES, VERDICT
from coordcheck.records.names import LONGEST_NAME, printable
from coordcheck.report.markdown import gate_sentence, unaudited
from coordcheck.report.tables import WORST, audit_rows, audit_sentences, worst_curves

STYLES = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}


def make_console() -> Console:
    """Standard output, whatever its encoding lacks; wide enough for the tables where it is not a terminal."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=130)


def say(console: Console, text: object, style: str = "") -> None:
    """One line, whatever names stand in it."""
    console.print(printable(text), style=style, markup=False)


def cell_text(value: object) -> str:
    """What a cell of a table shows, whatever names stand in it."""
    return escape(printable(value, LONGEST_NAME))


def print_check(check: Judgement, console: Console, directory: Path, picture: Path | None = None) -> None:
    """The table of the worst curves, the verdict, the control and the files."""
    table = Table(title=escape(printable(check.cell())), title_justify="left", title_style="bold")
    rows = worst_curves(check)
    for name in rows.columns:
        table.add_column(name, justify="right" if name in ("step", "slope", "expected") else "left", no_wrap=True)
    for *cells, said in rows.to_numpy().tolist():
        table.add_row(*map(cell_text, cells), f"[{STYLES.get(said, STYLES['fail'])}]{said}[/]")
    console.print(table)
    rest = check.slopes["module"].nunique() - len(rows)
    if rest > 0:
        console.print(
            f"... the worst curve of each module; {rest} modules more in {REPORT_TEXT}, all curves in {SLOPES}"
        )
    say(console, check.sentence(), STYLES[check.verdict])
    say(console, check.control)
    if rerun := check.rerun_sentence():
        say(console, rerun)
    if gate := gate_sentence(check):
        say(console, gate, "yellow")
    if initial_loss := InitialLoss.of(check.records):
        say(console, initial_loss)
    if check.audit is not None:
        print_audit_findings(check.audit, console)
    if check.unaudited:
        say(console, unaudited(check), "yellow")
    for sentence in check.skipped:
        say(console, sentence, "yellow")
    say(console, f"Files in {directory}: {REPORT_PICTURE} {REPORT_TEXT} {SLOPES} {VERDICT} {RECORDS}")
    if picture is not None:
        say(console, f"Picture: {picture}")


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
            table.add_row(*map(cell_text, cells), f"[{style}]{said}[/]")
        console.print(table)
    print_audit_findings(audit, console)


def print_audit_findings(audit: AuditResult, console: Console) -> None:
    """What an audit found, each thing once, and its verdict."""
    for sentence in audit_sentences(audit)[:WORST]:
        say(console, f"Audit: {sentence}")
    say(console, f"Audit: {audit.sentence()}", STYLES[audit.verdict])
