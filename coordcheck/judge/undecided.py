"""What is undecided, and what would decide it."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from coordcheck.config.schema import GateConfig
from coordcheck.judge.finding import Curve, Finding, describe
from coordcheck.judge.slopes import MIN_WIDTHS
from coordcheck.judge.statistics import half_width
from coordcheck.judge.verdict import worst_first
from coordcheck.records.schema import LOSS, ROOT, WEIGHTS

MANY_SEEDS = 1000


def undecided(judged: pd.DataFrame, gate: GateConfig, parameters: Mapping[str, str]) -> list[Finding]:
    """One finding for each module that is neither at fault nor right for certain, worst first.

    Args:
        judged: As :func:`judge` returns.
        gate: As given to it.
        parameters: The weight of each module that has one, see :func:`weights`.
    """
    open_questions = judged[judged["verdict"] == "inconclusive"]
    worst = worst_first(open_questions).drop_duplicates("module")
    return [
        Finding("", row["module"], parameters.get(row["module"]), describe(row), _advice(row, gate), Curve.of(row))
        for _, row in worst.iterrows()
    ]


def weights(records: pd.DataFrame) -> dict[str, str]:
    """The name of each recorded module's own weight, where it has one.

    A recorder states the role of these modules only, and that of attention logits and the loss, which have none. Frames
    in mup's format, which know no count, state other roles.
    """
    of_parameters = {*records["module"][records["kind"].isin(WEIGHTS)]}
    parameter = records["module"].str.endswith(("weight", "bias"))  # as gradients are recorded
    parameter |= records["module"].isin(of_parameters)
    stated = (
        ~parameter
        & records["role"].notna()
        & ~records["role"].isin(("attention_logits", LOSS))
        & records["count"].notna()
    )
    modules = records.loc[stated, "module"].unique()
    own = {module: f"{module.partition('[')[0]}.weight".removeprefix(f"{ROOT}.") for module in modules}
    return own | {name: name for name in records.loc[parameter, "module"].unique()}


def _advice(row: pd.Series, gate: GateConfig) -> str:
    if row["n_widths"] < MIN_WIDTHS:
        return "Choose widths that fit into memory, or leave this module out with `modules`."
    if row["n_seeds"] < 2:
        return "One seed gives no interval: use at least 2, better 5."
    needed = seeds_to_decide(row, gate)
    return f"About {needed} seeds would decide." if needed else "The slope lies on the border: use wider widths."


def seeds_to_decide(row: pd.Series, gate: GateConfig) -> int | None:
    """The smallest number of seeds whose interval, with the spread seen so far, leaves the borders out.

    Returns:
        None if more than 1000 would be needed.
    """
    borders = (
        row["expected_low"] - gate.tolerance.vanishes[row["kind"]],
        row["expected_high"] + gate.tolerance.explodes[row["kind"]],
    )
    margin = min(abs(row["slope"] - border) for border in borders)
    seeds = np.arange(2, MANY_SEEDS + 1)
    enough = seeds[half_width(row["slope_std"], seeds, gate.confidence) < margin]
    return int(enough[0]) if len(enough) else None
