"""What is undecided, and what would decide it."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from coordcheck.config.schema import GateConfig
from coordcheck.judge.finding import Curve, Finding, describe
from coordcheck.judge.slopes import MIN_WIDTHS
from coordcheck.judge.verdict import borders, worst_first
from coordcheck.records.schema import LOSS, PARAMETERS_OF, ROOT, WEIGHTS

CLEAR = 2.0  # standard errors between a slope and its border, from which on the runs that decide can be told
MOST_TIMES = 10.0  # as many runs as there are
PARAMETER_NAMES = ("weight", "bias", ".kernel", ".embedding", ".scale")  # of torch and of flax


def undecided(
    judged: pd.DataFrame, gate: GateConfig, parameters: Mapping[str, str], independent: bool = False
) -> list[Finding]:
    """One finding for each module that is neither at fault nor right for certain, worst first.

    Args:
        judged: As :func:`judge` returns.
        gate: As given to it.
        parameters: The weight of each module that has one, see :func:`weights`.
        independent: Whether no seed ran at two widths, as with ``seeds="auto"``.
    """
    open_questions = judged[judged["verdict"] == "inconclusive"]
    worst = worst_first(open_questions).drop_duplicates("module")
    return [
        Finding(
            "",
            row["module"],
            parameters.get(row["module"]),
            describe(row),
            _advice(row, gate, independent),
            Curve.of(row),
        )
        for _, row in worst.iterrows()
    ]


def weights(records: pd.DataFrame) -> dict[str, str]:
    """The name of each recorded module's own weight, where it has one.

    A recorder states the role of these modules only, and that of attention logits and the loss, which have none. Frames
    in mup's format, which know no count, state other roles.
    """
    of_parameters = {*records["module"][records["kind"].isin(WEIGHTS)]}
    parameter = records["module"].str.endswith(PARAMETER_NAMES)  # as gradients are recorded
    parameter |= records["module"].isin(of_parameters)
    stated = (
        ~parameter
        & records["role"].notna()
        & ~records["role"].isin(("attention_logits", LOSS))
        & records["count"].notna()
    )
    modules = records.loc[stated, "module"].unique()
    own = {module: f"{module.partition('[')[0]}.weight".removeprefix(f"{ROOT}.") for module in modules}
    own |= records.attrs.get(PARAMETERS_OF, {})
    return own | {name: name for name in records.loc[parameter, "module"].unique()}


def _advice(row: pd.Series, gate: GateConfig, independent: bool) -> str:
    if row["n_widths"] < MIN_WIDTHS:
        return "Choose widths that fit into memory, or leave this module out with `modules`."
    if row["n_seeds"] < 2:
        return "One seed gives no interval: use at least 2, better 5, or seeds=auto."
    needed = runs_to_decide(row, gate)
    if needed is not None and not independent:
        return f"About {-(-needed * row['n_seeds'] // row['n_runs'])} seeds would decide."
    if needed is not None:
        return f"About {needed} runs in all would decide: a larger budget."
    larger = "a larger budget" if independent else f"seeds={4 * row['n_seeds']}, or seeds=auto"
    return f"The border lies within the noise, which four times as many runs halve: {larger}; or use wider widths."


def runs_to_decide(row: pd.Series, gate: GateConfig) -> int | None:
    """How many runs in all would decide a curve, spread over widths as those that there are.

    That goes with the square of the distance to the border, so it is known to within a factor of two only where that
    distance is known well: at least :data:`CLEAR` standard errors.

    Returns:
        None where it is not known.
    """
    low, high = (float(border.iloc[0]) for border in borders(row.to_frame().T, gate))
    margin = min(abs(row["slope"] - low), abs(row["slope"] - high))
    if not np.isfinite(row["error"]) or margin < CLEAR * row["error"]:
        return None
    confidence = 2 * stdtr(row["df"], (row["ci_high"] - row["slope"]) / row["error"]) - 1
    times = np.geomspace(1.0, MOST_TIMES, 400)
    df = (row["df"] + 1) * times - 1
    enough = times[stdtrit(df, (1 + confidence) / 2) * row["error"] / np.sqrt(times) < margin]
    return max(row["n_runs"] + 1, int(np.ceil(row["n_runs"] * enough[0]))) if len(enough) else None
