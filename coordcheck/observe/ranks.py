"""What one rank of several holds: its part of distributed tensors, and the frame that all ranks' records make.

Every rank sums what it holds, and the ranks' records are merged afterwards: what is split adds up, and what every rank
holds whole cancels in every mean. Tensors that torch distributes become local here and nowhere else.
"""

import sys
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from torch import Tensor

from coordcheck.records.pool import pooled
from coordcheck.records.schema import RANK, RANKS


def is_distributed(x: Any) -> bool:
    """Whether torch distributes a tensor over ranks; nobody has one who did not import what makes them."""
    made_by = sys.modules.get("torch.distributed.tensor")
    return made_by is not None and isinstance(x, made_by.DTensor)


@torch.no_grad()
def local(x: Tensor) -> Tensor:
    """This rank's part of a tensor, or all of it where it is not distributed.

    Only partial sums are talked about with other ranks: the sum of absolute values is not that of their parts.
    """
    if is_distributed(x):
        distributed: Any = x.detach()
        if any(placement.is_partial() for placement in distributed.placements):
            whole = [_replicated() if p.is_partial() else p for p in distributed.placements]
            distributed = distributed.redistribute(placements=whole)
        x = distributed.to_local()
    collectives = sys.modules.get("torch.distributed._functional_collectives")
    if collectives is not None and isinstance(x, collectives.AsyncCollectiveTensor):
        arrived: Tensor = x.wait()
        return arrived
    return x


def _replicated() -> Any:
    from torch.distributed.tensor import Replicate

    return Replicate()


def place(x: Tensor, dimension: int) -> tuple[int, int]:
    """Size of a dimension on all ranks together, and where this rank's part of it begins."""
    if not is_distributed(x):
        return x.shape[dimension], 0
    dimension %= x.dim()
    length, begins = x.shape[dimension], 0
    distributed: Any = x
    for axis, placement in enumerate(distributed.placements):
        if placement.is_shard(dimension):  # as torch.chunk splits
            chunk = -(-length // distributed.device_mesh.size(axis))
            first = min(length, chunk * distributed.device_mesh.get_local_rank(axis))
            length, begins = min(chunk, length - first), begins + first
    return x.shape[dimension], begins


def splits_evenly(x: Tensor, dimension: int, parts: int) -> bool:
    """Whether each rank holds as many of so many equal parts of a dimension as every other; true of a whole tensor."""
    if not is_distributed(x):
        return True
    distributed: Any = x
    sizes = [distributed.device_mesh.size(i) for i, p in enumerate(distributed.placements) if p.is_shard(dimension)]
    return not sizes or (len(sizes) == 1 and x.shape[dimension] % sizes[0] == 0 and parts % sizes[0] == 0)


def selected(x: Tensor, dimension: int, chosen: Tensor) -> Tensor:
    """``x.index_select(dimension, chosen)``, of a distributed tensor without a word to other ranks.

    Args:
        x: Any; where `dimension` is split over ranks, it must split evenly.
        dimension: Of `x`.
        chosen: Ascending places, one in each of so many equal parts of the dimension.
    """
    if not is_distributed(x):
        return x.index_select(dimension, chosen)
    distributed: Any = x
    here, (size, begins) = distributed.to_local(), place(x, dimension)
    each = len(chosen) * here.shape[dimension] // size
    first = begins * len(chosen) // size
    shape = torch.Size([len(chosen) if i == dimension else n for i, n in enumerate(x.shape)])
    result: Tensor = type(distributed).from_local(
        here.index_select(dimension, chosen[first : first + each] - begins),
        distributed.device_mesh,
        distributed.placements,
        run_check=False,
        shape=shape,
        stride=torch.empty(shape, device="meta").stride(),
    )
    return result


def rank_of(group: Any = None) -> dict[str, int]:
    """Which rank of how many this process is, for the attrs of records; nothing where there is but one.

    Raises:
        ValueError: if this process is not in `group`.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return {}
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise ValueError(
            "`group` holds the ranks that trained the model together, this one among them; it is not in that group. "
            "For example recorder.records(group=torch.distributed.group.WORLD)."
        )
    return {RANK: rank, RANKS: size} if size > 1 else {}


def gathered(records: pd.DataFrame, group: Any) -> pd.DataFrame:
    """The records of all ranks of a process group as one frame, the same on each; every rank has to call it."""
    rank_of(group)
    frames: list[Any] = [None] * dist.get_world_size(group)
    # a frame's attrs do not go through pickle with every pandas
    dist.all_gather_object(frames, (records, records.attrs), group=group)
    for frame, attrs in frames:
        frame.attrs = attrs
    return pooled([frame for frame, _ in frames])
