"""Parameter groups and the optimizer: mup's in muP, torch's own in standard parametrization."""

import mup
import torch
from torch import nn

from coordcheck.config.schema import Optimizer, OptimizerConfig, Parametrization

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
