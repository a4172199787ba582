"""The modules whose calls are being traced, innermost last."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import local

import jax

from coordcheck.records.schema import ROOT


class _Calls(local):
    """One stack for each thread."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.inner = 0


calls = _Calls()
# part of the key of jit's caches: what was traced without marks is not taken for what has them
tracing = jax.make_user_context(False)


@contextmanager
def called(name: str) -> Iterator[None]:
    """Within, `name` is the module that runs."""
    calls.names.append(name)
    try:
        yield
    finally:
        calls.names.pop()


def current_name() -> str:
    """The module that runs; the whole model where none is known."""
    return calls.names[-1] if calls.names else ROOT
