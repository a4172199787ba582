"""Words and tables of checks: the terminal's table, ``report.md``, and the summary of many cells."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coordcheck import audit_result
from coordcheck.audit_result import Audit
from coordcheck.config import BOOKKEEPING, PARAMETERS, flatten
from coordcheck.initial_loss import InitialLoss
from coordcheck.plot import describe_cell, save_figure, summary_figure
from coordcheck.result import PICTURE, RECORDS, SLOPES, TEXT, VERDICT, CoordCheck
from coordcheck.storage import write_atomically
from coordcheck.verdict import FAILURES, format_range, worst_first

WORST = 10
STYLES = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}
EXIT_CODES = {"pass": 0, "fail": 3, "inconclusive": 4}


def exit_code(outcomes: Sequence[str]) -> int:
    """One exit code for many verdicts: 1 for an error or nothing, else 3 for a fail, 4 for an inconclusive, 0."""
    codes = {EXIT_CODES.get(outcome, 1) for outcome in outcomes} or {1}
    return next(code for code in (1, 3, 4, 0) if code in codes)


def make_console() -> Console:
    """Standard output; wide enough for the tables where it is not a terminal."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=130)


def worst_curves(check: CoordCheck, most: int = WORST) -> pd.DataFrame:
    """The worst curve of each module as text, worst modules first."""
    rows = worst_first(check.slopes).drop_duplicates("module").head(most)
    return pd.DataFrame(
        {
            "module": rows["module"],
            "kind": rows["kind"],
            "step": rows["step"].astype(str),
            "slope": [format_slope(row) for _, row in rows.iterrows()],
            "expected": [
                format_range(low, high) for low, high in zip(rows["expected_low"], rows["expected_high"], strict=True)
            ],
            "verdict": rows["verdict"],
        }
    )


def format_slope(row: pd.Series) -> str:
    """A slope with its interval, or why there is none."""
    if row["n_zero"] > 0:
        return f"exactly zero in {row['n_zero']} of {row['n_runs']} runs"
    if row["n_nonfinite"] > 0:
        return f"non-finite in {row['n_nonfinite']} of {row['n_runs']} runs"
    return f"{row['slope']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"


def print_check(check: CoordCheck, console: Console, directory: Path, picture: Path | None = None) -> None:
    """The table of the worst curves, the verdict, the control and the files."""
    table = Table(title=describe_cell(check), title_justify="left", title_style="bold")
    rows = worst_curves(check)
    for name in rows.columns:
        table.add_column(name, justify="right" if name in ("step", "slope", "expected") else "left", no_wrap=True)
    for *cells, said in rows.to_numpy().tolist():
        table.add_row(*map(escape, cells), f"[{STYLES.get(said, STYLES['fail'])}]{said}[/]")
    console.print(table)
    rest = check.slopes["module"].nunique() - len(rows)
    if rest > 0:
        console.print(f"... the worst curve of each module; {rest} modules more in {TEXT}, all curves in {SLOPES}")
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
    console.print(f"Files in {directory}: {PICTURE} {TEXT} {SLOPES} {VERDICT} {RECORDS}", markup=False)
    if picture is not None:
        console.print(f"Picture: {picture}", markup=False)


