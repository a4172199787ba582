"""Frames in the format of ``mup.coord_check``, in both directions: a team that records already keeps its recorder.

Columns ``width module t l1`` and, where there is one, ``l2``; t counts from 1, the module itself is "", several seeds
are repeated rows, and so are several calls of a module in one forward pass. Source: microsoft/mup
``mup/coord_check.py``, ``get_coord_data``.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from coordcheck.records.read import numbers, read_csv, read_parquet
from coordcheck.records.schema import LOSS, ROOT, check_records

REQUIRED = ["width", "module", "t", "l1"]
ANEW = "mup.coord_check.get_coord_data(...).to_csv('coords.csv')."


def read_mup(path: Path) -> pd.DataFrame:
    """Reads a CSV or parquet file in mup's format.

    Returns:
        Records with the columns of :meth:`coordcheck.Recorder.records`. What mup's format does not say is
        NaN, but for roles: the modules whose output is the model's are "readout", all others "hidden".

    Raises:
        ValueError: if the file is missing, lacks a column or holds what its columns cannot.
    """
    frame = read_parquet(path, ANEW) if path.suffix == ".parquet" else read_csv(path, ANEW)
    missing = [name for name in REQUIRED if name not in frame.columns]
    if missing or not len(frame):
        raise ValueError(
            f"a frame in mup's format has rows with the columns {REQUIRED}; {path} has {len(frame)} rows and lacks "
            f"{missing}. For example {ANEW}"
        )
    l1 = numbers(frame, "l1", path, ANEW)
    modules = frame["module"].astype("str").fillna("").replace("", ROOT)
    readouts = _modules_with_the_models_output(frame.assign(module=modules, l1=l1))
    l2 = numbers(frame, "l2", path, ANEW) if "l2" in frame else pd.Series(np.nan, frame.index)
    records = pd.DataFrame(
        {
            "width": numbers(frame, "width", path, ANEW),
            "seed": 0,
            "step": numbers(frame, "t", path, ANEW) - 1,
            "module": modules,
            "order": modules.map({name: i for i, name in enumerate(dict.fromkeys(modules))}),
            "role": modules.isin(readouts).map({True: "readout", False: "hidden"}).astype("string"),
            "kind": "activation",
            "l1": l1,
            "rms": l2,
            "max": np.nan,
            "nonfinite": (~np.isfinite(l1)).astype(int),
            "count": np.nan,
        }
    )
    records = _pool_calls(records.assign(seed=_seeds(records)))
    try:
        return check_records(records)
    except ValueError as error:
        raise ValueError(f"{path}, where step is t - 1: {error}") from error


def _seeds(records: pd.DataFrame) -> pd.Series:
    """The seed of each row: mup goes through the seeds of a width one by one, within each through a module's calls.

    The model itself runs once for each seed; without its rows the module that ran least often tells how many there are.
    """
    rows = records.groupby(["width", "step", "module"], dropna=False)
    mine, nth = rows["order"].transform("size"), rows.cumcount()
    own = mine.where(records["module"] == ROOT)
    seeds = own.groupby([records["width"], records["step"]], dropna=False).transform("min")
    least = mine.groupby([records["width"], records["step"]], dropna=False).transform("min")
    return (nth * np.minimum(seeds.fillna(least), mine) // mine).astype(int)


def _pool_calls(records: pd.DataFrame) -> pd.DataFrame:
    """One row for each module of a run: the entries of its calls together, which are equally many in each."""
    keys = ["width", "seed", "step", "module"]
    if not records.duplicated(keys).any():
        return records
    squares = records.assign(rms=records["rms"] ** 2)
    calls = squares.groupby(keys, sort=False, dropna=False)
    pooled = calls.first().assign(
        l1=calls["l1"].agg(lambda of: of.mean(skipna=False)),
        rms=calls["rms"].agg(lambda of: of.mean(skipna=False)),
        nonfinite=calls["nonfinite"].sum(),
    )
    pooled = pooled.reset_index()
    return pooled.assign(rms=pooled["rms"] ** 0.5)[records.columns]


def _modules_with_the_models_output(frame: pd.DataFrame) -> set[str]:
    """The model, or what ran last, and every module with exactly its sizes."""
    last = ROOT if (frame["module"] == ROOT).any() else frame["module"].iloc[-1]
    by_module = frame.groupby("module")["l1"].agg(tuple)
    return {str(module) for module, sizes in by_module.items() if sizes == by_module[last]} | {str(last)}


def to_mup(records: pd.DataFrame) -> pd.DataFrame:
    """Outputs of modules in mup's format, for ``mup.coord_check.plot_coord_data``."""
    others = records["role"].isin([LOSS, "attention_logits"])
    rows = records[(records["kind"] == "activation") & ~others & records["l1"].notna()]
    rows = rows.sort_values(["seed", "width", "step", "order"], kind="stable")
    return pd.DataFrame(
        {
            "width": rows["width"],
            "module": rows["module"].replace(ROOT, ""),
            "t": rows["step"] + 1,
            "l1": rows["l1"],
            "l2": rows["rms"],
        }
    ).reset_index(drop=True)
