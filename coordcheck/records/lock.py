"""One command at a time in a directory, so that its files are of one check."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"  # stays, empty and unlocked: to remove it would let two commands in


@contextmanager
def locked(directory: Path, seconds: float = 0.0) -> Iterator[None]:
    """Keeps other commands out of a directory; a thread that keeps them out already may do so again.

    The operating system ends the lock with the process, however that ends.

    Args:
        directory: Made if need be.
        seconds: How long to wait for another command.

    Raises:
        ValueError: if another command still writes there, or the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory.resolve() / LOCK, is_singleton=True)
        lock.acquire(timeout=seconds, poll_interval=0.05)
    except Timeout:
        raise ValueError(
            f"another command is writing to {directory}. Wait until it has ended, or choose another directory, for "
            f"example {directory}-2."
        ) from None
    except NotImplementedError:  # some network file systems know no locks; a check must be possible there
        yield
        return
    except OSError as error:
        raise ValueError(
            f"{directory} cannot be written ({error.strerror or error}). Choose a directory with room that you may "
            f"write to, for example one below {tempfile.gettempdir()}."
        ) from error
    try:
        yield
    finally:
        lock.release()
