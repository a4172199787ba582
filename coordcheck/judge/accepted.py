"""How far curves may lie off because of deviations that a user accepts by name.

An accepted init, multiplier or learning rate explains the curves of the module that uses the parameter, by as much as
it is off, and of the modules that hand its output on until the next weight matrix. What lies behind that was not
accepted.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from coordcheck.judge.audit_findings import AuditFinding
from coordcheck.records.schema import ROOT

MATRICES = ("input", "hidden", "readout", "projection")


def explained(judged: pd.DataFrame, accepted: Sequence[AuditFinding], parameters: pd.DataFrame | None) -> pd.DataFrame:
    """By how much accepted deviations widen the range of each curve.

    Args:
        judged: Curves, one row each.
        accepted: What an audit found that is accepted.
        parameters: Of that audit.

    Returns:
        Columns ``low`` (zero or less), ``high`` (zero or more) and ``who`` (the parameter; empty), by curve.
    """
    widened = pd.DataFrame({"low": 0.0, "high": 0.0, "who": ""}, index=judged.index)
    if parameters is None or not accepted:
        return widened
    rows = {str(row["parameter"]): row for _, row in parameters.iterrows()}
    modules = judged["module"].str.replace(r"\[.*", "", regex=True)
    others = {place for row in rows.values() if row["role"] in MATRICES for place in places(row)}
    for finding in accepted:
        shift = finding.quantity.exponent - finding.quantity.expected
        if finding.quantity.name not in ("init_std", "multiplier", "learning_rate") or not np.isfinite(shift):
            continue
        since = 1 if finding.quantity.name == "learning_rate" else 0
        mine = places(rows[finding.parameter])
        here = modules.isin(mine) & (judged["kind"] != "gradient")
        for place in mine:
            begins = judged["order"][modules.eq(place) & (judged["kind"] != "gradient")].min()
            next_one = judged["order"][modules.isin(others - mine) & (judged["order"] > begins)].min()
            between = judged["order"].gt(begins) & ~judged["order"].ge(next_one)
            here |= between & judged["kind"].isin(("activation", "delta")) & judged["role"].ne("attention_logits")
        here &= (judged["step"] >= since) & ~np.isinf(judged["expected_high"])
        widened.loc[here, "low"] += min(0.0, shift)
        widened.loc[here, "high"] += max(0.0, shift)
        widened.loc[here, "who"] = finding.parameter
    return widened


def places(row: pd.Series) -> set[str]:
    """The modules that use a parameter, as they were read, else the one that holds it."""
    used = {str(row[name]).partition(" in ")[2] for name in ("used_in", "readout_used_in")} - {""}
    return used or {str(row["module"]) or ROOT}
