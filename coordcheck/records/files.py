"""Files: their names, and how they are written, atomically, so that an interruption leaves whole files or none."""

import errno
import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

# of a check's directory
RECORDED = "recorded"  # a directory with a file for each run that a recorder saved
RECORDS, SLOPES, VERDICT = "records.parquet", "slopes.csv", "verdict.json"
REPORT_PICTURE, REPORT_TEXT, REPORT_PAGE = "report.png", "report.md", "report.html"
ALIGNMENTS = "alignment.csv"
AUDIT_TABLE, AUDIT_TEXT, AUDIT_PICTURE = "audit.csv", "audit.md", "audit.png"

TEMPORARY = ".coordcheck-"  # how the names of temporary files begin
ABANDONED = 86_400  # seconds after which a temporary file is one that a kill left


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a hidden temporary file in the directory of `path`, then moves it to `path`.

    A new file gets the permissions that the umask leaves, an old one keeps its own. A device or a pipe, standard
    output among them, is written to and stays what it is.

    Args:
        path: Its directory is made if need be.
        write: Called with the temporary file's path, which has the suffix of `path`.

    Raises:
        ValueError: if `path` cannot be written.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a directory has that name")
        stream = _existing_stream(path)
        if stream is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path.parent.absolute())
        directory = path.parent if stream is None else Path(tempfile.gettempdir())
        temporary = directory / f"{TEMPORARY}{secrets.token_hex(8)}{path.suffix}"
        try:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # which the umask cuts
            write(temporary)
            if stream is not None:
                with os.fdopen(stream, "wb") as out:
                    stream = None
                    out.write(temporary.read_bytes())
            else:
                if path.is_file() and not path.is_symlink():
                    with suppress(OSError):  # on a network file system, of one that another machine has just replaced
                        shutil.copymode(path, temporary)
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
            if stream is not None:
                os.close(stream)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror or error}). Choose a directory with room that you may write "
            f"to, for example one below {tempfile.gettempdir()}."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically, whatever the locale.

    Raises:
        ValueError: if `path` cannot be written.
    """
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


def copy_atomically(source: Path, path: Path) -> None:
    """Copies a file to `path`, whole or not at all."""
    write_atomically(path, lambda temporary: shutil.copyfile(source, temporary))


def _existing_stream(path: Path) -> int | None:
    """A descriptor to write to where `path` is no ordinary file and may not be replaced by one."""
    try:
        found = path.stat()
    except OSError:
        return None
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        with suppress(OSError):  # a closed one is none
            if os.path.samestat(found, os.fstat(number)):
                if stream is not None:
                    stream.flush()
                return os.dup(number)
    if stat.S_ISREG(found.st_mode):
        return None
    # a pipe that nobody reads would be waited for
    opened = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_NONBLOCK", 0))
    os.set_blocking(opened, True)
    return opened


@cache
def _sweep(directory: Path) -> None:
    """Removes temporary files that a kill left there long ago."""
    with suppress(OSError):
        for left in directory.glob(f"{TEMPORARY}*"):
            with suppress(OSError):
                if time.time() - left.lstat().st_mtime > ABANDONED and stat.S_ISREG(left.lstat().st_mode):
                    left.unlink()
