"""What an audit wants to know of anybody's optimizer: how its steps depend on gradients and weights, by trying it.

Whatever its name is, learning rates scale with width by this alone.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WARMUP = 6  # steps, after which RAdam's no longer are SGD's
SAME = 0.1  # largest relative spread of what counts as one number
HEAVY = 100.0  # what weights are multiplied by to see whether their size matters
FLAT = 0.8  # share of a step's singular values above half of the largest where its operator norm is what is fixed


@dataclass(frozen=True)
class Step:
    """How a step of a parameter depends on what it is given.

    Attributes:
        rule: "adam" if all entries move by the same amount, whatever their gradients (Adam, Lion), "sgd" if they move
            in proportion to them, "muon" if the step of a matrix has the same size in every direction, "adafactor" if
            it is proportional to the weight's size; "" if none of these, or no step can be taken.
        size: Of a step at learning rate 1, dimensionless: its operator norm for "muon", divided by the weight's root
            mean square for "adafactor", else its root mean square; NaN if no step can be taken.
    """

    rule: str
    size: float


class Together(torch.optim.Optimizer):
    """Several optimizers of one model as one, for example Muon for matrices and AdamW for the rest.

    Args:
        parts: The optimizers; their parameter groups are shared: who changes a learning rate here changes theirs.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]):
        self.parts = list(parts)
        super().__init__([dict(group) for part in self.parts for group in part.param_groups], {})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Takes a step of each."""
        for part in self.parts:
            part.step(closure) if closure is not None else part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of all."""
        for part in self.parts:
            part.zero_grad(set_to_none)


def check_optimizer(optimizer: object) -> torch.optim.Optimizer:
    """What a user's `optimizer` returned, if it is one; several are taken together.

    Raises:
        ValueError: if it is none.
    """
    if (
        isinstance(optimizer, list | tuple)
        and optimizer
        and all(isinstance(o, torch.optim.Optimizer) for o in optimizer)
    ):
        return Together(optimizer)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(
            f"`optimizer` must return a torch.optim.Optimizer, or a list of them; got {type(optimizer).__name__}. "
            f"For example optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=1e-3)."
        )
    return optimizer


def try_steps(optimizer: torch.optim.Optimizer) -> dict[Tensor, Step]:
    """How a step of each parameter depends on gradients and weights, found out by taking some.

    Args:
        optimizer: Used up: its groups and state are changed. Its parameters are not, they may be somebody else's too.

    Returns:
        By parameter.
    """
    held = [[p for p in group["params"] if p.requires_grad] for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(0)
    moved = [[_stand_in(p, optimizer, generator) for p in parameters] for parameters in held]
    for group, stand_ins in zip(optimizer.param_groups, moved, strict=True):
        # a schedule may begin at zero
        group |= {"params": stand_ins, "lr": 1.0, "weight_decay": 0.0}
    try:
        *_, light, heavy = [_steps(optimizer, moved, weight) for weight in (*[1.0] * WARMUP, HEAVY)]
    except Exception:  # of somebody else's optimizer, which may want a closure, sparse gradients, another device
        return {p: Step("", math.nan) for p in itertools.chain(*held)}
    found: dict[Tensor, Step] = {}
    for parameters, stand_ins, of_light, of_heavy in zip(held, moved, light, heavy, strict=True):
        rule = _rule(stand_ins, of_light, of_heavy)
        found |= {p: Step(rule, _size(step, rule)) for p, step in zip(parameters, of_light, strict=True)}
    return found


def _stand_in(parameter: Tensor, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> nn.Parameter:
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
    return [[p.detach() - weight for p in parameters] for parameters in moved]


def _rule(parameters: Sequence[nn.Parameter], light: Sequence[Tensor], heavy: Sequence[Tensor]) -> str:
    if not sum(p.numel() for p in parameters):
        return ""
    gradient, first, second = (_flat(tensors) for tensors in ([p.grad for p in parameters], light, heavy))
    growth = float(second.mean() / first.mean())
    if HEAVY / 2 < growth < HEAVY * 2:
        return "adafactor"
    if not 0.5 < growth < 2:
        return ""
    for rule, ratio in (("adam", first), ("sgd", first / gradient)):
        if bool(ratio.std(correction=0) < SAME * ratio.mean()):
            return rule
    return "muon" if all(p.dim() >= 2 for p in parameters) and _is_flat(min(light, key=Tensor.numel)) else ""


def _flat(tensors: Sequence[Any]) -> Tensor:
    return torch.cat([tensor.abs().flatten() for tensor in tensors])


def _is_flat(step: Tensor) -> bool:
    """Whether a step has the same size in every direction."""
    values = torch.linalg.svdvals(step.flatten(1))
    return bool(values[0] > 0 and (values > values[0] / 2).double().mean() > FLAT)


def _size(step: Tensor, rule: str) -> float:
    if not step.numel():
        return math.nan
    if rule == "muon":
        return float(torch.linalg.matrix_norm(step.flatten(1), 2))
    return float(step.square().mean().sqrt())
