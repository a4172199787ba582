"""Pages: what a template is filled with."""

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import yaml

from coordcheck.judge.judgement import Judgement
from coordcheck.judge.loss import InitialLoss
from coordcheck.records.names import LONGEST, printable
from coordcheck.report.figures.style import VERDICT_COLOURS
from coordcheck.report.markdown import gate_sentence, unaudited
from coordcheck.report.page.chart import shown_slopes, specification
from coordcheck.report.page.script import vega
from coordcheck.report.tables import alignment_rows, audit_rows


@cache
def _environment() -> jinja2.Environment:
    """Templates that escape whatever they are given."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("coordcheck.report.page"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    made.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    made.filters["printable"] = lambda text: printable(text, LONGEST)
    return made


def check_page(check: Judgement) -> str:
    """The content of ``report.html``."""
    slopes = shown_slopes(check)
    said = (check.control, check.rerun_sentence(), gate_sentence(check), InitialLoss.of(check.records))
    audit = None if check.audit is None else audit_rows(check.audit)
    return (
        _environment()
        .get_template("check.html")
        .render(
            title=check.cell(),
            verdict=check.verdict,
            colours=VERDICT_COLOURS,
            sentence=check.sentence(),
            said=[str(each) for each in said if each]
            + [*check.skipped]
            + ([unaudited(check)] if check.unaudited else []),
            findings=[{"fault": f.fault or "undecided", "text": str(f)} for f in check.findings],
            chart=specification(check, slopes),
            left_out=len(check.slopes) - len(slopes),
            curves=len(check.slopes),
            tables=[
                {"title": title, "columns": [*rows.columns], "rows": rows.astype(str).to_numpy().tolist()}
                for title, rows in (
                    ("Parameters before training", audit),
                    ("Alignment exponents", alignment_rows(check.alignments) if len(check.alignments) else None),
                )
                if rows is not None
            ],
            configuration=yaml.safe_dump(json.loads(json.dumps(check.config, default=str)), sort_keys=False),
            versions=", ".join(f"{name} {number}" for name, number in check.versions.items()) or "unknown versions",
            vega=vega(),
        )
    )


def index_page(title: str, cells: Mapping[Path, Mapping[str, str]], directory: Path) -> str:
    """A page that links to those of several checks.

    Args:
        title: Of the page.
        cells: For each check's directory what is told of it, with its "verdict".
        directory: Where the page is written, from where links begin.
    """
    rows: list[dict[str, Any]] = [
        {"href": Path(os.path.relpath(path / "report.html", directory)).as_posix(), "facts": facts}
        for path, facts in cells.items()
    ]
    return _environment().get_template("index.html").render(title=title, rows=rows, colours=VERDICT_COLOURS)
