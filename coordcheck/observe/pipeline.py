"""The stages of a pipeline that are on this rank, and the one thing that is asked of the other ranks: their names."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.distributed as dist
from torch import nn

from coordcheck.observe.modules import named_modules
from coordcheck.records.schema import LOSS_MODULE

PLACES = 1_000_000  # between the first modules of two stages, in forward order


def is_schedule(model: object) -> bool:
    """Whether something is the schedule of a pipeline."""
    return any(kind.__name__ == "_PipelineSchedule" for kind in type(model).__mro__)


class Pipeline(nn.Module):
    """The stages of a schedule that are on this rank, as one module whose children are named as records name them.

    Modules have the names that their stage gives them, if no other stage gives the same ones; else all names begin with
    that of their stage, ``stages.0.``. The last stage stands for the model, whose output it makes; the output of
    another is that of ``stages.0``.

    Args:
        schedule: Of ``torch.distributed.pipelining``. Every rank of the pipeline makes a recorder, for their names are
            gathered here.
    """

    def __init__(self, schedule: Any):
        super().__init__()
        single = getattr(schedule, "_stage", None)
        self._of_schedule: list[Any] = [single] if single is not None else list(schedule._stages)
        self.divisor = float(schedule._n_microbatches if schedule.scale_grads else 1)
        here = {stage.stage_index: [*_called(stage.submod)] for stage in self._of_schedule}
        first = self._of_schedule[0]
        everywhere: list[Any] = [None] * dist.get_world_size(first.group)
        dist.all_gather_object(everywhere, here, group=first.group)
        by_stage = {index: names for rank in everywhere for index, names in rank.items()}
        self.apart = sum(map(len, by_stage.values())) > len({name for names in by_stage.values() for name in names})
        self.stages = nn.ModuleDict({str(stage.stage_index): stage.submod for stage in self._of_schedule})
        self.last = first.num_stages - 1

    def named(self) -> Iterator[tuple[str, nn.Module]]:
        """Every module of the stages here by its name in records."""
        yield from ((name, module) for name, module, _ in self._named())

    def begins(self) -> dict[str, int]:
        """The place in forward order where the stage of each module begins; the loss follows the last."""
        return {name: index * PLACES for name, _, index in self._named()} | {LOSS_MODULE: self.last * PLACES}

    def _named(self) -> Iterator[tuple[str, nn.Module, int]]:
        for stage in self._of_schedule:
            index, own = stage.stage_index, f"stages.{stage.stage_index}"
            for name, module in named_modules(stage.submod):
                if name:
                    yield f"{own}.{name}" if self.apart else name, module, index
                else:
                    yield "" if index == self.last else own, module, index

    @contextmanager
    def running(self, told: Callable[[bool], None]) -> Iterator[None]:
        """Tells when a micro-batch runs forward: what else a schedule runs, to learn shapes, computes with garbage."""
        with ExitStack() as stack:
            for stage in self._of_schedule:
                stage.forward_one_chunk = _telling(stage.forward_one_chunk, told)
                stack.callback(vars(stage).pop, "forward_one_chunk")
            yield


def _called(stage: nn.Module) -> Iterator[str]:
    """Names of modules that may run, which lists of modules do not."""
    for name, module in named_modules(stage):
        if name and not isinstance(module, nn.ModuleList | nn.ModuleDict):
            yield name


def _telling(forward: Callable[..., Any], told: Callable[[bool], None]) -> Callable[..., Any]:
    def one_chunk(*args: Any, **kwargs: Any) -> Any:
        told(True)
        try:
            return forward(*args, **kwargs)
        finally:
            told(False)

    return one_chunk
