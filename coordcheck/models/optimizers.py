"""Parameter groups and the optimizer: mup's in muP where it has one, else torch's own with the row's learning rates."""

from collections.abc import Mapping, Sequence
from typing import Any

import mup
import torch
from torch import nn

from coordcheck.config.schema import Optimizer, OptimizerConfig, Parametrization
from coordcheck.judge.parametrizations import TABLES, InDepth
from coordcheck.observe.optimizer import Together

LIKE_ADAM = (Optimizer.adam, Optimizer.adamw, Optimizer.lion)  # steps of one size, whatever the gradient's
FUSED_DEVICES = ("cpu", "cuda")
SMALLEST_WEIGHT = 1e-3  # root mean square that Adafactor takes a weight to have at least; torch's default
MUON_STEP = 0.5  # exponent of the operator norm of a step that is as large as AdamW's, 0.2 sqrt(max(fan_in, fan_out))


def parameter_groups(model: nn.Module, weight_decay: float, decay_embedding: bool = True) -> list[dict[str, Any]]:
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
    model: nn.Module,
    config: OptimizerConfig,
    parametrization: Parametrization,
    roles: Mapping[str, str] | None = None,
    width_mult: float = 1.0,
    depth_mults: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer of a cell.

    In muP the mup package divides the learning rates of Adam by width_mult for hidden weights, and multiplies
    those of SGD by it for vectors, inputs and readouts; it scales the decay inversely, so that their product,
    what a step of AdamW decays, keeps its size. For other optimizers and parametrizations the row in
    :mod:`coordcheck.judge.parametrizations` does likewise.

    Args:
        model: In muP its base shapes are set.
        config: Which optimizer, and its values at base width.
        parametrization: Whose learning rates.
        roles: Of parameters, by name; None where all have one learning rate.
        width_mult: width / base width.
        depth_mults: depth / base depth by parameter, of those that stand in residual branches.

    Raises:
        ValueError: if this torch has no such optimizer, or it has no roles to go by.
    """
    groups = [
        group for group in parameter_groups(model, config.weight_decay, config.decay_embedding) if group["params"]
    ]
    if parametrization == Parametrization.mup and config.name in (Optimizer.adam, Optimizer.adamw, Optimizer.sgd):
        return _torch_optimizer(groups, config, mup.MuAdam, mup.MuAdamW, mup.MuSGD)
    if parametrization not in (Parametrization.sp, Parametrization.own) and roles is None:
        raise ValueError(
            f"optimizer={config.name} has no learning rates for a model with mup's base shapes. "
            f"For example optimizer=adamw, or model.optimizer=my_package.my_module.optimizer."
        )
    names = {parameter: name for name, parameter in model.named_parameters()}
    known = {} if roles is None else {parameter: roles[name] for parameter, name in names.items()}
    in_branches = {p: depth_mults[name] for p, name in names.items() if name in depth_mults} if depth_mults else {}
    scheme = Parametrization.sp if parametrization == Parametrization.own else parametrization
    return optimizer_by_row(groups, config, scheme, known, width_mult, in_branches)


def optimizer_by_row(
    groups: Sequence[Mapping[str, Any]],
    config: OptimizerConfig,
    parametrization: Parametrization,
    roles: Mapping[nn.Parameter, str],
    width_mult: float,
    depth_mults: Mapping[nn.Parameter, float] | None = None,
) -> torch.optim.Optimizer:
    """One of torch's optimizers, with the learning rates of a row.

    Args:
        groups: Of parameters, with their weight decay.
        config: Which optimizer, and its values at base width.
        parametrization: The row.
        roles: Of parameters; none are needed where all have one learning rate, but by Muon.
        width_mult: width / base width.
        depth_mults: depth / base depth of parameters that stand in residual branches.

    Raises:
        ValueError: if this torch has no such optimizer.
    """

    def at_rates(some: Sequence[Mapping[str, Any]], update: str) -> list[dict[str, Any]]:
        return _at_rates(some, roles, parametrization, update, width_mult, depth_mults or {}, config)

    if config.name != Optimizer.muon:
        update = "adam" if config.name in LIKE_ADAM else config.name.value
        return _torch_optimizer(at_rates(groups, update), config)
    hidden = {parameter for parameter, role in roles.items() if role == "hidden" and parameter.dim() == 2}
    parts = [
        [{**group, "params": [p for p in group["params"] if (p in hidden) == of_muon]} for group in groups]
        for of_muon in (True, False)
    ]
    matrices, rest = ([group for group in part if group["params"]] for part in parts)
    return Together([_muon(at_rates(matrices, "muon"), config), _adamw(at_rates(rest, "adam"), config)])


def _at_rates(
    groups: Sequence[Mapping[str, Any]],
    roles: Mapping[nn.Parameter, str],
    parametrization: Parametrization,
    update: str,
    width_mult: float,
    depth_mults: Mapping[nn.Parameter, float],
    config: OptimizerConfig,
) -> list[dict[str, Any]]:
    """Groups split by learning rate and epsilon; what a step decays, rate times weight decay, keeps its size."""
    table = TABLES[parametrization]
    in_depth = table.in_depth or InDepth(0.0, {}, 0.0)
    split: list[dict[str, Any]] = []
    for group in groups:
        parts: dict[tuple[float, float], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            role, depth_mult = roles.get(parameter, ""), depth_mults.get(parameter, 1.0)
            power = table.rate(role, update, table.multiplier(role)) or 0.0
            if update == "muon" and parametrization != Parametrization.sp:
                power -= MUON_STEP
            factor = width_mult**power * depth_mult ** in_depth.rates.get(update, 0.0)
            epsilon = config.eps * width_mult**table.epsilon * depth_mult**in_depth.epsilon
            parts.setdefault((factor, epsilon), []).append(parameter)
        for (factor, epsilon), parameters in parts.items():
            part = {**group, "params": parameters, "lr": config.lr * factor}
            part |= {"weight_decay": group["weight_decay"] / factor}
            split.append(part | ({"eps": epsilon} if update == "adam" and config.name != Optimizer.lion else {}))
    return split


def _torch_optimizer(
    groups: list[dict[str, Any]],
    config: OptimizerConfig,
    adam: Any = torch.optim.Adam,
    adamw: Any = torch.optim.AdamW,
    sgd: Any = torch.optim.SGD,
) -> torch.optim.Optimizer:
    fused = groups[0]["params"][0].device.type in FUSED_DEVICES
    if config.name == Optimizer.adafactor:
        return torch.optim.Adafactor(groups, lr=config.lr, eps=(config.eps, SMALLEST_WEIGHT))
    made: torch.optim.Optimizer
    if config.name == Optimizer.lion:
        made = _lion()(groups, lr=config.lr, betas=(config.betas[0], config.betas[1]))
        return made
    if config.name == Optimizer.sgd:
        made = sgd(groups, lr=config.lr, momentum=config.momentum, fused=fused)
        return made
    kind = adamw if config.name == Optimizer.adamw else adam
    made = kind(groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), eps=config.eps, fused=fused)
    return made


def _lion() -> Any:
    try:
        from lion_pytorch import Lion
    except ModuleNotFoundError as error:
        raise ValueError(
            "optimizer=lion needs lion-pytorch, which is not installed. For example pip install 'coordcheck[lion]'."
        ) from error
    return Lion


def _adamw(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """What trains beside Muon."""
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), eps=config.eps)


def _muon(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(
            f"optimizer=muon needs torch 2.9 or later, which has torch.optim.Muon; this is {torch.__version__}. "
            f"For example optimizer=adamw."
        )
    muon: torch.optim.Optimizer = torch.optim.Muon(
        groups, lr=config.lr, momentum=config.momentum, adjust_lr_fn="match_rms_adamw"
    )
    return muon
