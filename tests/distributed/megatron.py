"""A transformer in muP that is split over ranks by hand, as Megatron-LM's are, in the cases of microsoft/mup#55.

Columns and rows of weights are on different ranks, the vocabulary is split for embedding, logits and loss, and the
all-reduces stand in the layers. Written from the description in arXiv 1909.08053, section 3.

Shapes: B sequences, L positions, D width, V vocabulary, R ranks.
"""

from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from modes import KINDS, merged
from torch import Tensor, nn

import coordcheck
from coordcheck import Recorder

BASE_WIDTH, VOCABULARY, BATCH, LENGTH, HEADS, OUTPUT_MULT, LR = 64, 64, 4, 16, 4, 1 / 8, 1e-2
CASES = ("untied", "tied_rescaled", "tied")


def ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() and not Alone.entered else 1


class Alone:
    """Inside, one process has all of the model, although there are others."""

    entered = False

    def __enter__(self) -> None:
        Alone.entered = True

    def __exit__(self, *_: object) -> None:
        Alone.entered = False


def added(x: Tensor) -> Tensor:
    """The sum over ranks."""
    if ranks() > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


class Into(torch.autograd.Function):
    """Whole on every rank -> into what is split: the gradients of the parts add up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return added(gradient)


class OutOf(torch.autograd.Function):
    """Out of what is split -> the sum of the parts on every rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return added(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class ColumnParallel(nn.Linear):
    """(..., D_in) -> (..., D_out / R)."""

    def __init__(self, fan_in: int, fan_out: int):
        super().__init__(fan_in, fan_out // ranks(), bias=False)
        self.split = 0

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(Into.apply(x), self.weight)


class RowParallel(nn.Linear):
    """(..., D_in / R) -> (..., D_out)."""

    def __init__(self, fan_in: int, fan_out: int):
        super().__init__(fan_in // ranks(), fan_out, bias=False)
        self.split = 1

    def forward(self, x: Tensor) -> Tensor:
        return OutOf.apply(F.linear(x, self.weight))


class VocabularyParallel(nn.Embedding):
    """Tokens (B, L) -> (B, L, D); each rank looks up its own part of the vocabulary."""

    def __init__(self, width: int):
        super().__init__(VOCABULARY // ranks(), width)
        self.split = 0

    def forward(self, tokens: Tensor) -> Tensor:
        local, here = own(tokens)
        return OutOf.apply(F.embedding(local, self.weight) * here[..., None])


class Readout(ColumnParallel):
    """(B, L, D) -> logits of this rank's part of the vocabulary, (B, L, V / R), with muP's multiplier."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * OUTPUT_MULT * BASE_WIDTH / x.shape[-1])


def own(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens as this rank counts them, and which of them it has."""
    part = VOCABULARY // ranks()
    local = tokens - part * (dist.get_rank() if ranks() > 1 else 0)
    here = (local >= 0) & (local < part)
    return local * here, here


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of logits that no rank has all of."""
    largest = logits.detach().amax(-1)
    if ranks() > 1:
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    logits = logits - largest[..., None]
    total = OutOf.apply(logits.exp().sum(-1))
    local, here = own(targets)
    target = OutOf.apply(logits.gather(-1, local[..., None])[..., 0] * here)
    return (total.log() - target).mean()


class Block(nn.Module):
    """x: (B, L, D)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (ColumnParallel(width, width) for _ in range(3))
        self.proj, self.up, self.down = (
            RowParallel(width, width),
            ColumnParallel(width, width),
            RowParallel(width, width),
        )
        self.head = width // HEADS

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_1(x)
        q, k, v = (part(y).unflatten(-1, (-1, self.head)).transpose(1, 2) for part in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=(BASE_WIDTH / HEADS) ** 0.5 / self.head)
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        return x + self.down(self.up(self.norm_2(x)).relu())


class Transformer(nn.Module):
    """tokens (B, L) -> this rank's logits (B, L, V / R)."""

    def __init__(self, width: int, case: str = "untied"):
        super().__init__()
        self.wte, self.wpe = VocabularyParallel(width), nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(width), Readout(width, VOCABULARY)
        if case != "untied":
            self.head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@torch.no_grad()
def build(width: int, seed: int, case: str) -> Transformer:
    """Each weight is drawn whole, on every rank the same, and the rank keeps its part: of the columns, or the rows."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(width, case)
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or isinstance(module, nn.LayerNorm) or (name == "head" and case != "untied"):
            continue
        split = getattr(module, "split", None)
        shape = [n * ranks() if i == split else n for i, n in enumerate(weight.shape)]
        std = 1.0 if name.startswith("w") or name == "head" else width**-0.5
        whole = std * torch.randn(shape, generator=generator)
        weight.copy_(whole if split is None or ranks() == 1 else whole.chunk(ranks(), split)[dist.get_rank()])
    if case == "tied_rescaled":
        model.head.weight *= (width / BASE_WIDTH) ** 0.5  # what mup's set_base_shapes does to its shared readout
    return model


def train(width: int, seed: int, case: str, kinds: tuple[str, ...] = KINDS) -> Recorder:
    model = build(width, seed, case)
    hidden = [p for name, p in model.named_parameters() if name.startswith("blocks") and p.dim() == 2]
    others = [p for name, p in model.named_parameters() if not (name.startswith("blocks") and p.dim() == 2)]
    rates = [{"params": hidden, "lr": LR * BASE_WIDTH / width}, {"params": others, "lr": LR}]
    optimizer = torch.optim.Adam(rates)
    text = torch.randint(VOCABULARY, (2, BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    roles = coordcheck.roles(Transformer)
    with Recorder(model, width=width, seed=seed, kinds=kinds, roles=roles) as recorder:
        for _ in range(4):
            loss = loss_of(model(text[0]), text[1])
            recorder.record_loss(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            recorder.step()
    return recorder


def on_all(case: str) -> pd.DataFrame:
    return merged(train(128, 0, case))


def on_one(case: str) -> pd.DataFrame:
    with Alone():
        return train(128, 0, case).records()


def over_widths(case: str, widths: tuple[int, ...] = (64, 128, 256), seeds: int = 3) -> pd.DataFrame:
    runs = [train(width, seed, case, ("activation",)) for width in widths for seed in range(seeds)]
    return coordcheck.merge([merged(run) for run in runs])