def markdown(check: CoordCheck) -> str:
    """The content of ``report.md``."""
    initial_loss = InitialLoss.of(check.records)
    lines = [
        f"# {check.verdict.upper()}: {describe_cell(check)}",
        "",
        check.sentence(),
        "",
        str(check.control),
        *(["", str(initial_loss)] if initial_loss else []),
        *parameters_section(check.config.get(PARAMETERS, {})),
        *(["", *check.skipped] if check.skipped else []),
        "",
        f"![curves and slopes]({PICTURE})",
        "",
        "## Worst curve of each module",
        "",
        markdown_table(worst_curves(check, len(check.slopes))),
        "",
        "## Findings",
        "",
        *([f"- **{finding.verdict}** {finding}" for finding in check.findings] or ["None."]),
        "",
        *([] if check.audit is None else audit_section(check.audit)),
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


def audit_rows(audit: Audit) -> pd.DataFrame:
    """The parameters of an audit as text, faults first."""
    rows = audit.worst_first()
    expected = zip(rows["std_exponent"], rows["expected_std_exponent"], strict=True)
    rates = zip(rows["lr_exponent"], rows["expected_lr_exponent"], strict=True)
    return pd.DataFrame(
        {
            "parameter": [" = ".join(filter(None, pair)) for pair in rows[["parameter", "tied_to"]].to_numpy()],
            "role": rows["role"],
            "writes": rows["writes"].astype(str),
            "std": [f"{value:.3g}" for value in rows["init_std"]],
            "std√fan_in": [f"{value:.3f}" for value in rows["std_fan_in"]],
            "std exp.": [format_exponent(*pair) for pair in expected],
            "lr exp.": [format_exponent(*pair) for pair in rates],
            "lr·decay": [f"{value:+.2f}" if value == value else "" for value in rows["effective_decay_exponent"]],
            "verdict": rows["verdict"],
        }
    )


def format_exponent(measured: float, expected: float) -> str:
    """An exponent, with the expected one where they differ as printed; empty where there is none."""
    if math.isnan(measured):
        return ""
    said = f"{measured + 0.0:+.2f}".replace("-0.00", "+0.00")
    return said if abs(measured - expected) < 0.05 else f"{said} not {expected:+.2f}"


def print_audit(audit: Audit, console: Console, every: bool = False) -> None:
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
            style = STYLES["fail" if said in audit_result.FAULTS else "pass" if said == "pass" else "inconclusive"]
            table.add_row(*map(escape, cells), f"[{style}]{said}[/]")
        console.print(table)
    print_audit_findings(audit, console)


def print_audit_findings(audit: Audit, console: Console) -> None:
    """What an audit found, each thing once, and its verdict."""
    for sentence in audit_sentences(audit)[:WORST]:
        console.print(f"Audit: {sentence}", markup=False)
    console.print(f"Audit: {audit.sentence()}", style=STYLES[audit.verdict], markup=False)


def audit_sentences(audit: Audit) -> list[str]:
    """Findings that say the same of several parameters as one sentence."""
    return [
        f"{finding.verdict}: {finding}" + (f" The same holds for {len(names) - 1} more." if len(names) > 1 else "")
        for finding, names in audit.grouped_findings()
    ]


def audit_section(audit: Audit) -> list[str]:
    """Lines on the audit for the report of a check."""
    said = [f"- {sentence}" for sentence in audit_sentences(audit)]
    return [
        "## Audit",
        "",
        f"{audit.sentence()} All of it is in {audit_result.TEXT}.",
        "",
        *said,
        *([""] if said else []),
    ]


def unaudited(check: CoordCheck) -> str:
    """Why there is no audit."""
    return f"Audit: none could be made ({check.unaudited}). The check does not depend on it."


def audit_markdown(audit: Audit) -> str:
    """The content of ``audit.md``."""
    written = audit.parameters[["parameter", "writes", "operations", "rules"]].astype(str)
    assumed = audit.parameters.query("multiplier_exponent.isna() and assumed_multiplier_exponent != 0")
    lines = [
        f"# Audit: {audit.verdict.upper()}",
        "",
        audit.sentence(),
        "",
        f"![exponents of init std and learning rate]({audit_result.PICTURE})",
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
    ]
    return "\n".join(lines) + "\n"


def markdown_table(frame: pd.DataFrame) -> str:
    """A frame of strings as a Markdown table."""
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(value).replace("|", "\\|") for value in row) + " |" for row in rows)


def find_checks(directories: Sequence[Path]) -> list[Path]:
    """Every check's directory in or below `directories`; one that holds none stands for itself."""
    found = {path.parent: None for d in directories for path in sorted(d.rglob(RECORDS)) or [d / RECORDS]}
    return list(found)


