"""The picture of an audit: exponents beside the expected ones."""

from collections.abc import Collection

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from coordcheck.judge.audit import AUDIT_FAULTS, AuditResult
from coordcheck.records.files import AUDIT_TABLE
from coordcheck.report.figures.rows import MOST_ROWS
from coordcheck.report.figures.style import SMALL, VERDICT_COLOURS, ink, plain, text_width

# by the quantity that is then wrong
INIT_FAULTS = ("init", "uninitialized")
RATE_FAULTS = ("learning_rate", "ungrouped", "regrouped")


def audit_figure(audit: AuditResult) -> Figure:
    """Exponents of init std and of the learning rate, one row per parameter in the model's order."""
    rows = shown(audit.parameters)
    left_out = len(audit.parameters) - len(rows)
    height = 0.19 * len(rows) + 1.9
    figure = Figure(figsize=(13, height))
    figure.suptitle(
        f"{audit.verdict.upper()}   audit against {audit.expect}, widths {', '.join(map(str, audit.widths))}",
        fontsize=13,
        fontweight="bold",
        color=ink(VERDICT_COLOURS[audit.verdict]),
        y=1 - 0.15 / height,
        va="top",
    )
    panels = figure.subplots(1, 2, sharey=True)
    draw_exponents(panels[0], rows, "std", faulty(audit, INIT_FAULTS), "init std: exponent of width")
    draw_exponents(panels[1], rows, "lr", faulty(audit, RATE_FAULTS), "learning rate: exponent of width")
    figure.legend(*panels[1].get_legend_handles_labels(), loc="lower right", ncols=3, fontsize=SMALL + 1)
    names = [" = ".join(filter(None, pair)) for pair in rows[["parameter", "tied_to"]].to_numpy()]
    labels = [
        f"{'' if said == 'pass' else f'{said}: '}{plain(name)} ({role})"
        for name, role, said in zip(names, rows["role"], rows["verdict"], strict=True)
    ]
    left = min(text_width(labels) + 0.2, 6.0)
    figure.subplots_adjust(left / 13, 0.7 / height, 1 - 0.15 / 13, 1 - 0.75 / height, 0.05)
    panels[0].set_yticks(range(len(rows)), labels, fontsize=SMALL)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    for tick, said in zip(panels[0].get_yticklabels(), rows["verdict"], strict=True):
        if said != "pass":
            tick.set(color=ink(VERDICT_COLOURS["fail" if said in AUDIT_FAULTS else "inconclusive"]), fontweight="bold")
    if left_out:
        figure.text(0.01, 0.15 / height, f"{left_out} parameters more in {AUDIT_TABLE}", fontsize=SMALL + 1)
    return figure


def shown(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that there is room for, in the model's order: first those that do not pass."""
    if len(rows) <= MOST_ROWS:
        return rows
    order = (rows["verdict"] == "pass").to_numpy().argsort(kind="stable")[:MOST_ROWS]
    return rows.iloc[np.sort(order)]


def faulty(audit: AuditResult, problems: Collection[str]) -> set[str]:
    """The parameters with a finding of these classes, though another one may be their worst."""
    return {finding.parameter for finding in audit.findings if finding.verdict in problems}


def draw_exponents(axes: Axes, rows: pd.DataFrame, quantity: str, at_fault: Collection[str], title: str) -> None:
    """Dots with their intervals beside the expected values; a fault is a red triangle joined to what was expected.

    Args:
        axes: Of one quantity.
        rows: Of the audit.
        quantity: "std" or "lr".
        at_fault: The parameters whose value of this very quantity is wrong.
        title: Of the panel.
    """
    at = np.arange(len(rows))
    measured = rows[f"{quantity}_exponent"].to_numpy(dtype=float)
    expected = rows[f"expected_{quantity}_exponent"].to_numpy(dtype=float)
    wrong = rows["parameter"].isin(at_fault).to_numpy() & ~np.isnan(measured)
    known = ~np.isnan(measured)
    axes.scatter(
        expected[known], at[known], marker="|", s=130, color="#888888", linewidths=2.2, label="expected", zorder=2
    )
    if quantity == "std":
        axes.hlines(
            at[known],
            rows["std_low"][known],
            rows["std_high"][known],
            color=ink(VERDICT_COLOURS["pass"]),
            linewidth=1,
            alpha=0.5,
        )
    right = known & ~wrong
    axes.scatter(measured[right], at[right], s=16, color=ink(VERDICT_COLOURS["pass"]), label="measured", zorder=3)
    axes.hlines(
        at[wrong], expected[wrong], measured[wrong], color=ink(VERDICT_COLOURS["fail"]), linewidth=1.2, zorder=2
    )
    axes.scatter(
        measured[wrong],
        at[wrong],
        marker="^",
        s=34,
        color=ink(VERDICT_COLOURS["fail"]),
        label="measured, at fault",
        zorder=3,
    )
    axes.set_title(title, fontsize=10, y=1.0)
    low, high = (float(end) for end in axes.get_xlim())
    axes.set_xlim(min(low, -1.2), max(high, 0.3))
    axes.grid(axis="x", alpha=0.3, linewidth=0.5)
    axes.tick_params(labelsize=SMALL)
