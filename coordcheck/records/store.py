"""The records of finished runs, kept by a key that stands for everything that determines their numbers.

What is read is verified: whose run it is, its columns and a checksum of its values. A file that does not hold is said
and counts as not there, so that its run is done again.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import pandas as pd

from coordcheck.records.files import write_atomically
from coordcheck.records.names import one_line
from coordcheck.records.read import read_parquet
from coordcheck.records.schema import ADDED_COLUMNS, RECORD_COLUMNS, check_records

NUMBERS = ("models", "observe", "run")  # the rooms whose code makes them; those of JAX are made by a room of its own
CHECKSUM = "checksum"  # its name among the attrs of a stored frame
FORMAT = 2  # of the files


class RunStore:
    """Records of finished runs, one parquet file each.

    Args:
        directory: Made when the first run is stored.
        determinants: Whatever the numbers of all runs depend on; JSON-serializable.
        reuse: Whether stored runs are read; new ones are stored either way.
        rooms: Whose code makes the numbers.
    """

    def __init__(
        self,
        directory: Path,
        determinants: Mapping[str, Any],
        reuse: bool = True,
        rooms: Sequence[str] = NUMBERS,
    ):
        self.directory = directory
        self.reuse = reuse
        self.determinants = {**determinants, "code": code_hash(tuple(rooms)), "format": FORMAT}
        self._verified: dict[tuple[int, int], pd.DataFrame] = {}
        self._told: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process: the same key, and no run that this one has read."""
        return {**vars(self), "directory": self.directory.absolute(), "_verified": {}, "_told": set()}

    def _path(self, width: int, seed: int) -> Path:
        text = json.dumps({**self.determinants, "width": width, "seed": seed}, sort_keys=True)
        return self.directory / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.parquet"

    def __contains__(self, run: tuple[int, int]) -> bool:
        return self.get(*run) is not None

    def get(self, width: int, seed: int) -> pd.DataFrame | None:
        """The stored records of a run, or None if there are none that hold; damage is said on stderr."""
        path = self._path(width, seed)
        if not self.reuse or not path.exists():
            return None
        if (width, seed) not in self._verified:
            try:
                self._verified[width, seed] = _verified(path, width, seed)
            except ValueError as error:
                self._tell(f"stored run of width {width}, seed {seed} is damaged and will be done again: {error}")
                return None
        return self._verified[width, seed].copy()

    def put(self, width: int, seed: int, records: pd.DataFrame) -> None:
        """Stores the records of a finished run; what stands in the way is said, and costs only the storing."""
        path = self._path(width, seed)
        if path.exists() and not path.is_file():
            self._tell(f"run of width {width}, seed {seed} cannot be kept: {path} is no file. Remove it.")
            return
        stored = records.copy()
        stored.attrs = {**records.attrs, CHECKSUM: checksum(records)}
        write_atomically(path, stored.to_parquet)

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            print(f"coordcheck: {one_line(text)}", file=sys.stderr, flush=True)


def _verified(path: Path, width: int, seed: int) -> pd.DataFrame:
    records = read_parquet(path)
    try:
        records = check_records(records, losses=True)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    claimed = records.attrs.pop(CHECKSUM, None)
    if tuple(name for name in records.columns if name not in ADDED_COLUMNS) != RECORD_COLUMNS:
        raise ValueError(f"{path} has the columns {list(records.columns)}.")
    if claimed != checksum(records):
        raise ValueError(f"{path} does not have the values of its checksum.")
    if not ((records["width"] == width) & (records["seed"] == seed)).all():
        raise ValueError(f"{path} holds another run.")
    return records


def checksum(records: pd.DataFrame) -> str:
    """A hash of the columns, their types and their values."""
    digest = hashlib.sha256()
    for name, column in records.items():
        numeric = column.dtype.kind in "iuf"
        digest.update(f"{name}:{column.dtype if numeric else 'text'};".encode())
        if numeric:
            digest.update(column.to_numpy().tobytes())
        else:
            words = [None if word is pd.NA or word != word else word for word in column.astype(object)]
            digest.update(json.dumps(words).encode())
    return digest.hexdigest()


@cache
def code_hash(rooms: tuple[str, ...] = NUMBERS) -> str:
    """A hash of the source that makes numbers: none is reused after that changed, all are after any other edit."""
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for path in sorted(path for room in rooms for path in (package / room).rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def current_versions() -> dict[str, str]:
    """Of Python and of the packages that make the numbers."""
    packages = ("coordcheck", "torch", "mup", "numpy", "pandas")
    return {"python": python_version(), **{name: version(name) for name in packages}}
