"""The records of finished runs, kept by a key that stands for everything that determines their numbers."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from coordcheck.records.files import write_atomically

NUMBERS = ("models", "observe", "run")  # the rooms whose code makes them


class RunStore:
    """Records of finished runs, one parquet file each.

    Args:
        directory: Made when the first run is stored.
        determinants: Whatever the numbers of all runs depend on; JSON-serializable.
        reuse: Whether stored runs are read; new ones are stored either way.
    """

    def __init__(self, directory: Path, determinants: Mapping[str, Any], reuse: bool = True):
        self.directory = directory
        self.reuse = reuse
        self.determinants = {**determinants, "code": code_hash()}

    def _path(self, width: int, seed: int) -> Path:
        text = json.dumps({**self.determinants, "width": width, "seed": seed}, sort_keys=True)
        return self.directory / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.parquet"

    def __contains__(self, run: tuple[int, int]) -> bool:
        return self.reuse and self._path(*run).exists()

    def get(self, width: int, seed: int) -> pd.DataFrame | None:
        """The stored records of a run, or None."""
        path = self._path(width, seed)
        return pd.read_parquet(path) if (width, seed) in self else None

    def put(self, width: int, seed: int, records: pd.DataFrame) -> None:
        """Stores the records of a finished run."""
        write_atomically(self._path(width, seed), records.to_parquet)


@cache
def code_hash() -> str:
    """A hash of the source that makes numbers: none is reused after that changed, all are after any other edit."""
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for path in sorted(path for room in NUMBERS for path in (package / room).rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
