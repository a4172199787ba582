"""GPT-2 in the structure that nanoGPT writes: pre-LN blocks, learned positions, one final norm.

Legend of the shape suffixes: B batch, L length, D width, V vocabulary. Source of the structure: Radford et
al. 2019; karpathy/nanoGPT ``model.py``. Unlike there q, k and v are three matrices, so that each is
recorded, and nothing here initializes a parameter.
"""

from typing import cast

import torch
from torch import Tensor, nn

from coordcheck.models.layers import FeedForward, SelfAttention, make_readout


class Block(nn.Module):
    """One pre-LN transformer block."""

    def __init__(self, width: int, heads: int, attention_scale: float, bias: bool):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, bias=bias)
        self.attn = SelfAttention(width, heads, attention_scale, bias)
        self.ln_2 = nn.LayerNorm(width, bias=bias)
        self.mlp = FeedForward(width, bias)

    def forward(self, x_BxLxD: Tensor) -> Tensor:
        """Returns the residual stream after the block, (B, L, D)."""
        x_BxLxD = x_BxLxD + self.attn(self.ln_1(x_BxLxD))
        return cast(Tensor, x_BxLxD + self.mlp(self.ln_2(x_BxLxD)))


class GPT(nn.Module):
    """A decoder-only transformer.

    Args:
        width: D.
        heads: Number of attention heads; divides `width`.
        attention_scale: What q·k is multiplied by.
        depth: Number of blocks.
        vocab_size: V.
        context: Longest sequence; only the learned positions need it.
        bias: Whether linear layers and norms have biases.
        positions: "learned" or "none".
        tied: Whether the readout's weight is the token embedding's.
        mup_multiplier: mup's ``output_mult`` for a readout of the mup package, None for a plain one.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        attention_scale: float,
        *,
        depth: int,
        vocab_size: int,
        context: int,
        bias: bool,
        positions: str,
        tied: bool,
        mup_multiplier: float | None,
    ):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, width)
        self.wpe = nn.Embedding(context, width) if positions == "learned" else None
        self.blocks = nn.ModuleList(Block(width, heads, attention_scale, bias) for _ in range(depth))
        self.ln_f = nn.LayerNorm(width, bias=bias)
        self.lm_head = make_readout(self.wte, tied, mup_multiplier)

    def forward(self, tokens_BxL: Tensor) -> Tensor:
        """Returns the logits, (B, L, V)."""
        x_BxLxD = self.wte(tokens_BxL)
        if self.wpe is not None:
            x_BxLxD = x_BxLxD + self.wpe(torch.arange(tokens_BxL.shape[1], device=tokens_BxL.device))
        for block in self.blocks:
            x_BxLxD = block(x_BxLxD)
        return cast(Tensor, self.lm_head(self.ln_f(x_BxLxD)))
