"""What a terminal shows."""

import io
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coordcheck.judge.audit import AUDIT_FAULTS, AuditResult
from coordcheck.judge.judgement import Judgement
from coordcheck.judge.loss import InitialLoss
from coordcheck.records.files import RECORDS, REPORT_PAGE, REPORT_PICTURE, REPORT_TEXT, SLOPES, VERDICT
from coordcheck.records.names import LONGEST, LONGEST_NAME, over, printable
from coordcheck.report.markdown import gate_sentence, unaudited
from coordcheck.report.tables import WORST, audit_rows, audit_sentences, worst_curves

LABEL = 14  # columns
WIDE = 130  # columns that a table needs
ASCII = {" · ": " | ", "·": "*", "–": "-", "√": " sqrt ", "…": "..."}
NAMED = 3  # findings that are named after the first
STYLES = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}


def make_console() -> Console:
    """Standard output, whatever its encoding lacks; wide enough for the tables where it is not a terminal."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=WIDE)


def shown(console: Console, text: object, most: int = LONGEST) -> str:
    """`text` on one line as the console shows it: our own signs as ASCII where it is no terminal."""
    said = printable(text, most)
    if console.is_terminal:
        return said
    for sign, plain in ASCII.items():
        said = said.replace(sign, plain)
    return said


def say(console: Console, text: object, style: str = "") -> None:
    """One line, whatever names stand in it."""
    console.print(shown(console, text), style=style, markup=False)


def new_table(title: str, console: Console) -> Table:
    """An empty table; its lines are ASCII where no terminal shows them."""
    lines = box.HEAVY_HEAD if console.is_terminal else box.ASCII2
    return Table(title=escape(shown(console, title)), title_justify="left", title_style="bold", box=lines)


def cell_text(console: Console, value: object) -> str:
    """What a cell of a table shows, whatever names stand in it."""
    return escape(shown(console, value, LONGEST_NAME))


def print_check(
    check: Judgement, console: Console, directory: Path, picture: Path | None = None, verbose: bool = False
) -> None:
    """One screen: the verdict, its one cause, what to do, where the picture is; then what else was found.

    Args:
        check: The check.
        console: Where to.
        directory: Where its files are.
        picture: Where its picture is too.
        verbose: Show the tables of the worst curves and of the audit's faults, and every finding in full.
    """
    if verbose:
        print_worst_curves(check, console)
        if check.audit is not None:
            print_audit(check.audit, console)
    say(console, check.headline(), STYLES[check.verdict])
    say(console, check.cell(), "dim")
    for label, text, style in [*_causes(check, verbose), *_circumstances(check, verbose)]:
        print_labelled(console, label, text, style)
    print_labelled(console, "Picture", picture or directory / REPORT_PICTURE)
    print_labelled(console, "Files", f"{directory}: {REPORT_PAGE} {REPORT_TEXT} {SLOPES} {VERDICT} {RECORDS}")


def print_labelled(console: Console, label: str, text: object, style: str = "") -> None:
    """A label and its text; on a terminal the text is wrapped beside it, elsewhere it stays one line."""
    said = shown(console, text)
    if console.is_terminal:
        width = max(console.width - LABEL, LABEL)
        lines = textwrap.wrap(said, width, break_long_words=False, break_on_hyphens=False)
        said = f"\n{' ' * LABEL}".join(lines)
    console.print(f"[bold]{label:<{LABEL}}[/]", end="")
    console.print(said, style=style, markup=False)


def _causes(check: Judgement, verbose: bool) -> Iterator[tuple[str, str, str]]:
    """The first finding in full; of the others where they are and what shows them, or all of them if `verbose`."""
    faults = [finding for finding in check.findings if finding.fault]
    if check.verdict == "inconclusive" and not faults and check.control.saw is not False:
        yield from (("Undecided", str(finding), "") for finding in check.findings[: None if verbose else 1])
    for number, finding in enumerate(faults[: None if verbose else 1]):
        yield (
            ("Fault" if number else "First fault"),
            f"{finding.fault} at {finding.parameter or finding.module}",
            "bold",
        )
        yield "Why", finding.cause, ""
        if finding.advice:
            yield "What to do", finding.advice, ""
        if finding.tried:
            yield "Tried", finding.tried.removeprefix("Tried: "), ""
    if others := faults[1:] if not verbose else []:
        named = "; ".join(f"{f.fault} at {f.parameter or f.module}" for f in others[:NAMED])
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        yield "Then", f"{named}{more} (-v and {REPORT_TEXT} tell all)", ""


def _circumstances(check: Judgement, verbose: bool) -> Iterator[tuple[str, str, str]]:
    """Control, loss and audit, gate and widths left out: in short where all is well."""
    control = check.control
    outcome = "fails as it must." if control.saw and not verbose else control.outcome()
    twin = "" if control.saw is None else f"{control.twin}: "
    yield "Control", f"{twin}{outcome}", "" if control.saw else "yellow"
    if initial_loss := InitialLoss.of(check.records):
        yield "Initial loss", over(check.axis, initial_loss.numbers()), ""
    if check.audit is not None:
        warnings = [finding for finding, _ in check.audit.grouped_findings() if finding.verdict not in AUDIT_FAULTS]
        yield "Audit", check.audit.sentence(), STYLES[check.audit.verdict]
        if not verbose:
            yield from (("", f"{finding.verdict}: {finding}", "yellow") for finding in warnings[:NAMED])
    accepted = "" if check.audit is None else check.audit.accepted_sentence().strip()
    said = [accepted, check.rerun_sentence(), check.unaudited and unaudited(check), gate_sentence(check)]
    for sentence in filter(None, [*said, *check.skipped]):
        yield "Note", sentence, "yellow"


def print_worst_curves(check: Judgement, console: Console) -> None:
    """The table of the worst curve of each module."""
    table = new_table(check.cell(), console)
    rows = worst_curves(check)
    for name in rows.columns:
        table.add_column(name, justify="right" if name in ("step", "slope", "expected") else "left", no_wrap=True)
    for *cells, said in rows.to_numpy().tolist():
        table.add_row(*(cell_text(console, cell) for cell in cells), f"[{STYLES.get(said, STYLES['fail'])}]{said}[/]")
    console.print(table, width=max(console.width, WIDE))
    rest = check.slopes["module"].nunique() - len(rows)
    if rest > 0:
        console.print(
            f"... the worst curve of each module; {rest} modules more in {REPORT_TEXT}, all curves in {SLOPES}"
        )


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
        table = new_table("audit", console)
        for name in shown.columns:
            table.add_column(cell_text(console, name), no_wrap=name == "parameter")
        for *cells, said in shown.to_numpy().tolist():
            style = STYLES["fail" if said in AUDIT_FAULTS else "pass" if said == "pass" else "inconclusive"]
            table.add_row(*(cell_text(console, cell) for cell in cells), f"[{style}]{said}[/]")
        console.print(table, width=max(console.width, WIDE))
    print_audit_findings(audit, console)


def print_audit_findings(audit: AuditResult, console: Console) -> None:
    """What an audit found, each thing once, and its verdict."""
    for sentence in audit_sentences(audit)[:WORST]:
        say(console, f"Audit: {sentence}")
    say(console, f"Audit: {audit.sentence()}", STYLES[audit.verdict])
