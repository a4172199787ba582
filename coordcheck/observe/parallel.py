"""What engines for many devices make of a model: what FSDP flattens, and what cannot be recorded."""

import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from coordcheck.observe.ranks import is_distributed

SUPPORTED = "DistributedDataParallel, FSDP1, FSDP2, tensor and sequence parallelism, and the schedules of pipelines"
Piece = tuple[nn.Module, str, slice | None]


def is_fsdp1(module: nn.Module) -> bool:
    """Whether FSDP1 wraps a module."""
    made_by = sys.modules.get("torch.distributed.fsdp")
    return made_by is not None and isinstance(module, made_by.FullyShardedDataParallel)


def is_fsdp2(module: nn.Module) -> bool:
    """Whether ``fully_shard`` was called with a module."""
    made_by = sys.modules.get("torch.distributed.fsdp")
    return made_by is not None and isinstance(module, made_by.FSDPModule)


def flat_parameters(model: nn.Module) -> Iterator[tuple[Tensor, list[Piece]]]:
    """What FSDP1 flattens, with the modules and names that this came from, and where in this rank's part each is."""
    for module in model.modules():
        part: Any = module
        flat: Any = getattr(part, "_flat_param", None) if is_fsdp1(module) else None
        if flat is None:
            continue
        owners = [(info.module, info.param_name) for info in flat._param_infos]
        pieces: list[Piece] = []
        for (owner, name), info in zip(owners, flat._shard_param_infos, strict=True):
            begins = info.offset_in_shard
            pieces.append((owner, name, slice(begins, begins + info.numel_in_shard) if info.in_shard else None))
        pieces += [(info.module, info.param_name, None) for info in flat._shared_param_infos]
        yield flat, pieces


def flattened(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Names of each module's parameters that FSDP1 keeps out of torch's sight."""
    found: dict[nn.Module, list[str]] = {}
    for _, pieces in flat_parameters(model):
        for module, name, _ in pieces:
            found.setdefault(module, []).append(name)
    return found


def check_parallel(model: nn.Module) -> None:
    """Makes sure that what distributes a model can be recorded.

    Raises:
        ValueError: naming what cannot, and what can.
    """
    for module in model.modules():
        if isinstance(module, nn.DataParallel):
            _refuse("torch.nn.DataParallel, which copies the model at every step")
        if any("deepspeed" in kind.__module__.split(".") for kind in type(module).__mro__):
            _refuse(f"DeepSpeed's {type(module).__name__}, whose parameters torch does not see")
    outside = not any(is_fsdp1(module) for module in model.modules())
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id"):
            _refuse(f"DeepSpeed's ZeRO stage 3, which took away {name}")
        if outside and hasattr(parameter, "_fsdp_flattened"):
            _refuse(f"the inside of a model that FSDP1 wraps, as the one of {name}; give it what wraps it")


def check_one_process(kinds: Sequence[str]) -> None:
    """Makes sure that kinds that are of whole weights are recorded where weights are whole.

    Raises:
        ValueError: if several processes train the model.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise ValueError(
            f"`kinds` {list(kinds)} are recorded in one process, for the norm of a weight is not that of its parts; "
            f"got {dist.get_world_size()} processes. For example kinds=['activation', 'effective_update']."
        )


def _refuse(what: str) -> None:
    raise ValueError(
        f"a recorder knows one process and {SUPPORTED}; it does not know {what}. For example "
        f"Recorder(DistributedDataParallel(model), width=512)."
    )


def warn_of_lost_roles(model: nn.Module) -> None:
    """Says that no role is known, where an engine has put new parameters in the place of those that mup described."""
    new = any(is_distributed(parameter) for parameter in model.parameters())
    if new or any(is_fsdp1(module) for module in model.modules()):
        warnings.warn(
            "no parameter has a role: what mup attaches to parameters, infshape, does not survive FSDP and tensor "
            "parallelism. Take the roles before the model is wrapped, and hand them in: for example "
            "roles = coordcheck.roles(build); Recorder(model, width=512, roles=roles).",
            stacklevel=3,
        )
