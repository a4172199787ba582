"""Files: their names, and how they are written, atomically, so that an interruption leaves whole files or none."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

# of a check's directory
RECORDED = "recorded"  # a directory with a file for each run that a recorder saved
RECORDS, SLOPES, VERDICT = "records.parquet", "slopes.csv", "verdict.json"
REPORT_PICTURE, REPORT_TEXT = "report.png", "report.md"
AUDIT_TABLE, AUDIT_TEXT, AUDIT_PICTURE = "audit.csv", "audit.md", "audit.png"


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
