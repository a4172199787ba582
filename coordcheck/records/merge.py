"""Records of several runs as one frame: those of a check, or what recorders in loops of their own left side by side."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from coordcheck.records.files import RECORDED, RECORDS, write_atomically
from coordcheck.records.read import read_parquet
from coordcheck.records.schema import CLASSES, check_records


def save_run(records: pd.DataFrame, directory: str | Path) -> Path:
    """Writes the records of one run where :func:`read_records` finds those of all runs.

    Args:
        records: Of one width and one seed, as :meth:`coordcheck.Recorder.records` returns them.
        directory: Shared by all runs of a check; several processes may write there.

    Returns:
        The file, named after width and seed.

    Raises:
        ValueError: if there are no records, or of several runs.
    """
    runs = records[["width", "seed"]].drop_duplicates()
    if len(runs) != 1:
        raise ValueError(
            f"a run is one width and one seed; these records hold {len(runs)}. For example train a step, call "
            f"recorder.step(), then recorder.save('dir')."
        )
    width, seed = runs.iloc[0]
    path = Path(directory) / RECORDED / f"width={width}-seed={seed}.parquet"
    write_atomically(path, records.to_parquet)
    return path


def read_records(directory: str | Path) -> pd.DataFrame:
    """The records of a check, or of all runs that recorders saved in a directory.

    Raises:
        ValueError: if there are none, or a file does not hold records; it names the file, the place and the rule.
    """
    directory = Path(directory)
    # a hidden one is another process's that is not finished, or that a kill left
    saved = sorted(path for path in (directory / RECORDED).glob("*.parquet") if not path.name.startswith("."))
    if saved:
        return merge([_checked(path) for path in saved])
    if not (directory / RECORDS).exists():
        raise ValueError(
            f"{directory} holds no {RECORDS}; a check's directory does. For example "
            f"coordcheck-report checks/gpt-mup-untied-zero-adam, or recorder.save('dir') in your own loop and then "
            f"coordcheck-report dir."
        )
    return _checked(directory / RECORDS)


def _checked(path: Path) -> pd.DataFrame:
    records = read_parquet(path)
    try:
        return check_records(records)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def merge(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Records of several runs as one frame, in the order of width and seed.

    Runs stand beside each other and nothing is added up, so that a spectral norm, which does not add, stays that of its
    run; a column that only some runs have is NaN in the others.

    Args:
        frames: One for each run.

    Raises:
        ValueError: if two hold the same run.
    """
    records = pd.concat(frames, ignore_index=True)
    keys = ["width", "seed", "step", "module", "kind"]
    if repeated := records[records.duplicated(keys)][["width", "seed"]].drop_duplicates().to_numpy().tolist():
        raise ValueError(
            f"each run may be there once; these are there twice, as width and seed: {repeated[:5]}. For example give "
            f"each process a seed of its own."
        )
    classes = {frame.attrs.get(CLASSES) for frame in frames}
    if len(classes) == 1 and None not in classes:
        records.attrs[CLASSES] = classes.pop()
    return records.sort_values(["width", "seed"], kind="stable", ignore_index=True)


def find_checks(directories: Sequence[Path]) -> list[Path]:
    """Every directory with records in or below `directories`; one that holds none stands for itself."""
    found: dict[Path, None] = {}
    for directory in directories:
        files = {path.parent for path in directory.rglob(RECORDS)}
        saved = {path.parent for path in directory.rglob(RECORDED)}
        found |= dict.fromkeys(sorted(files | saved) or [directory])
    return list(found)
