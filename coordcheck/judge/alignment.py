"""How well the terms of a layer's own update are aligned with what meets them (Everett et al., arXiv 2407.05872).

Of a sum over width terms an entry grows like width^1 times the sizes of both factors if the terms are aligned, like
width^1/2 if they are independent. The exponents say which learning rate a layer can bear.
"""

import numpy as np
import pandas as pd

from coordcheck.judge.slopes import fit
from coordcheck.records.schema import ROOT, RUN_AND_CURVE, cell_columns

GROWING = ("hidden", "readout", "projection")  # roles whose fan-in grows
INDEPENDENT, ALIGNED = 0.5, 1.0


def alignments(records: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """The exponents of layers whose fan-in grows: slope(effective update) - slope(W_t - W_0) - slope(x), at each step.

    All three sizes are root mean squares. A bias takes part in an effective update, so that where its change is as
    large as that of the product the exponent tends to that of its learning rate.

    Args:
        records: With the kinds "effective_update" and "update", else there is nothing to tell.
        confidence: Of the interval.

    Returns:
        One row per layer and step in forward order: the cell's columns, ``module order role step alignment ci_low
        ci_high n_widths n_seeds``. No rows where a kind is missing.
    """
    names = [*cell_columns(records), "module", "order", "role", "step", "alignment", "ci_low", "ci_high"]
    names += ["n_widths", "n_seeds"]
    own = records[(records["kind"] == "effective_update") & records["role"].isin(GROWING)]
    own = own[own["input_rms"].notna()] if "input_rms" in own else own.iloc[:0]
    told = _ratios(own, records[records["kind"] == "update"]) if len(own) else own
    if not len(told):
        return pd.DataFrame(columns=names)
    found = fit(told, confidence).rename(columns={"slope": "alignment"})[names].dropna(subset="alignment")
    return found.astype({"n_widths": int, "n_seeds": int})


def _ratios(own: pd.DataFrame, updates: pd.DataFrame) -> pd.DataFrame:
    """Effective updates, as their l1 their size over that of the weight's change and of the input."""
    keys = [*cell_columns(own), *(name for name in RUN_AND_CURVE if name not in ("module", "kind"))]
    sizes = updates[[*keys, "module", "rms"]].rename(columns={"module": "of", "rms": "update_rms"})
    layers = [module.partition("[")[0] for module in own["module"]]
    weights = [f"{layer}.weight".removeprefix(f"{ROOT}.") for layer in layers]
    joined = own.assign(of=weights).merge(sizes, on=[*keys, "of"], how="inner")
    ratio = joined["rms"] / (joined["update_rms"] * joined["input_rms"])
    usable = np.isfinite(ratio) & (ratio > 0)
    told: pd.DataFrame = joined.assign(l1=ratio)[usable].drop(columns=["of", "update_rms"])
    return told
