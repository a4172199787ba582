"""GPT-2 in the structure that nanoGPT writes: pre-LN blocks, learned positions, one final norm.

Options exchange a layer for the one of later models: RMS norm, SwiGLU, grouped queries, norms of q and k.

Legend of the shape suffixes: B batch, L length, D width, V vocabulary. Source of the structure: Radford et
al. 2019; karpathy/nanoGPT ``model.py``. Unlike there q, k and v are three matrices, so that each is
recorded, and nothing here initializes a parameter.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from coordcheck.models.layers import Attention, FeedForward, make_norm, make_readout


class Block(nn.Module):
    """One pre-norm transformer block, of layers that its arguments make."""

    def __init__(
        self,
        new_norm: Callable[[], nn.Module],
        new_attention: Callable[[], nn.Module],
        new_feed_forward: Callable[[], nn.Module],
    ):
        super().__init__()
        self.ln_1 = new_norm()
        self.attn = new_attention()
        self.ln_2 = new_norm()
        self.mlp = new_feed_forward()

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
        norm: "layer" or "rms".
        feed_forward: Kind of :class:`~coordcheck.models.layers.FeedForward`.
        kv_heads: Heads of keys and values; None for `heads`. See :class:`~coordcheck.models.layers.Attention`.
        qk_norm: Whether queries and keys pass through an RMS norm per head.

    Raises:
        ValueError: if an option is unknown or the head counts do not divide what they must.
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
        norm: str = "layer",
        feed_forward: str = "gelu",
        kv_heads: int | None = None,
        qk_norm: bool = False,
    ):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, width)
        self.wpe = nn.Embedding(context, width) if positions == "learned" else None
        new_norm = partial(make_norm, norm, width, bias)
        new_attention = partial(
            Attention, width, heads, attention_scale, bias, causal=True, kv_heads=kv_heads, qk_norm=qk_norm
        )
        new_feed_forward = partial(FeedForward, width, bias, feed_forward)
        self.blocks = nn.ModuleList(Block(new_norm, new_attention, new_feed_forward) for _ in range(depth))
        self.ln_f = new_norm()
        self.lm_head = make_readout(self.wte, tied, mup_multiplier)

    def forward(self, tokens_BxL: Tensor) -> Tensor:
        """Returns the logits, (B, L, V)."""
        x_BxLxD = self.wte(tokens_BxL)
        if self.wpe is not None:
            x_BxLxD = x_BxLxD + self.wpe(torch.arange(tokens_BxL.shape[1], device=tokens_BxL.device))
        for block in self.blocks:
            x_BxLxD = block(x_BxLxD)
        return cast(Tensor, self.lm_head(self.ln_f(x_BxLxD)))
