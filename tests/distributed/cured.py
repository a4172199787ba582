"""How a cured model trains in one process, and sharded over several."""

import modes
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

import coordcheck


def train(way: str) -> dict[str, Tensor]:
    """Weights of a cured model after AdamW with a scheduler and clipped gradients.

    Args:
        way: "alone", or under FSDP2, initialized by the cure "before" the model is sharded or "after".
    """
    entries = [
        {"parameters": ["blocks.*.attn.q.weight", "blocks.*.fc.weight"], "role": "hidden", "std": -0.5, "lr": -1},
        {"parameters": ["head.weight"], "role": "readout", "std": -0.5, "lr": -1, "weight_decay": 1, "eps": -1},
    ]
    table = {"version": 1, "base_width": modes.WIDTH // 4, "entries": entries, "multipliers": {"head": -1}}
    cure, model = coordcheck.Cure.from_dict(table), modes.build()
    if way != "after":
        cure.initialize(model, modes.WIDTH)
        cure.attach(model, modes.WIDTH)
    if way != "alone":
        modes.shard(model, init_device_mesh("cpu", (dist.get_world_size(),)), False)
    if way == "after":
        cure.initialize(model, modes.WIDTH)
        cure.attach(model, modes.WIDTH)
    optimizer = torch.optim.AdamW(cure.param_groups(model, modes.WIDTH, lr=1e-2, weight_decay=0.1, eps=1e-8))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, modes.STEPS)
    inputs, targets = modes.batch() if way == "alone" else modes.share()
    for _ in range(modes.STEPS):
        modes.loss_of(model(inputs), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return {
        name: (parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter).detach()
        for name, parameter in model.named_parameters()
    }
