"""Records of several runs as one frame: those of a check, or what recorders in loops of their own left side by side."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from coordcheck.records.files import RECORDED, RECORDS, write_atomically
from coordcheck.records.pool import pooled, rank_of_frame
from coordcheck.records.read import read_parquet
from coordcheck.records.schema import CLASSES, PARAMETERS_OF, check_records


def save_run(records: pd.DataFrame, directory: str | Path) -> Path:
    """Writes the records of one run where :func:`read_records` finds those of all runs.

    Args:
        records: Of one width and one seed, as :meth:`coordcheck.Recorder.records` returns them.
        directory: Shared by all runs of a check; several processes may write there.

    Returns:
        The file, named after width and seed, and after the rank where several trained the model together.

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
    run, rank = f"width={width}-seed={seed}", rank_of_frame(records)
    suffixes = {"": None} if rank is None else {f"-rank={i}-of-{rank[1]}": i for i in range(rank[1])}
    mine = next(suffix for suffix, i in suffixes.items() if rank is None or i == rank[0])
    path = Path(directory) / RECORDED / f"{run}{mine}.parquet"
    write_atomically(path, records.to_parquet)
    for other in [*path.parent.glob(f"{run}.parquet"), *path.parent.glob(f"{run}-rank=*.parquet")]:
        if other.stem.removeprefix(run) not in suffixes:  # the same run, recorded before by another number of ranks
            other.unlink(missing_ok=True)
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
    """Records of several runs as one frame, in the order of width and seed; those of a run's ranks become one run.

    Runs stand beside each other and nothing is added up, so that a spectral norm, which does not add, stays that of its
    run; a column that only some runs have is NaN in the others.

    Args:
        frames: One for each run, or one for each rank of it, as :meth:`coordcheck.Recorder.save` writes them.

    Raises:
        ValueError: if two hold the same run, or a rank of a run is missing.
    """
    frames = _whole_runs(frames)
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
    if owned := [frame.attrs[PARAMETERS_OF] for frame in frames if PARAMETERS_OF in frame.attrs]:
        records.attrs[PARAMETERS_OF] = owned[0]
    return records.sort_values(["width", "seed"], kind="stable", ignore_index=True)


def _whole_runs(frames: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """The frames, those of the ranks of a run pooled."""
    whole = [frame for frame in frames if rank_of_frame(frame) is None]
    by_run: dict[tuple[int, int], dict[int, pd.DataFrame]] = {}
    for frame in frames:
        rank = rank_of_frame(frame)
        if rank is None or not len(frame):
            continue
        width, seed = (int(frame[name].iloc[0]) for name in ("width", "seed"))
        if rank[0] in by_run.setdefault((width, seed), {}):
            raise ValueError(
                f"each rank of a run may be there once; rank {rank[0]} of width {width}, seed {seed} is there twice. "
                f"For example give each run a seed of its own."
            )
        by_run[width, seed][rank[0]] = frame
    for (width, seed), of_run in by_run.items():
        expected = {ranks for _, ranks in map(_rank, of_run.values())}
        missing = sorted({*range(max(expected))} - {*of_run})
        if missing or len(expected) > 1:
            raise ValueError(
                f"the run of width {width}, seed {seed} was recorded on {max(expected)} ranks, and those of "
                f"{sorted(of_run)} are here. For example call recorder.save(directory) on every rank, not on the first "
                f"alone, with a directory that all of them see."
            )
        whole.append(pooled([of_run[rank] for rank in sorted(of_run)]))
    return whole


def _rank(frame: pd.DataFrame) -> tuple[int, int]:
    found = rank_of_frame(frame)
    assert found is not None
    return found


def find_checks(directories: Sequence[Path]) -> list[Path]:
    """Every directory with records in or below `directories`; one that holds none stands for itself."""
    found: dict[Path, None] = {}
    for directory in directories:
        files = {path.parent for path in directory.rglob(RECORDS)}
        saved = {path.parent for path in directory.rglob(RECORDED)}
        found |= dict.fromkeys(sorted(files | saved) or [directory])
    return list(found)


def completed(records: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """Records of a check, with what other runs of the same cell recorded and it did not: a kind, or later steps.

    Args:
        records: Of the check; each of its rows stays what it is.
        others: Of runs at some of its widths and seeds.
    """
    rows = ["width", "seed", "step", "module", "kind"]
    return pd.concat([records, others]).drop_duplicates(rows, ignore_index=True)
