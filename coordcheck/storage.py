"""Files: written atomically, so that an interrupted run leaves whole files or none.

:class:`RunStore` keeps the records of finished runs by a key that stands for everything that determines their
numbers, this package's own code included.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a hidden temporary file in the directory of `path`, then moves it to `path`.

    Args:
        path: Its directory is made if need be.
        write: Called with the temporary file's path, which has the suffix of `path`.

    Raises:
        ValueError: if `path` cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror or error}). Choose a directory with room that you may write "
            f"to, for example one below {tempfile.gettempdir()}."
        ) from error


def copy_atomically(source: Path, path: Path) -> None:
    """Copies a file to `path`, whole or not at all."""
    write_atomically(path, lambda temporary: shutil.copyfile(source, temporary))


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
    """A hash of this package's source: stored numbers are not reused after the code that made them changed."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()