def label_checks(checks: Mapping[Path, CoordCheck]) -> dict[Path, dict[str, str]]:
    """What tells each check from the others: the configuration values in which they differ.

    Returns:
        For each check the same keys with its values; the directory alone if the configurations do not tell.
    """
    flat = {path: flatten(check.config, without=BOOKKEEPING) for path, check in checks.items()}
    keys = list(dict.fromkeys(key for values in flat.values() for key in values))
    differing = [key for key in keys if len({json.dumps(v.get(key), default=str) for v in flat.values()}) > 1]
    labels = {
        path: {key.removesuffix(".name"): str(values.get(key)) for key in differing} for path, values in flat.items()
    }
    telling = bool(differing) and len({tuple(label.values()) for label in labels.values()}) == len(labels)
    return labels if telling else {path: {"": str(path)} for path in checks}


def label_text(label: Mapping[str, str]) -> str:
    """A label on one line."""
    return " ".join(f"{key}={value}" if key else value for key, value in label.items())


def arrange(labels: Sequence[Mapping[str, str]]) -> list[list[str | None]]:
    """Labels as a grid, a little wider than high: some keys make the rows, the others the columns.

    >>> arrange([{"a": "1", "b": "x"}, {"a": "2", "b": "x"}, {"a": "1", "b": "y"}])
    [['a=1 b=x', 'a=1 b=y'], ['a=2 b=x', None]]
    """
    keys = list(labels[0])
    splits = [set(rows) for n in range(len(keys) + 1) for rows in itertools.combinations(keys, n)]

    def places(label: Mapping[str, str], chosen: set[str]) -> tuple[str, ...]:
        return tuple(label[key] for key in keys if key in chosen)

    def shape(rows: set[str]) -> tuple[int, int]:
        return len({places(x, rows) for x in labels}), len({places(x, set(keys) - rows) for x in labels})

    rows = min(splits, key=lambda split: abs(math.log(1.3 * shape(split)[0] / shape(split)[1])))
    at = {(places(x, rows), places(x, set(keys) - rows)): label_text(x) for x in labels}
    columns = list(dict.fromkeys(column for _, column in at))
    return [[at.get((row, column)) for column in columns] for row in dict.fromkeys(row for row, _ in at)]


def summarize(checks: Mapping[Path, CoordCheck], directory: Path, console: Console) -> list[Path]:
    """One table and one figure over many cells, in `directory`.

    Returns:
        The files ``summary.png summary.csv summary.md``.
    """
    keyed = label_checks(checks)
    labels = {path: label_text(label) for path, label in keyed.items()}
    rows = [{"cell": labels[path], **summary_row(check)} for path, check in checks.items()]
    frame = pd.DataFrame(rows)
    table = Table(title=f"{len(frame)} cell{'s' if len(frame) > 1 else ''}", title_justify="left", title_style="bold")
    for name in frame.columns:
        table.add_column(name)
    for cell, said, *rest in frame.to_numpy().tolist():
        table.add_row(escape(cell), f"[{STYLES[said]}]{said}[/]", *map(escape, rest))
    console.print(table)
    files = [directory / f"summary.{kind}" for kind in ("png", "csv", "md")]
    figure = summary_figure({labels[path]: check for path, check in checks.items()}, arrange(list(keyed.values())))
    save_figure(figure, files[0], {labels[path]: check.config for path, check in checks.items()})
    write_atomically(files[1], lambda path: frame.to_csv(path, index=False))
    write_atomically(files[2], lambda path: path.write_text(markdown_table(frame) + "\n"))
    console.print("Summary: " + "  ".join(map(str, files)), markup=False)
    return files


def summary_row(check: CoordCheck) -> dict[str, str]:
    """A check in one line."""
    first = next((finding for finding in check.findings if finding.fault), None)
    return {
        "verdict": check.verdict,
        "at fault": f"{check.slopes['verdict'].isin(FAILURES).sum()} of {len(check.slopes)}",
        "first at fault": "" if first is None else first.parameter or first.module,
        "fault": "" if first is None else first.fault,
        "control": {True: "fails as it must", False: "passes: check cannot see", None: "none"}[check.control.saw],
    }
