"""Many cells side by side: one table and one picture."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from coordcheck.config.load import flatten
from coordcheck.config.schema import BOOKKEEPING
from coordcheck.judge.judgement import Judgement
from coordcheck.judge.verdict import counts
from coordcheck.records.files import write_atomically, write_text
from coordcheck.report.console import STYLES, cell_text, new_table, say
from coordcheck.report.figures.style import save_figure
from coordcheck.report.figures.summary import summary_figure
from coordcheck.report.page.html import index_page
from coordcheck.report.tables import WORST, differing_sizes, markdown_table


def label_checks(checks: Mapping[Path, Judgement]) -> dict[Path, dict[str, str]]:
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


def summarize(checks: Mapping[Path, Judgement], directory: Path, console: Console) -> list[Path]:
    """One table and one figure over many cells, in `directory`.

    Returns:
        The files ``summary.png summary.csv summary.md summary.html``.
    """
    keyed = label_checks(checks)
    labels = {path: label_text(label) for path, label in keyed.items()}
    rows = [{"cell": labels[path], **summary_row(check)} for path, check in checks.items()]
    frame = pd.DataFrame(rows)
    table = new_table(f"{len(frame)} cell{'s' if len(frame) > 1 else ''}", console)
    for name in frame.columns:
        table.add_column(name)
    for cell, said, *rest in frame.to_numpy().tolist():
        table.add_row(
            cell_text(console, cell), f"[{STYLES[said]}]{said}[/]", *(cell_text(console, text) for text in rest)
        )
    console.print(table)
    sizes = differing_sizes({labels[path]: check.audit for path, check in checks.items()})
    if len(sizes) and frame.drop(columns="cell").duplicated(keep=False).all():  # else slopes tell cells apart
        _print_sizes(sizes, console)
    files = [directory / f"summary.{kind}" for kind in ("png", "csv", "md", "html")]
    figure = summary_figure({labels[path]: check for path, check in checks.items()}, arrange(list(keyed.values())))
    save_figure(figure, files[0], {labels[path]: check.config for path, check in checks.items()})
    write_atomically(files[1], lambda path: frame.to_csv(path, index=False))
    said = [markdown_table(frame), *([markdown_table(sizes)] if len(sizes) else [])]
    write_text(files[2], "\n\n".join(said) + "\n")
    write_text(files[3], index_page(f"{len(frame)} cells", dict(zip(checks, rows, strict=True)), directory))
    say(console, "Summary: " + "  ".join(map(str, files)))
    return files


def _print_sizes(sizes: pd.DataFrame, console: Console) -> None:
    """What tells cells apart where no verdict does."""
    table = new_table("no slope tells these cells apart; initial sizes do", console)
    for name in sizes.columns:
        table.add_column(cell_text(console, name))
    for row in sizes.head(WORST).to_numpy().tolist():
        table.add_row(*(cell_text(console, text) for text in row))
    console.print(table)


def summary_row(check: Judgement) -> dict[str, str]:
    """A check in one line."""
    first = next((finding for finding in check.findings if finding.fault), None)
    return {
        "verdict": check.verdict,
        "at fault": f"{counts(check.slopes)[0]} of {len(check.slopes)}",
        "first at fault": "" if first is None else first.parameter or first.module,
        "fault": "" if first is None else first.fault,
        "control": {True: "fails as it must", False: "passes: check cannot see", None: "none"}[check.control.saw],
    }
