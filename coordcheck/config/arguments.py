"""What a single value must be, whoever gave it: whole numbers, lists of them, names. One sentence says what is wrong.

Whatever can be counted counts: numpy's whole numbers, generators, ranges. A boolean is no number, a text is no list.
"""

from collections.abc import Iterable
from itertools import islice
from operator import index
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from coordcheck.records.names import shown

LARGEST = 2**63 - 1  # that torch, pandas and parquet hold
MOST = 1_000_000  # of anything that is counted
MOST_SEEDS = 10_000
MOST_STEPS = 100_000


def is_whole(value: object) -> bool:
    """Whether this is a whole number, of Python, numpy or torch, and no boolean."""
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        return False
    try:
        index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def is_flag(value: object) -> bool:
    """Whether this is true or false, of Python or numpy."""
    return isinstance(value, bool) or (type(value).__name__ in ("bool", "bool_") and hasattr(value, "dtype"))


def whole(name: str, value: Any, example: int, at_least: int = 1, at_most: int = MOST) -> int:
    """A whole number within bounds.

    Args:
        name: Of the argument or key.
        value: That was given.
        example: That is right.
        at_least: The smallest that is allowed.
        at_most: The largest.

    Raises:
        ValueError: if it is none.
    """
    said = f"got {shown(value)}. For example {name}={example}."
    if not is_whole(value):
        raise ValueError(f"`{name}` is a whole number; {said}")
    if index(value) < at_least:
        raise ValueError(f"`{name}` is at least {at_least}; {said}")
    if index(value) > at_most:
        raise ValueError(f"`{name}` is at most {at_most}; {said}")
    return index(value)


def listed(values: Any, at_most: int = MOST_SEEDS) -> list[Any] | None:
    """The items of whatever can be gone through, once; None for a text, for no list, and for more items than that."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        return None
    try:
        items = list(islice(values, at_most + 1))
    except TypeError:  # an array without dimensions
        return None
    return items if len(items) <= at_most else None


def whole_numbers(name: str, values: Any, rule: str, example: str) -> list[int]:
    """A list of whole numbers that torch can hold.

    Args:
        name: Of the argument or key.
        values: That were given.
        rule: What it needs, for the message.
        example: That is right.

    Raises:
        ValueError: if it is none.
    """
    items = listed(values)
    if items is None or not all(is_whole(item) and abs(index(item)) <= LARGEST for item in items):
        raise ValueError(f"`{name}` {rule}; got {shown(values if items is None else items)}. For example {example}.")
    return [index(item) for item in items]


def texts(name: str, values: Any, example: str) -> list[str]:
    """A list of texts.

    Raises:
        ValueError: if it is none; a single text is told to be a list of one.
    """
    if isinstance(values, str):
        example = f"{name}=[{values!r}]" if values else example
    items = listed(values)
    if items is None or not all(isinstance(item, str) and item for item in items):
        raise ValueError(
            f"`{name}` is a list of names; got {shown(values if items is None else items)}. For example {example}."
        )
    return [str(item) for item in items]


def text(name: str, value: Any, example: str) -> str:
    """A text with something in it.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"`{name}` is a text that is not empty; got {shown(value)}. For example {name}={example!r}.")
    return value


def directory(name: str, value: Any, example: str) -> Path:
    """A directory that is there or can be made.

    Raises:
        ValueError: if something else is in its place.
    """
    said = f"got {shown(value)}. For example {name}={example!r}."
    if not isinstance(value, str | PathLike) or not fspath(value) or "\0" in str(fspath(value)):
        raise ValueError(f"`{name}` is the path of a directory; {said}")
    path = Path(fspath(value))
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"`{name}` is the path of a directory, and {shown(str(place))} is none; {said}")
    return path
