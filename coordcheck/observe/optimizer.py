"""What an audit wants to know of anybody's optimizer: how its steps depend on the size of the gradient."""

import itertools

import torch
from torch import Tensor, nn

WARMUP = 6  # steps, after which RAdam's no longer are SGD's
SAME = 0.1  # largest relative spread of what counts as one number


def check_optimizer(optimizer: object) -> torch.optim.Optimizer:
    """What a user's `optimizer` returned, if it is one.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(
            f"`optimizer` must return a torch.optim.Optimizer; got {type(optimizer).__name__}. "
            f"For example optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=1e-3)."
        )
    return optimizer


def update_rules(optimizer: torch.optim.Optimizer) -> list[str | None]:
    """How a step of each parameter group depends on the gradient, found out by taking some.

    Whatever the optimizer's name is, its learning rates scale with width by this alone.

    Args:
        optimizer: Used up: its groups and state are changed. Its parameters are not, they may be somebody else's too.

    Returns:
        For each group "adam" if all entries move by the same amount, whatever their gradients, "sgd" if they
        move in proportion to them; None if neither, if the size of the weights matters, or if no step can be taken.
    """
    generator = torch.Generator().manual_seed(0)
    moved = [
        [_stand_in(p, optimizer, generator) for p in g["params"] if p.requires_grad] for g in optimizer.param_groups
    ]
    for group, stand_ins in zip(optimizer.param_groups, moved, strict=True):
        # a schedule may begin at zero
        group |= {"params": stand_ins, "lr": 1.0, "weight_decay": 0.0}
    try:
        *_, light, heavy = [_steps(optimizer, moved, weight) for weight in (*[1.0] * WARMUP, 100.0)]
        return [_update_rule(*of_group) for of_group in zip(moved, light, heavy, strict=True)]
    except Exception:  # of somebody else's optimizer, which may want a closure, sparse gradients, another device
        return [None] * len(moved)


def _stand_in(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> nn.Parameter:
    """A parameter of the same shape with a gradient, in double precision: in bfloat16 most steps are lost."""
    result = nn.Parameter(torch.empty(parameter.shape, dtype=torch.float64))
    # away from zero, where Adam's epsilon would count
    size = 0.5 + torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
    result.grad = size * torch.randint(0, 2, parameter.shape, generator=generator).mul(2).sub(1)
    if parameter in optimizer.state:  # Adagrad's begins when it is made
        optimizer.state[result] = optimizer.state.pop(parameter)
    return result


def _steps(optimizer: torch.optim.Optimizer, moved: list[list[nn.Parameter]], weight: float) -> list[list[Tensor]]:
    """How far each entry moves from `weight` in a step."""
    with torch.no_grad():
        for p in itertools.chain(*moved):
            p.fill_(weight)
    optimizer.step()
    return [[(p.detach() - weight).abs().flatten() for p in parameters] for parameters in moved]


def _update_rule(parameters: list[nn.Parameter], light: list[Tensor], heavy: list[Tensor]) -> str | None:
    if not sum(p.numel() for p in parameters):
        return None
    gradient = torch.cat([p.grad.abs().flatten() for p in parameters if p.grad is not None])
    steps = torch.stack([torch.cat(light), torch.cat(heavy)])
    first, second = steps.mean(dim=1).tolist()
    if not first / 2 < second < first * 2:
        return None
    for rule, ratio in (("adam", steps), ("sgd", steps / gradient)):
        if bool((ratio.std(dim=1, correction=0) < SAME * ratio.mean(dim=1)).all()):
            return rule
    return None
