"""From what steps told to records: one transfer from the device for all of them."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from coordcheck.config.arguments import LARGEST, whole
from coordcheck.config.axes import WIDEST
from coordcheck.jax.follow import Place
from coordcheck.jax.marks import LOGITS, OUTPUT
from coordcheck.jax.sums import thinned
from coordcheck.jax.told import ACTIVATION, DELTA, GRADIENT, PARAMETER, UPDATE, VALUE, Told
from coordcheck.records.schema import CLASSES, LOSS, PARAMETERS_OF, RECORD_COLUMNS, ROOT

OWN = ("kernel", "embedding", "weight", "w")  # which of a module's parameters stands for it, the first that it has


def records(told: Sequence[Told], *, width: int, seed: int = 0, roles: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Records of one run, as :func:`coordcheck.coord_check` and ``coordcheck-report`` judge them.

    Args:
        told: By :func:`coordcheck.jax.value_and_grad`, of the steps from 0 on.
        width: d_model.
        seed: Of the run.
        roles: Role of each parameter by name, see :func:`coordcheck.jax.audit`; None where they are not known.

    Returns:
        One row per (step, module, kind) with the columns :data:`coordcheck.records.schema.RECORD_COLUMNS`.

    Raises:
        ValueError: if nothing was told.
    """
    width = whole("width", width, 512, at_most=WIDEST)
    seed = whole("seed", seed, 0, at_least=0, at_most=LARGEST)
    if not told or not all(isinstance(one, Told) for one in told):
        raise ValueError(
            "`told` is what value_and_grad returned beside the value, of each step. For example "
            "(value, told), gradients = coordcheck.jax.value_and_grad(loss)(params, batch)."
        )
    numbers = jax.device_get(jnp.concatenate([one.numbers for one in told]))  # the one transfer
    roles = roles or {}
    own = _owned(roles)
    rows: dict[tuple[int, str, str], _Row] = {}
    named: dict[str, Place] = {}
    for step, one in enumerate(told):
        ours, numbers = numbers[: len(one.numbers)], numbers[len(one.numbers) :]
        of = {(r.kind, r.key): ours[r.start : r.start + math.prod(r.shape)].reshape(*r.shape, 5) for r in one.rows}
        for place in one.places:
            for kind in (ACTIVATION, DELTA, UPDATE, GRADIENT):
                if (kind, place.path) in of:
                    _add(rows, named, step, place, kind, of[kind, place.path], roles, own)
        for name, size in one.sizes:
            if (PARAMETER, name) in of:
                rows.setdefault((step, name, GRADIENT), _Row(roles.get(name))).add(of[PARAMETER, name], size)
        if (VALUE, VALUE) in of:
            value = np.float64(abs(of[VALUE, VALUE][0]))
            row = rows.setdefault((step, "(loss)", ACTIVATION), _Row(LOSS))
            row.add(np.array([value, value**2, value, not np.isfinite(value), 1.0]), 1)
    order: dict[str, int] = {}
    for _, module, _ in rows:
        order.setdefault(module, len(order))
    found = [
        (width, seed, step, module, order[module], row.role, kind, *row.statistics())
        for (step, module, kind), row in rows.items()
        if row.count
    ]
    columns: dict[str, Any] = dict(zip(RECORD_COLUMNS, zip(*found, strict=True), strict=True))
    frame = pd.DataFrame({**columns, "role": pd.array(columns["role"], dtype="string")})
    readouts = [p.shape[-1] for p in told[0].places if roles.get(own.get(p.name, "")) == "readout"]
    if readouts:
        frame.attrs[CLASSES] = readouts[-1]
    frame.attrs[PARAMETERS_OF] = {
        name: own[place.name] for (name, place) in named.items() if place.what == OUTPUT and place.name in own
    }
    return frame


class _Row:
    """Sums of one (step, module, kind) over all calls of the module."""

    def __init__(self, role: str | None):
        self.role = role
        self.count = 0
        self.total = self.squares = self.largest = self.nonfinite = 0.0

    def add(self, numbers: Any, entries: int) -> None:
        total, squares, largest, nonfinite, ran = (float(number) for number in numbers)
        self.count += int(ran) * entries
        self.total += total
        self.squares += squares
        if not (math.isnan(self.largest) or largest <= self.largest):
            self.largest = largest
        self.nonfinite += nonfinite

    def statistics(self) -> tuple[float, float, float, int, int]:
        """Returns l1, rms, max, nonfinite, count."""
        return (
            self.total / self.count,
            math.sqrt(self.squares / self.count),
            self.largest,
            int(self.nonfinite),
            self.count,
        )


def _add(
    rows: dict[tuple[int, str, str], _Row],
    named: dict[str, Place],
    step: int,
    place: Place,
    kind: str,
    numbers: Any,
    roles: Mapping[str, str],
    own: Mapping[str, str],
) -> None:
    """The sums at a mark, a row for each layer of the scans around it."""
    shape = place.shape if kind in (ACTIVATION, GRADIENT) else _thin(place.shape)
    entries = math.prod(shape)
    logits = place.what == LOGITS
    role = LOGITS if logits else roles.get(own.get(place.name, ""))
    for index in np.ndindex(numbers.shape[:-1]):
        name = layer_name(place, index) + ("[attention_logits]" if logits else place.part)
        rows.setdefault((step, name, kind), _Row(role)).add(numbers[index], entries)
        named.setdefault(name, place)


@cache
def _thin(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(jax.eval_shape(thinned, jax.ShapeDtypeStruct(shape, np.float32)).shape)


def layer_name(place: Place, index: tuple[int, ...]) -> str:
    """The name of a module in one iteration of the scans around it: with the number of the layer, where it is one."""
    parts = place.name.split(".")
    for apart, i in reversed([*zip(place.layers, index, strict=True)]):
        if apart is not None:
            parts.insert(apart, str(i))
    return ".".join(parts)


def _owned(roles: Mapping[str, str]) -> dict[str, str]:
    """The parameter that stands for each module."""
    found: dict[str, str] = {}
    for last in reversed(OWN):
        found |= {name.rpartition(".")[0] or ROOT: name for name in roles if name.rpartition(".")[2] == last}
    return found
