"""Parameter groups and the optimizer: mup's in muP, torch's own in standard parametrization.

Also what an audit wants to know of anybody's optimizer: whether its steps depend on the size of the gradient.
"""

import mup
import torch
from torch import nn

from coordcheck.config import Optimizer, OptimizerConfig, Parametrization

FUSED_DEVICES = ("cpu", "cuda")


def parameter_groups(model: nn.Module, weight_decay: float, decay_embedding: bool = True) -> list[dict[str, object]]:
    """Decays every parameter of two or more dimensions, as nanoGPT's ``configure_optimizers`` does since May 2023.

    Args:
        model: Its parameters.
        weight_decay: Of those that decay.
        decay_embedding: False leaves embeddings out, also one whose weight is the readout's: so nanoGPT had it when
            tying was merged in January 2023.

    Returns:
        Groups for any torch or mup optimizer; without weight decay a single one.
    """
    parameters = list(model.parameters())
    if not weight_decay:
        return [{"params": parameters, "weight_decay": 0.0}]
    kept = set() if decay_embedding else {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed = {p for p in parameters if p.dim() >= 2} - kept
    return [
        {"params": [p for p in parameters if p in decayed], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p not in decayed], "weight_decay": 0.0},
    ]


def make_optimizer(
    model: nn.Module, config: OptimizerConfig, parametrization: Parametrization
) -> torch.optim.Optimizer:
    """The optimizer of a cell.

    In muP the mup package divides the learning rates of Adam by width_mult for hidden weights, and multiplies
    those of SGD by it for vectors, inputs and readouts; it scales the decay inversely, so that their product,
    what a step of AdamW decays, keeps its size.

    Args:
        model: In muP its base shapes are set.
        config: Which optimizer, and its values at base width.
        parametrization: Whose learning rates.
    """
    groups = [
        group for group in parameter_groups(model, config.weight_decay, config.decay_embedding) if group["params"]
    ]
    fused = next(model.parameters()).device.type in FUSED_DEVICES
    if config.name == Optimizer.sgd:
        in_sgd = mup.MuSGD if parametrization == Parametrization.mup else torch.optim.SGD
        sgd: torch.optim.Optimizer = in_sgd(groups, lr=config.lr, momentum=config.momentum, fused=fused)
        return sgd
    plain = torch.optim.AdamW if config.name == Optimizer.adamw else torch.optim.Adam
    scaled = mup.MuAdamW if config.name == Optimizer.adamw else mup.MuAdam
    in_adam = scaled if parametrization == Parametrization.mup else plain
    adam: torch.optim.Optimizer = in_adam(
        groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), eps=config.eps, fused=fused
    )
    return adam


def update_rules(optimizer: torch.optim.Optimizer) -> list[str | None]:
    """How the first step of each parameter group depends on the gradient, found out by taking it.

    Whatever the optimizer's name is, its learning rates scale with width by this alone.

    Args:
        optimizer: Used up: its parameters and state are changed.

    Returns:
        For each group "adam" if all entries move by the same amount, whatever their gradients, "sgd" if they
        move in proportion to them, None if neither, or if the group does not move.
    """
    generator = torch.Generator().manual_seed(0)
    moved = [[p for p in group["params"] if p.requires_grad] for group in optimizer.param_groups]
    for group, parameters in zip(optimizer.param_groups, moved, strict=True):
        group["weight_decay"] = 0.0
        for p in parameters:
            # away from zero, where Adam's epsilon would count
            size = 0.5 + torch.rand(p.shape, generator=generator)
            p.grad = (size * torch.randint(0, 2, p.shape, generator=generator).mul(2).sub(1)).to(p)
    before = [[p.detach().clone() for p in parameters] for parameters in moved]
    optimizer.step()
    return [_update_rule(parameters, old) for parameters, old in zip(moved, before, strict=True)]


def _update_rule(parameters: list[nn.Parameter], before: list[torch.Tensor]) -> str | None:
    if not parameters:
        return None
    step = torch.cat([(p.detach() - old).abs().flatten() for p, old in zip(parameters, before, strict=True)])
    gradient = torch.cat([p.grad.abs().flatten() for p in parameters if p.grad is not None])
    for rule, ratio in (("adam", step), ("sgd", step / gradient)):
        if ratio.mean() > 0 and ratio.std() < 0.1 * ratio.mean():
            return rule
    return None
