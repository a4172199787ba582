"""Columns, kinds and names of records: what everybody who writes or reads them agrees on.

A record is one row of a frame: (cell, width, seed, step, module, kind) with its statistics. Imports neither torch nor
pandas, so that whoever only needs a name does not wait for them.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("activation", "delta", "effective_update", "gradient")
ROOT = "(model)"  # stands for the name of the whole model, which torch leaves empty


LOSS = "loss"  # the role of the loss
CLASSES = "classes"  # the name, among the attrs of a frame, of how many the last readout tells apart
ARROW = " -> "  # between the rules that wrote a parameter, in an audit


RECORD_COLUMNS = (
    "width",
    "seed",
    "step",
    "module",
    "order",
    "role",
    "kind",
    "l1",
    "rms",
    "max",
    "nonfinite",
    "count",
)


def cell_columns(frame: "pd.DataFrame") -> list[str]:
    """The columns of `frame`, records or slopes, that say which cell: all that stand before the known ones."""
    known = {*RECORD_COLUMNS, "slope"}
    return [name for name in frame.columns[: next(i for i, c in enumerate(frame.columns) if c in known)]]


def check_records(records: "pd.DataFrame") -> None:
    """Makes sure that a frame which anybody may have written can be judged.

    Raises:
        ValueError: if there are no records but the loss, a column is missing or unknown, or a kind is unknown.
    """
    if not len(records):
        raise ValueError("there are no records to judge. For example record one step: recorder.step().")
    missing = [name for name in RECORD_COLUMNS if name not in records.columns]
    cell = [] if missing else cell_columns(records)
    strange = [name for name in records.columns if name not in (*RECORD_COLUMNS, *cell)]
    if missing or strange:
        raise ValueError(
            f"records have the columns {list(RECORD_COLUMNS)}, after any that say which cell; these lack {missing} and "
            f"{strange} stand among or after them. For example "
            f"records[['cell', *coordcheck.records.schema.RECORD_COLUMNS]]."
        )
    unknown = sorted(set(records["kind"]) - set(KINDS))
    if unknown:
        raise ValueError(
            f"the kind of a record is one of {list(KINDS)}; got {unknown}. "
            f"For example records[records['kind'] == 'activation']."
        )
    refuse_the_loss_alone(records)


def refuse_the_loss_alone(records: "pd.DataFrame") -> None:
    """Makes sure that there is more to judge than the loss, of which nothing is expected.

    Raises:
        ValueError: if there is not.
    """
    if (records["role"].fillna("") == LOSS).all():
        raise ValueError(
            "these records hold nothing but the loss, so there is no curve to judge. For example record all modules: "
            "modules=['*']."
        )


def curve_columns(frame: "pd.DataFrame") -> list[str]:
    """What identifies a curve of `frame`."""
    return [*cell_columns(frame), "module", "kind", "step"]


def sizes(records: "pd.DataFrame") -> "pd.Series":
    """The size whose slope is fitted: l1, or rms where a recorder knew only that."""
    unknown = records["l1"].isna() & (records["nonfinite"] == 0)
    return records["l1"].where(~unknown, records["rms"])


def repeated_seeds(records: "pd.DataFrame") -> list[int]:
    """Seeds whose sizes equal those of an earlier seed bit for bit: the same sample again, not another one."""
    size = sizes(records)
    telling = records.assign(size=size)[np.isfinite(size) & (size > 0)]
    ordered = telling.sort_values([*curve_columns(records), "width"])
    content = ordered.groupby("seed")["size"].agg(lambda of_seed: of_seed.to_numpy().tobytes())
    return [int(seed) for seed in content.index[content.duplicated()]]
