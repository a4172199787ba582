"""Pages: what a template is filled with."""

import json
import os
from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import yaml

from coordcheck.judge.baseline import Baseline
from coordcheck.judge.comparison import Comparison
from coordcheck.judge.judgement import Judgement
from coordcheck.judge.loss import InitialLoss
from coordcheck.records.files import REPORT_PAGE
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
            tables=[_table("Parameters before training", audit)] * (audit is not None)
            + [_table("Alignment exponents", alignment_rows(check.alignments))] * bool(len(check.alignments)),
            configuration=yaml.safe_dump(json.loads(json.dumps(check.config, default=str)), sort_keys=False),
            versions=", ".join(f"{name} {number}" for name, number in check.versions.items()) or "unknown versions",
            vega=vega(),
        )
    )


def _table(title: str, rows: pd.DataFrame | None) -> dict[str, Any]:
    """A table that a click on a head sorts."""
    rows = pd.DataFrame() if rows is None else rows
    return {"title": title, "columns": [*rows.columns], "rows": rows.astype(str).to_numpy().tolist()}


def comparison_page(comparison: Comparison, picture: bytes) -> str:
    """The content of ``changes.html``.

    Args:
        comparison: What changed.
        picture: That shows it, a PNG.
    """
    return _change_page(
        comparison,
        picture,
        title=f"{comparison.before} → {comparison.after}",
        verdict=comparison.verdict,
        word=comparison.sentence().partition(":")[0],
        sentence=comparison.sentence(),
        differing=comparison.differing,
        reports={},
    )


def cure_page(before: Judgement, after: Judgement, picture: bytes) -> str:
    """The content of ``cure.html``: both checks of a cure on one page.

    Args:
        before: The check without it, whose page is ``before/report.html``.
        after: The check with it, likewise.
        picture: Of the cure, a PNG.
    """
    return _change_page(
        Comparison.of(Baseline.of(before), Baseline.of(after), ("before", "after")),
        picture,
        title=f"with the cure: {after.cell()}",
        verdict=after.verdict,
        word=after.verdict.upper(),
        sentence="Every curve before the cure and with it, largest change first. Both reports:",
        differing=[],
        reports={
            f"before: {before.sentence()}": f"before/{REPORT_PAGE}",
            f"after: {after.sentence()}": f"after/{REPORT_PAGE}",
        },
    )


def _change_page(comparison: Comparison, picture: bytes, **said: Any) -> str:
    """A picture of what changed, and the curves as a table."""
    changes = comparison.changes
    rows = changes[["module", "kind", "step"]].assign(status=changes["status"].replace("regressed", "changed"))
    for name in ("before", "now", "change", "low", "high"):
        rows[name] = ["" if np.isnan(value) else f"{value:+.3f}" for value in changes[name]]
    rows["note"] = changes["note"]
    picture64 = b64encode(picture).decode()
    template = _environment().get_template("comparison.html")
    return template.render(**said, colours=VERDICT_COLOURS, picture=picture64, tables=[_table("Curves", rows)])


def index_page(title: str, cells: Mapping[Path, Mapping[str, str]], directory: Path) -> str:
    """A page that links to those of several checks.

    Args:
        title: Of the page.
        cells: For each check's directory what is told of it, with its "verdict".
        directory: Where the page is written, from where links begin.
    """
    rows: list[dict[str, Any]] = [
        {"href": Path(os.path.relpath(path / REPORT_PAGE, directory)).as_posix(), "facts": facts}
        for path, facts in cells.items()
    ]
    return _environment().get_template("index.html").render(title=title, rows=rows, colours=VERDICT_COLOURS)
