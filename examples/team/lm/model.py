"""A byte-level language model in muP, written by hand: no package but torch."""

import torch
from torch import Tensor, nn

BASE_WIDTH = 64  # where learning rates are tuned
VOCABULARY = 256


class Block(nn.Module):
    """A pre-norm feed-forward block."""

    def __init__(self, width: int, act: str):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.act = {"relu": nn.ReLU(), "gelu": nn.GELU()}[act]

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., D)."""
        return x + self.down(self.act(self.up(self.norm(x))))


class LM(nn.Module):
    """Predicts a byte from the one before it."""

    def __init__(self, width: int, depth: int, act: str):
        super().__init__()
        self.multiplier = BASE_WIDTH / width
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.Sequential(*(Block(width, act) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns logits, (B, L, V)."""
        return self.head(self.multiplier * self.norm(self.blocks(self.embedding(tokens))))


def build(width: int, depth: int = 2, act: str = "gelu") -> LM:
    """An initialized model: hidden weights shrink like width^-1/2, those of the head have a multiplier instead."""
    model = LM(width, depth, act)
    for name, parameter in model.named_parameters():
        if name.startswith("blocks") and parameter.dim() == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    nn.init.zeros_(model.head.weight)
    return model


def optimizer(model: LM) -> torch.optim.Optimizer:
    """Adam; hidden matrices learn at a rate that shrinks like 1/width."""
    hidden = [p for name, p in model.named_parameters() if name.startswith("blocks") and p.dim() == 2]
    others = [p for name, p in model.named_parameters() if not (name.startswith("blocks") and p.dim() == 2)]
    groups = [{"params": hidden, "lr": 1e-3 * model.multiplier}, {"params": others, "lr": 1e-3}]
    return torch.optim.Adam(groups, betas=(0.9, 0.95), eps=1e-12)
