"""Columns, kinds and names of records: what everybody who writes or reads them agrees on.

A record is one row of a frame: (cell, width, seed, step, module, kind) with its statistics. Imports neither torch nor
pandas, so that whoever only needs a name does not wait for them.
"""

from typing import TYPE_CHECKING

import numpy as np

from coordcheck.records.names import printable

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("activation", "delta", "effective_update", "gradient", "weight", "update")
WEIGHTS = ("weight", "update")  # the kinds that are of parameters alone, and whose size is the spectral norm
ROOT = "(model)"  # stands for the name of the whole model, which torch leaves empty


AXIS, WIDTH, DEPTH = "axis", "width", "depth"  # the cell's column that says what the column width holds, if not width
FIRST, MIDDLE, LAST = "(first)", "(middle)", "(last)"  # stand for the number of a block in records over depths
LOSS, LOSS_MODULE = "loss", "(loss)"  # the role of the loss, and what stands for its module
UNKNOWN = "unknown"  # that of a parameter whose weight or update was recorded without saying what it is
CLASSES = "classes"  # the name, among the attrs of a frame, of how many the last readout tells apart
RANK, RANKS = "rank", "ranks"  # likewise: which process of how many a frame is from, where several trained one model
VARYING = "varying"  # likewise: modules whose outputs were not the same ones at every step, and have no delta
PARAMETERS_OF = "parameters_of"  # likewise, of the parameter that stands for each module, where it is no ".weight"
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

# behind these, where they were measured: the spectral norm of a weight or an update, and the root mean square of what
# met the weight of an effective update; NaN elsewhere
ADDED_COLUMNS = ("spectral", "input_rms")
RUN_AND_CURVE = ["width", "seed", "step", "module", "kind"]  # what a record is of
LEAST = {"width": 1, "seed": -np.inf, "step": 0, "order": 0}  # whole numbers, from where on
# columns that slopes and tables add beside those of the cell, which may not have their names
DERIVED = frozenset(
    {"slope", "ci_low", "ci_high", "n_widths", "n_seeds", "n_zero", "n_nonfinite", "n_runs", "error", "df", "curvature"}
    | {"expected_low", "expected_high", "verdict", "source", "excess", "rank", "bend", "log", "size", "zero", "bad"}
    | {"fewest", "most", "beyond", "low", "middle", "high", "index"}
)


def cell_columns(frame: "pd.DataFrame") -> list[str]:
    """The columns of `frame`, records or slopes, that say which cell: all that stand before the known ones."""
    known = {*RECORD_COLUMNS, *ADDED_COLUMNS, "slope"}
    return [name for name in frame.columns[: next(i for i, c in enumerate(frame.columns) if c in known)]]


def axis_of(frame: "pd.DataFrame") -> str:
    """What the column ``width`` of records or slopes holds: "width", or "depth"."""
    return DEPTH if AXIS in cell_columns(frame) and bool((frame[AXIS] == DEPTH).all()) else WIDTH


def check_records(records: "pd.DataFrame", *, losses: bool = False) -> "pd.DataFrame":
    """Makes sure that a frame which anybody may have written can be judged.

    Args:
        records: The frame.
        losses: Whether the loss alone will do, as for runs that are only compared by it.

    Returns:
        The records, whole numbers as such.

    Raises:
        ValueError: if there are no records but the loss, a column is missing or unknown, a value is not what its column
            holds, or a curve has two rows for one run.
    """
    if not len(records):
        raise ValueError("there are no records to judge. For example record one step: recorder.step().")
    missing = [name for name in RECORD_COLUMNS if name not in records.columns]
    cell = [] if missing else cell_columns(records)
    strange = [name for name in records.columns if name not in (*RECORD_COLUMNS, *ADDED_COLUMNS, *cell)]
    taken = [name for name in cell if name in DERIVED or not isinstance(name, str)]
    problems = {"these lack": missing, "among or after them stand": strange, "of another meaning are": taken}
    problems["twice stand"] = [name for name in records.columns[records.columns.duplicated()]]
    if any(problems.values()):
        said = "; ".join(f"{what} {printable(names, 200)}" for what, names in problems.items() if names)
        raise ValueError(
            f"records have the columns {list(RECORD_COLUMNS)}, after any that say which cell; {said}. For example "
            f"records[['cell', *coordcheck.records.schema.RECORD_COLUMNS]]."
        )
    typed = records.assign(**{name: _whole(records, name, least) for name, least in LEAST.items()})
    for name in ("l1", "rms", "max", "nonfinite", "count"):
        typed[name] = _size(records, name)
    for name in records.columns.intersection([*ADDED_COLUMNS]):
        typed[name] = _size(records, name)
    for name in ("module", "kind", "role"):
        _check_words(records, name, optional=name == "role")
    typed["role"] = records["role"].astype("string")
    for name in cell:
        _refuse_rows(
            records, name, records[name].isna() | records[name].map(_is_list).astype(bool), "a word or a number"
        )
    unknown = sorted(set(records["kind"]) - set(KINDS))
    if unknown:
        raise ValueError(
            f"the kind of a record is one of {list(KINDS)}; got {printable(unknown, 200)}. "
            f"For example records[records['kind'] == 'activation']."
        )
    _check_norms(typed)
    repeated = typed.duplicated([*cell, *RUN_AND_CURVE])
    if repeated.any():
        first = ", ".join(f"{name} {records[name][repeated].iloc[0]}" for name in RUN_AND_CURVE)
        raise ValueError(
            f"each run has one record of a module, kind and step; {int(repeated.sum())} rows are there again, the "
            f"first: {printable(first, 200)}. For example records.drop_duplicates({RUN_AND_CURVE})."
        )
    if not losses:
        refuse_the_loss_alone(records)
    return typed


