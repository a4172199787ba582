"""Where runs take place."""

import gc
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from coordcheck.records.names import one_line, shown


def to_device(batch: Any, device: torch.device) -> Any:
    """`batch` with every tensor in it moved to `device`."""
    if isinstance(batch, Tensor):
        # what was made in inference mode cannot be trained on
        return (batch.clone() if batch.is_inference() else batch).to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        moved = [to_device(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch


def pick_device(name: str | torch.device, elsewhere: bool = False) -> torch.device:
    """The device that `name` asks for; "auto" is a GPU if there is one.

    Args:
        name: Of the device.
        elsewhere: Whether runs take place on other machines, so that it need not be here.

    Raises:
        ValueError: if it is not there, or cannot train.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not isinstance(name, str | torch.device):
        raise ValueError(
            f"`device` is the name of a device; got {shown(name)}. For example device='auto' or device='cpu'."
        )
    try:
        device = torch.device(name)
        if elsewhere:
            return device
        with torch.inference_mode(False), torch.enable_grad():
            torch.ones(1, device=device, requires_grad=True).sum().backward()  # type: ignore[no-untyped-call]
            torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = one_line(str(error).split("\n")[0])
        raise ValueError(
            f"`device` must be one that this machine and this torch can train on; got {str(name)!r} ({reason}). "
            f"For example device='auto' or device='cpu'."
        ) from error
    return device


def release(device: torch.device) -> None:
    """Gives memory that nothing holds any more back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def generator_states(devices: Iterable[torch.device]) -> list[Tensor]:
    """States of torch's global generators, of the CPU's first; dropout on a GPU draws from the GPU's own."""
    states = [torch.get_rng_state()]
    for device in sorted(set(devices), key=str):
        if device.type == "cuda":
            states.append(torch.cuda.get_rng_state(device))
        elif device.type == "mps":
            states.append(torch.mps.get_rng_state())
    return states
