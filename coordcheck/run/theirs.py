"""What a user's own code raises, in one line with its place; Python shows the rest as its cause."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coordcheck.records.names import one_line

LONGEST = 300  # characters of somebody else's message
PACKAGE = str(Path(__file__).parents[1])


@contextmanager
def theirs(who: str) -> Iterator[None]:
    """Says whose code raised what, and where; our own messages, and what runs out of memory, pass.

    Args:
        who: Whose code runs within.

    Raises:
        ValueError: for whatever else is raised within.
    """
    try:
        yield
    except Exception as error:  # of code that is not ours, whatever it raises
        if is_out_of_memory(error) or _is_ours(error):
            raise
        raise ValueError(f"{who} raises {describe(error)}. For example try it alone, at the smallest width.") from error


def _is_ours(error: Exception) -> bool:
    """Whether this package raised the error, which then is a sentence already."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return isinstance(error, ValueError) and frame.f_code.co_filename.startswith(PACKAGE)


def describe(error: BaseException) -> str:
    """An error's class, message and the line of the user's code that raised it."""
    said = one_line(error)[:LONGEST].rstrip(".")
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith((PACKAGE, "<"))]
    place = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}{': ' if said else ''}{said}{place}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; only CUDA's allocator has a type of its own for that."""
    # torch's on CPU; MPS; cuBLAS and cuDNN; XLA's
    said = ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED", "RESOURCE_EXHAUSTED")
    own = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return own or any(words in str(error) for words in said)