def _check_norms(records: "pd.DataFrame") -> None:
    """Makes sure that what is judged of a weight is there."""
    of_weights = records["kind"].isin(WEIGHTS) & (records["nonfinite"] == 0)
    if of_weights.any() and "spectral" not in records:
        raise ValueError(
            f"records of the kinds {list(WEIGHTS)} have their norms in the column spectral, behind count; there is "
            f"none. For example records[~records['kind'].isin({list(WEIGHTS)})]."
        )
    if of_weights.any():
        _refuse_rows(records, "spectral", of_weights & records["spectral"].isna(), "the norm of each weight and update")


def _refuse_rows(records: "pd.DataFrame", name: str, wrong: "pd.Series", rule: str) -> None:
    """Says which row breaks the rule of its column."""
    if wrong.any():
        row = int(np.flatnonzero(wrong.to_numpy(dtype=bool))[0])
        value = records[name].iloc[row]
        said = value.item() if isinstance(value, np.generic) else value
        raise ValueError(
            f"records hold {rule} in column {printable(name, 80)!r}; row {row} has "
            f"{printable(repr(said), 80)}. For example records.drop(index={row})."
        )


def _is_list(value: object) -> bool:
    return not isinstance(value, str | bool | int | float | np.generic)


def _numeric(records: "pd.DataFrame", name: str, rule: str) -> "pd.Series":
    """A column of numbers as floats; one in which nothing stands is unknown throughout."""
    column = records[name]
    if column.dtype.kind not in "iuf" and not column.isna().all():
        _refuse_rows(records, name, column.notna(), rule)
    return column.astype("float64")


def _whole(records: "pd.DataFrame", name: str, least: float) -> "pd.Series":
    """A column of whole numbers."""
    rule = "a whole number" if least == -np.inf else f"a whole number from {least:.0f} on"
    if records[name].dtype.kind == "i":
        _refuse_rows(records, name, records[name] < least, rule)
        return records[name].astype("int64")
    found = _numeric(records, name, rule)
    whole = np.isfinite(found) & (found == np.floor(found)) & (found.abs() <= 2**53) & (found >= least)
    _refuse_rows(records, name, ~whole, rule)
    return found.astype("int64")


def _size(records: "pd.DataFrame", name: str) -> "pd.Series":
    """A column of sizes or counts; infinity is what a run that diverged has, NaN what nobody knew."""
    rule = "a number that is not negative" + (", or NaN" if name != "nonfinite" else "")
    found = _numeric(records, name, rule)
    _refuse_rows(records, name, (found < 0) | (found.isna() & (name == "nonfinite")), rule)
    return records[name] if records[name].dtype.kind in "iuf" else found


def _check_words(records: "pd.DataFrame", name: str, optional: bool) -> None:
    column = records[name]
    text = str(column.dtype) in ("str", "string")
    right = column.notna() if text else column.map(lambda value: isinstance(value, str)).astype(bool)
    _refuse_rows(records, name, ~(right | (column.isna() & optional)), "text" + (", or nothing" if optional else ""))


def refuse_the_loss_alone(records: "pd.DataFrame") -> None:
    """Makes sure that there is more to judge than the loss, of which nothing is expected.

    Raises:
        ValueError: if there is not.
    """
    if records["role"].isin([LOSS]).all():
        raise ValueError(
            "these records hold nothing but the loss, so there is no curve to judge. For example record all modules: "
            "modules=['*']."
        )


def curve_columns(frame: "pd.DataFrame") -> list[str]:
    """What identifies a curve of `frame`."""
    return [*cell_columns(frame), "module", "kind", "step"]


def sizes(records: "pd.DataFrame") -> "pd.Series":
    """The size whose slope is fitted: the spectral norm of weights, else l1, or rms where a recorder knew only that."""
    unknown = records["l1"].isna() & (records["nonfinite"] == 0)
    size = records["l1"].where(~unknown, records["rms"])
    return size.where(~records["kind"].isin(WEIGHTS), records["spectral"]) if "spectral" in records else size


def independent(records: "pd.DataFrame") -> bool:
    """Whether no seed ran at two widths: then points of a curve share nothing that a seed drew."""
    return bool(records.groupby("seed")["width"].nunique().max() == 1)


def repeated_seeds(records: "pd.DataFrame") -> list[int]:
    """Seeds whose sizes equal those of an earlier seed bit for bit: the same sample again, not another one."""
    size = sizes(records)
    telling = records.assign(size=size)[np.isfinite(size) & (size > 0)]
    ordered = telling.sort_values([*curve_columns(records), "width"])
    content = ordered.groupby("seed")["size"].agg(lambda of_seed: of_seed.to_numpy().tobytes())
    return [int(seed) for seed in content.index[content.duplicated()]]
