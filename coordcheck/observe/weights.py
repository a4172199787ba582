"""The sizes of weights W_t and of their changes W_t - W_0, each parameter by itself."""

from collections.abc import Iterator, Mapping

import pandas as pd
import torch
from torch import Tensor, nn

from coordcheck.observe.frame import Entry
from coordcheck.observe.spectral import as_matrices, spectral_norm
from coordcheck.observe.sums import at_least_float32, moved_numbers, sums


class Weights:
    """What the kinds "weight" and "update" record.

    Args:
        model: Whose parameters.
        names: Of the parameters to record; for updates a copy of those that are trained is kept.
        roles: Of parameters, by name.
        kinds: What is recorded.
    """

    def __init__(self, model: nn.Module, names: list[str], roles: Mapping[str, str], kinds: tuple[str, ...]):
        self.model = model
        self.roles = roles
        self.kinds = kinds
        self.parameters = {name: model.get_parameter(name) for name in names}
        self._reached: dict[str, Tensor] = {}
        self._start: dict[str, Tensor] = {}

    @torch.no_grad()
    def entries(self, step: int) -> Iterator[Entry]:
        """The sums of all parameters at the beginning of a step, and their spectral norms."""
        for name, parameter in self.parameters.items():
            weight = parameter.detach()
            if not weight.is_floating_point() or not weight.numel():
                continue
            if "weight" in self.kinds:
                yield self._entry(step, name, "weight", weight)
            if "update" not in self.kinds or not parameter.requires_grad:
                continue
            if step == 0:
                self._start[name] = weight.clone()
            elif name in self._start:
                yield self._entry(step, name, "update", at_least_float32(weight) - at_least_float32(self._start[name]))

    def _entry(self, step: int, name: str, kind: str, weight: Tensor) -> Entry:
        norm = spectral_norm(as_matrices(self.model, name, weight))
        return Entry(step, name, "", self.roles.get(name), kind, weight.numel(), sums(weight), spectral=norm)

    def reach(self, name: str, gradient: Tensor) -> None:
        """Told of every gradient of a parameter."""
        any_entry = (gradient.detach() != 0).any()
        self._reached[name] = any_entry | self._reached[name] if name in self._reached else any_entry

    def without_unreached(self, records: pd.DataFrame) -> pd.DataFrame:
        """Without the updates of parameters that never moved, and whose gradient was always zero: they owe none."""
        rows = records["kind"] == "update"
        moved = {*records["module"][rows & (records["max"] != 0)]}
        reached = {
            n for n, any_entry in zip(self._reached, moved_numbers([*self._reached.values()]), strict=True) if any_entry
        }
        still = rows & ~records["module"].isin(moved | reached)
        return records[~still].reset_index(drop=True) if still.any() else records
