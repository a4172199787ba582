"""Who wrote each parameter: every write to a tensor's memory while a model is constructed.

A dispatch mode sees each operation below whatever spelled it: ``torch.nn.init``, ``.data``, slices, ``copy_``,
a library's own wrappers, ``meta`` then ``to_empty``. Writes are kept by storage and put down to the function that
ordered them, so that tied parameters have one history and an initialization that runs three times shows as
three writes of one rule (https://github.com/huggingface/transformers/issues/21431). What does not go through torch's
dispatcher in this thread, such as a write by NumPy to memory that it shares, is not seen.
"""

import math
import sys
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

TORCH = str(Path(torch.__file__).parent)
TORCH_MODULES = str(Path(nn.modules.__file__).parent)
OVERWRITING = frozenset(
    "aten::" + name
    for name in (
        *("normal_", "uniform_", "fill_", "zero_", "copy_", "random_", "bernoulli_", "exponential_"),
        *("cauchy_", "log_normal_", "geometric_"),
    )
)
# these replace entries and leave the others
PLACING = frozenset(
    "aten::" + name
    for name in (
        *("index_put_", "_index_put_impl_", "index_fill_", "index_copy_", "masked_fill_", "masked_scatter_"),
        *("scatter_", "fill_diagonal_", "put_"),
    )
)
FULL, PART, CHANGED = "full", "in part", "changed"
COPYING = frozenset(("aten::clone", "aten::_to_copy"))


@dataclass
class Write:
    """What one call of a rule did to a tensor.

    Attributes:
        code: Of the function that ordered it.
        line: Where in that function.
        effect: "full" if every entry got a new value that does not depend on the old one, "in part" if some
            entries did (a padding row), "changed" if new values depend on old ones (a rescaling).
        operations: How many the rule took; a truncated normal distribution takes several.
        size: Root mean square of the tensor afterwards, its std where it is centred.
        writer: The module whose method ordered it, where it was one.
        call: Number of the call that carried it out.
    """

    code: CodeType
    line: int
    effect: str
    operations: int = 1
    size: float = math.nan
    writer: "weakref.ref[nn.Module] | None" = None
    call: int = 0

    @property
    def rule(self) -> str:
        """The function, file and line, for example ``Linear.reset_parameters linear.py:117``."""
        return f"{self.code.co_qualname} {Path(self.code.co_filename).name}:{self.line}"

    def by_default(self, owners: set[nn.Module]) -> bool:
        """Whether this is what a module does to its own parameters when it is made."""
        own = self.writer is not None and self.writer() in owners
        return own or self.code.co_filename.startswith(TORCH_MODULES)


@dataclass
class History:
    """The writes to one storage, oldest first.

    Attributes:
        writes: One for each call of a rule.
        known: Whether the storage was made while it was watched; what came from elsewhere counts as written.
        covered: Entries written by slices since the last full write, as a mask; None if there were none.
    """

    reference: StorageWeakRef
    known: bool
    writes: list[Write] = field(default_factory=list)
    covered: Tensor | None = None

    def unwritten(self, tensor: Tensor) -> int:
        """How many entries of a tensor in this storage still hold whatever memory held."""
        if not self.known or self.full_writes:
            return 0
        return tensor.numel() if self.covered is None else int((~_entries_of(tensor, self.covered)).sum())

    @property
    def full_writes(self) -> list[Write]:
        """Those that gave every entry a new value."""
        return [write for write in self.writes if write.effect == FULL]

    def inherit(self, source: "History") -> None:
        """Goes on from the writes of a tensor that this one copies."""
        self.writes = [*source.writes]
        self.known = source.known
        self.covered = source.covered


class WriteTracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches every write in its ``with`` block.

    Example:
        >>> with WriteTracer() as tracer:
        ...     layer = nn.Linear(4, 8)
        ...     _ = nn.init.zeros_(layer.bias)
        >>> [write.code.co_qualname for write in tracer.history(layer.bias).writes]
        ['Linear.reset_parameters', '<module>']
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._histories: dict[int, History] = {}
        self._calls = 0
        self._call: FrameType | None = None

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._call = None

    def history(self, parameter: Tensor) -> History:
        """The writes to a tensor's storage; those of a storage that was never seen are unknown."""
        reference = _storage(parameter)
        return self._histories.get(reference.cdata) or History(reference, known=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written = list(_written(func, args, kwargs))
        for tensor in written:
            self._before(func, tensor)
        result = func(*args, **kwargs)
        for tensor in written:
            self._note(func, tensor)
        if not written:
            self._note_new(func, args, result)
        return result

    def _before(self, func: Any, tensor: Tensor) -> None:
        """Measures what a rule left before another one goes over it."""
        history = self._histories.get(_storage(tensor).cdata)
        if history is None or not history.writes:
            return
        another = _ordering_frames()[0].f_code is not history.writes[-1].code
        if another or (func._schema.name in OVERWRITING and _is_whole(tensor)):
            history.writes[-1].size = root_mean_square(_whole(tensor))

    def _note(self, func: Any, tensor: Tensor) -> None:
        """Adds an in-place operation to the history of a tensor's storage."""
        reference = _storage(tensor)
        history = self._histories.setdefault(reference.cdata, History(reference, known=False))
        name = func._schema.name
        effect = CHANGED
        if name in OVERWRITING or name in PLACING or "out" in func._overloadname:
            full = name not in PLACING and (_is_whole(tensor) or _cover(history, tensor))
            effect = FULL if full else PART
        if effect == FULL:
            history.covered = None
        last = history.writes[-1] if history.writes else None
        frame, call = _ordering_frames()
        number = self._number(call)
        # A rule goes on until another call overwrites what it wrote (torch's trunc_normal_ copies what it drew over
        # what it began with); slices that end up covering everything are one write.
        overwrites_itself = effect == FULL and last is not None and last.effect != PART and last.call != number
        if last is not None and last.code is frame.f_code and not overwrites_itself:
            last.operations += 1
            last.effect = FULL if FULL in (effect, last.effect) else last.effect
            last.call = number
        else:
            history.writes.append(_write(frame, effect, number))

    def _number(self, call: FrameType) -> int:
        """Numbers calls; the latest is kept so that its frame cannot be taken for another's."""
        if call is not self._call:
            self._call = call
            self._calls += 1
        return self._calls

    def _note_new(self, func: Any, args: Any, result: Any) -> None:
        """Begins the history of a storage that an operation made."""
        # lift_fresh takes in what Python numbers or an array made, as its own argument
        inputs = [] if func._schema.name == "aten::lift_fresh" else _tensors(args)
        sources = {_storage(x).cdata: x for x in inputs}
        for tensor in _tensors(result):
            reference = _storage(tensor)
            if reference.cdata in sources or reference.cdata in self._histories:
                continue
            history = self._histories[reference.cdata] = History(reference, known=True)
            source = next(iter(sources.items()), None) if func._schema.name in COPYING else None
            if source is not None and source[0] in self._histories and _is_whole(source[1]):
                history.inherit(self._histories[source[0]])
            elif "empty" not in func._schema.name:
                frame, call = _ordering_frames()
                history.writes.append(_write(frame, FULL, self._number(call)))


def _written(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors that an operation changes."""
    for position, name in _written_arguments(func):
        yield from _tensors(args[position] if position < len(args) else kwargs.get(name))


@cache
def _written_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    arguments = enumerate(func._schema.arguments)
    return tuple((i, a.name) for i, a in arguments if a.alias_info is not None and a.alias_info.is_write)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in an argument or a result, but for sparse ones, which have no storage."""
    if isinstance(value, Tensor):
        if value.layout == torch.strided:
            yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _storage(tensor: Tensor) -> StorageWeakRef:
    """Names a tensor's memory; while the name is kept no other memory gets it."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _is_whole(tensor: Tensor) -> bool:
    """Whether a tensor spans its storage."""
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def _whole(tensor: Tensor) -> Tensor:
    """All entries of the storage behind a tensor, flat."""
    entries = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.detach().as_strided((entries,), (1,), 0)


def root_mean_square(tensor: Tensor) -> float:
    """Of the entries, in one pass; NaN where there are none, or whole numbers, which are no draw of a distribution."""
    if tensor.is_meta or not tensor.numel() or not (tensor.is_floating_point() or tensor.is_complex()):
        return math.nan
    real = tensor.detach().abs() if tensor.is_complex() else tensor.detach()
    if real.element_size() == 1:  # torch converts float8 only when asked
        real = real.float()
    return float(torch.linalg.vector_norm(real, dtype=torch.float64)) / math.sqrt(tensor.numel())


def _cover(history: History, tensor: Tensor) -> bool:
    """Marks a slice as written; whether the slices since the last full write now cover everything."""
    if history.covered is None:
        entries = tensor.untyped_storage().nbytes() // tensor.element_size()
        history.covered = torch.zeros(entries, dtype=torch.bool)
    _entries_of(tensor, history.covered)[...] = True
    if not bool(history.covered.all()):
        return False
    history.covered = None
    return True


def _entries_of(tensor: Tensor, mask: Tensor) -> Tensor:
    """The entries of a tensor in a mask of its storage."""
    return mask.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _write(frame: FrameType, effect: str, call: int) -> Write:
    writer = frame.f_locals.get("self")
    reference = weakref.ref(writer) if isinstance(writer, nn.Module) else None
    return Write(frame.f_code, frame.f_lineno, effect, writer=reference, call=call)


def _ordering_frames() -> tuple[FrameType, FrameType]:
    """The function that ordered an operation, and what it called to have it carried out.

    The first is the innermost one that does not merely carry out what it is told.
    """
    call = frame = sys._getframe(2)
    while frame.f_back is not None and _carries_out(frame.f_code):
        call, frame = frame, frame.f_back
    return frame, call


@cache
def _carries_out(code: CodeType) -> bool:
    """Whether a function only does what it is told: torch's own outside its modules, and those named in_place_().

    The trailing underscore is how torch.nn.init, mup.init and transformers.initialization name what writes.
    """
    inside_torch = code.co_filename.startswith(TORCH) and not code.co_filename.startswith(TORCH_MODULES)
    in_place = code.co_name.endswith("_") and not code.co_name.endswith("__")
    return inside_torch or in_place or code.co_filename == __file__
