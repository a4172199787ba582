"""One run from the records of the ranks that trained it: from a record, the sums that made it can be had back."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from coordcheck.records.schema import CLASSES, LOSS, RANK, RANKS, RUN_AND_CURVE, VARYING


def rank_of_frame(frame: pd.DataFrame) -> tuple[int, int] | None:
    """Which rank of how many a frame is from; None of one that is a whole run, or several."""
    rank, ranks = frame.attrs.get(RANK), frame.attrs.get(RANKS)
    if rank is None and ranks is None:
        return None
    if type(rank) is not int or type(ranks) is not int or not 0 <= rank < ranks:
        raise ValueError(
            f"the attrs of a frame say which rank of how many it is from; these say {rank!r} of {ranks!r}. "
            f"For example record it anew."
        )
    return rank, ranks


def pooled(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The records of all ranks that trained one model together as those of one process.

    What is split over ranks adds up. What several hold whole is there several times, which no mean and no maximum
    notices; ``count`` does.

    Args:
        frames: One for each rank, as :meth:`coordcheck.Recorder.records` returns them on it.
    """
    rows = pd.concat(frames, ignore_index=True)
    varying = {module for frame in frames for module in frame.attrs.get(VARYING, ())}
    # on one rank nobody knows that another's expert had other tokens than at step 0
    rows = rows[~((rows["kind"] == "delta") & rows["module"].str.replace(r"\[.*", "", regex=True).isin(varying))]
    rows = rows.assign(total=rows["l1"] * rows["count"], squares=rows["rms"] ** 2 * rows["count"])
    groups = rows.groupby(RUN_AND_CURVE, sort=False)
    first = {"order": "first", "role": "first"}  # the first that is known
    sums = dict.fromkeys(("total", "squares", "nonfinite", "count"), "sum")
    table = groups.agg({**first, **sums, "max": "max"}).reset_index()
    unknown = rows[["total", "squares", "max"]].isna().groupby([rows[name] for name in RUN_AND_CURVE], sort=False).any()
    for name in ("total", "squares", "max"):  # of pandas' sums NaN is left out
        table[name] = table[name].mask(unknown[name].to_numpy())
    table["l1"], table["rms"] = table["total"] / table["count"], np.sqrt(table["squares"] / table["count"])
    loss = table["role"].eq(LOSS).fillna(False).to_numpy(dtype=bool)
    table.loc[loss, ["rms", "max"]] = table.loc[loss, ["l1", "l1"]].to_numpy()  # that of all is the mean of the ranks'
    table["order"] = table["module"].map(_places(rows))
    result = table[[*frames[0].columns]].sort_values(["step", "kind", "order"], kind="stable", ignore_index=True)
    if classes := {frame.attrs[CLASSES] for frame in frames if CLASSES in frame.attrs}:
        result.attrs[CLASSES] = max(classes)
    if varying:
        result.attrs[VARYING] = sorted(varying)
    return result


def _places(rows: pd.DataFrame) -> dict[str, int]:
    """The place of each module: where the rank with the least of it has it."""
    least = rows.groupby("module", sort=False)["order"].min().sort_values(kind="stable")
    return {module: place for place, module in enumerate(least.index)}
