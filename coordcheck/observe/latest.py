"""What was computed of one tensor is not computed again while nobody changes it."""

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor


class Latest:
    """What was computed of the latest tensor: a container mostly hands on the output of its last child."""

    def __init__(self) -> None:
        self._tensor: Tensor | None = None
        self._version = 0
        self._results: dict[Hashable, Any] = {}

    def of(self, tensor: Tensor, what: Hashable, compute: Callable[[], Any]) -> Any:
        """The result of `compute`, which depends on `what` and on the entries of `tensor` alone."""
        version = -1 if tensor.is_inference() else tensor._version
        if tensor is not self._tensor or version != self._version or version < 0:
            self._tensor, self._version, self._results = tensor, version, {}
        if what not in self._results:
            self._results[what] = compute()
        return self._results[what]

    def forget(self) -> None:
        """Lets the tensor go, whose graph would keep memory."""
        self._tensor, self._results = None, {}
