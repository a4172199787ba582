"""Verdicts as tables of text."""

import math
import re
from collections.abc import Mapping

import pandas as pd

from coordcheck.judge.audit import AuditResult
from coordcheck.judge.finding import format_range
from coordcheck.judge.history import History
from coordcheck.judge.judgement import Judgement
from coordcheck.judge.ruling import describe_change
from coordcheck.judge.verdict import worst_first
from coordcheck.records.names import LONGEST, printable

WORST = 10
APART = 1.1  # times, from which on two initial sizes differ by more than chance
LONGEST_CELL = 400  # characters


def worst_curves(check: Judgement, most: int = WORST) -> pd.DataFrame:
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


def alignment_rows(alignments: pd.DataFrame) -> pd.DataFrame:
    """The alignment exponents of layers as text, a column for each step."""
    told = alignments.assign(
        said=[f"{row.alignment:+.2f} [{row.ci_low:+.2f}, {row.ci_high:+.2f}]" for row in alignments.itertuples()],
        at=[f"step {step}" for step in alignments["step"]],
    )
    layers = told[["module", "role"]].drop_duplicates()
    table = told.pivot(index="module", columns="at", values="said").reindex(layers["module"]).fillna("")
    return layers.astype("str").reset_index(drop=True).join(table.reset_index(drop=True))


def audit_rows(audit: AuditResult) -> pd.DataFrame:
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


def differing_sizes(audits: Mapping[str, AuditResult | None]) -> pd.DataFrame:
    """Initial sizes in which checks differ by a constant, which no slope shows: std√fan_in, a column for each check.

    Parameters of blocks share a row (``*`` is a number), and so do others of the same sizes. What a check's model does
    not have is empty.
    """
    sizes = {}
    for label, audit in audits.items():
        if audit is not None:
            families = audit.parameters["parameter"].str.replace(r"(?<![^.])\d+(?![^.])", "*", regex=True)
            sizes[label] = audit.parameters["std_fan_in"].groupby(families, sort=False).median()
    told = pd.DataFrame(sizes)
    told = told[told.max(axis=1) > APART * told.min(axis=1)].map(lambda size: "" if size != size else f"{size:.2f}")
    rows = [
        {"std√fan_in": str(group.index[0]) + (f" and {len(group) - 1} more" if len(group) > 1 else ""), **group.iloc[0]}
        for _, group in told.groupby(list(told.columns), sort=False)
    ]
    return pd.DataFrame(rows, columns=["std√fan_in", *sizes], dtype=str)


def format_exponent(measured: float, expected: float) -> str:
    """An exponent, with the expected one where they differ as printed; empty where there is none."""
    if math.isnan(measured):
        return ""
    said = f"{measured + 0.0:+.2f}".replace("-0.00", "+0.00")
    return said if abs(measured - expected) < 0.05 else f"{said} not {expected:+.2f}"


def audit_sentences(audit: AuditResult) -> list[str]:
    """Findings that say the same of several parameters as one sentence."""
    return [
        f"{finding.verdict}: {finding}" + (f" The same holds for {len(names) - 1} more." if len(names) > 1 else "")
        for finding, names in audit.grouped_findings()
    ]


def in_markdown(text: object, most: int = LONGEST) -> str:
    r"""Text of others in a line or a cell of Markdown: it shows as it is and begins or ends nothing.

    >>> in_markdown("a|b <script> `x` $y$")
    'a\\|b &lt;script> \\`x\\` \\$y\\$'
    """
    said = re.sub(r"([\\|`$~])", r"\\\1", printable(text, most).replace("&", "&amp;").replace("<", "&lt;"))
    said = re.sub(r"\*(?=\S)|(?<=\S)\*|(?<![^\W_])_|_(?![^\W_])|(?<=\])(?=\()", r"\\\g<0>", said)  # emphasis, and links
    return re.sub(r"^(?=[#>=]|[-+] )", r"\\", said)


def markdown_table(frame: pd.DataFrame) -> str:
    """A frame of strings as a Markdown table."""
    rows = [
        [in_markdown(value, LONGEST_CELL) for value in row] for row in [list(frame.columns), *frame.to_numpy().tolist()]
    ]
    rows.insert(1, ["---"] * len(frame.columns))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def changed_curves(changes: pd.DataFrame) -> pd.DataFrame:
    """Curves that are not as in the baseline, as text, largest change first."""
    rows = changes[changes["status"] != "same"]
    return pd.DataFrame(
        {
            "module": rows["module"],
            "kind": rows["kind"],
            "step": rows["step"].astype(str),
            "status": rows["status"],
            "change": [describe_change(row) for _, row in rows.iterrows()],
        }
    )


def history_rows(history: History) -> pd.DataFrame:
    """The entries of a history as text, oldest first, each with what changed since the one before."""
    said = ["", *(step.sentence() for step in history.steps)]
    return pd.DataFrame({"entry": [*dict.fromkeys(history.slopes["entry"])], "since the one before": said})
