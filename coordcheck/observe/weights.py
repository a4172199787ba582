"""The sizes of weights W_t and of their changes W_t - W_0, each parameter by itself."""

from collections.abc import Iterator, Mapping
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from coordcheck.observe.frame import Entry
from coordcheck.observe.spectral import as_matrices, spectral_norm
from coordcheck.observe.sums import at_least_float32, moved_numbers, sums


class Weights:
    """What the kinds "weight" and "update" record.

    Args:
        model: Whose parameters.
        parameters: Those to record, by the names of their records; of those trained updates keep a copy.
        roles: Of parameters, by name.
        kinds: What is recorded.
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], roles: Mapping[str, str], kinds: tuple[str, ...]
    ):
        self.model = model
        self.roles = roles
        self.kinds = kinds
        self.parameters = dict(parameters)
        self._within = {parameter: name for name, parameter in model.named_parameters()}
        self._reached: dict[str, Tensor] = {}
        self._start: dict[str, Tensor] = {}

    def hooks(self) -> list[RemovableHandle]:
        """Note which parameters a gradient reaches that is not all zero, whether an optimizer holds them or not."""
        return [
            parameter.register_post_accumulate_grad_hook(partial(self._reach, name))  # type: ignore[no-untyped-call]
            for name, parameter in self.parameters.items()
            if parameter.requires_grad and "update" in self.kinds
        ]

    def _reach(self, name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        any_entry = (parameter.grad.detach().to_dense() != 0).any()
        self._reached[name] = any_entry | self._reached[name] if name in self._reached else any_entry

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
        within = self._within[self.parameters[name]]  # where a wrapper hides it
        norm = spectral_norm(as_matrices(self.model, within, weight))
        return Entry(step, name, "", self.roles.get(name), kind, weight.numel(), sums(weight), spectral=norm)

    def without_unreached(self, records: pd.DataFrame) -> pd.DataFrame:
        """Without the updates of parameters that never moved, and whose gradient was always zero: they owe none."""
        rows = records["kind"] == "update"
        moved = {*records["module"][rows & (records["max"] != 0)]}
        reached = {
            n for n, any_entry in zip(self._reached, moved_numbers([*self._reached.values()]), strict=True) if any_entry
        }
        still = rows & ~records["module"].isin(moved | reached)
        return records[~still].reset_index(drop=True) if still.any() else records
