"""A small GPT, how it trains in one process, and how in each way that torch has of training it on several ranks.

Each mode returns what a rank recorded, merged; the ranks' processes run it, so it is a top-level function.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import coordcheck
from coordcheck import Recorder

KINDS = ("activation", "delta", "effective_update", "gradient")
BATCH, LENGTH, VOCABULARY, HEADS, WIDTH, STEPS = 8, 32, 64, 4, 128, 3


class Attention(nn.Module):
    """x: (B, L, D)."""

    def __init__(self, width: int):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = (part(x).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.proj(F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x: (B, L, D)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width)
        self.fc, self.out = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x))
        return x + self.out(self.fc(self.norm_2(x)).relu())


class GPT(nn.Module):
    """tokens: (B, L); an absent part, as in the stage of a pipeline, hands on what it gets."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.wte = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleDict({str(i): Block(width) for i in range(2)})
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wte(x) if self.wte is not None else x
        for block in self.blocks.values():
            x = block(x)
        return self.head(self.norm(x)) if self.head is not None else x


def build() -> GPT:
    torch.manual_seed(0)
    return GPT()


def roles() -> dict[str, str]:
    return coordcheck.roles(GPT)


def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1], tokens[:, 1:]


def share(rank: int | None = None, ranks: int | None = None) -> tuple[Tensor, Tensor]:
    """This rank's part of the batch."""
    rank, ranks = dist.get_rank() if rank is None else rank, ranks or dist.get_world_size()
    return tuple(part.chunk(ranks)[rank] for part in batch())


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


Optimizer = Callable[[Any], torch.optim.Optimizer]


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-2)


def train(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    *,
    micro_batches: int = 1,
    kinds: tuple[str, ...] = KINDS,
    optimizer: Optimizer = adam,
    quiet: Callable[[], Any] = nullcontext,
    loss: Callable[[Tensor, Tensor], Tensor] = loss_of,
    recorded: nn.Module | None = None,
) -> Recorder:
    """Trains a model, on several ranks with this rank's data, and records it."""
    stepped = optimizer(model.parameters())
    parts = [*zip(*(part.chunk(micro_batches) for part in data), strict=True)]
    recorder = Recorder(recorded or model, width=WIDTH, kinds=kinds, roles=roles())
    with recorder:
        for _ in range(STEPS):
            for i, (inputs, targets) in enumerate(parts):
                with nullcontext() if i == micro_batches - 1 else quiet():
                    value = loss(model(inputs), targets)
                    recorder.record_loss(value)
                    (value / micro_batches).backward()
            stepped.step()
            stepped.zero_grad()
            recorder.step()
    return recorder


def merged(recorder: Recorder) -> pd.DataFrame:
    return recorder.records(group=dist.group.WORLD)


def one_process(**kwargs: Any) -> pd.DataFrame:
    return train(build(), batch(), **kwargs).records()


def ddp() -> pd.DataFrame:
    return merged(train(DistributedDataParallel(build()), share()))
