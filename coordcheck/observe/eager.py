"""Runs what is compiled as it was written: compiled code ignores the hooks that were not there when it was compiled."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch

_lock = Lock()
_stances: list[Any] = []
_users = 0


@contextmanager
def eager() -> Iterator[None]:
    """Makes every ``torch.compile`` directive of the process wait, while at least one such block is entered.

    What was compiled is kept and serves again afterwards, without a trace of hooks.
    """
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            _stances.append(torch.compiler.set_stance("force_eager"))
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _stances.pop().__exit__(None, None, None)
