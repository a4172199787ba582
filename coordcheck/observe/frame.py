"""From sums of single tensors to records: what was measured at one place is pooled and becomes a row."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from torch import Tensor

from coordcheck.observe.sums import Norms, Sums, moved, moved_numbers
from coordcheck.records.schema import ADDED_COLUMNS, RECORD_COLUMNS, ROOT


class Entry(NamedTuple):
    """Sums of one tensor, maybe still on its device; ``module`` as torch names it, ``part`` of its output.

    What was summed is ``divisor`` times as large as what is meant. ``spectral`` is the spectral norm of a weight or an
    update, ``input_rms`` that of what a layer's update met.
    """

    step: int
    module: str
    part: str
    role: str | None
    kind: str
    entries: int
    sums: Sums | Norms
    divisor: float = 1.0
    spectral: Tensor | None = None
    input_rms: Tensor | None = None

    @property
    def label(self) -> str:
        """The module's name in records."""
        return (self.module or ROOT) + self.part


class _Row:
    """Sums of one (step, module, kind) over all calls of the module."""

    def __init__(self, role: str | None):
        self.role = role
        self.count = 0
        self.total = self.squares = self.largest = self.nonfinite = 0.0
        self.spectral, self.inputs = math.nan, 0.0

    def add(self, count: int, of_call: Sums, divisor: float, spectral: float, input_rms: float) -> None:
        self.count += count
        self.spectral = spectral  # of a weight, which is measured once in a step: norms do not add
        self.inputs += count * input_rms**2
        self.total += of_call.total / divisor
        self.squares += of_call.squares / divisor**2
        if not (math.isnan(self.largest) or of_call.largest / divisor <= self.largest):
            self.largest = of_call.largest / divisor
        self.nonfinite += of_call.nonfinite

    def statistics(self) -> tuple[float, float, float, int, int, float, float]:
        """Returns l1, rms, max, nonfinite, count, spectral, input_rms."""
        l1, rms = self.total / self.count, math.sqrt(self.squares / self.count)
        of_input = math.sqrt(self.inputs / self.count)
        return l1, rms, self.largest, int(self.nonfinite), self.count, self.spectral, of_input


def frame_of(
    entries: Sequence[Entry], order: Mapping[str, int], left_out: Callable[[Entry], bool], *, width: int, seed: int
) -> pd.DataFrame:
    """Records, with one transfer from the device, and one more for each column that is added.

    Args:
        entries: What was measured.
        order: Place of each module in the forward pass; those that it lacks follow in the order of `entries`.
        left_out: Which entries do not count.
        width: For the records.
        seed: For the records.

    Returns:
        One row per (step, module, kind) with the columns :data:`coordcheck.records.schema.RECORD_COLUMNS`, and behind
        them those of :data:`coordcheck.records.schema.ADDED_COLUMNS` that were measured.
    """
    rows: dict[tuple[int, str, str], _Row] = {}
    places = dict(order)
    beside = [moved_numbers([getattr(entry, name) for entry in entries]) for name in ADDED_COLUMNS]
    for entry, of_call, *numbers in zip(entries, moved([entry.sums for entry in entries]), *beside, strict=True):
        places.setdefault(entry.label, len(places))
        if not left_out(entry):
            row = rows.setdefault((entry.step, entry.label, entry.kind), _Row(entry.role))
            row.add(entry.entries, of_call, entry.divisor, *numbers)
    records = [
        (width, seed, step, module, places[module], row.role, kind, *row.statistics())
        for (step, module, kind), row in rows.items()
    ]
    names = (*RECORD_COLUMNS, *ADDED_COLUMNS)
    values = zip(*records, strict=True) if records else [()] * len(names)
    columns: dict[str, Any] = dict(zip(names, values, strict=True))
    for name in ADDED_COLUMNS:
        if all(getattr(entry, name) is None for entry in entries):
            del columns[name]
    # made as text at once: a conversion of the frame takes a millisecond, a tenth of what a small run costs
    return pd.DataFrame({**columns, "role": pd.array(columns["role"], dtype="string")})
