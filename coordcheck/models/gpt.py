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

from coordcheck.config.schema import Init
from coordcheck.models.configured import ConfiguredCell
from coordcheck.models.initialize import Rule, Std
from coordcheck.models.layers import Attention, FeedForward, make_norm, make_readout

GPT2_STD = 0.02


class Block(nn.Module):
    """One pre-norm transformer block, of layers that its arguments make; what they add is multiplied."""

    def __init__(
        self,
        new_norm: Callable[[], nn.Module],
        new_attention: Callable[[], nn.Module],
        new_feed_forward: Callable[[], nn.Module],
        multiplier: float = 1.0,
    ):
        super().__init__()
        self.ln_1 = new_norm()
        self.attn = new_attention()
        self.ln_2 = new_norm()
        self.mlp = new_feed_forward()
        self.multiplier = multiplier

    def forward(self, x_BxLxD: Tensor) -> Tensor:
        """Returns the residual stream after the block, (B, L, D)."""
        x_BxLxD = x_BxLxD + self._multiplied(self.attn(self.ln_1(x_BxLxD)))
        return x_BxLxD + self._multiplied(self.mlp(self.ln_2(x_BxLxD)))

    def _multiplied(self, y_BxLxD: Tensor) -> Tensor:
        return y_BxLxD if self.multiplier == 1 else self.multiplier * y_BxLxD


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
        branch_multiplier: Of what each residual branch adds.

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
        branch_multiplier: float = 1.0,
    ):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, width)
        self.wpe = nn.Embedding(context, width) if positions == "learned" else None
        new_norm = partial(make_norm, norm, width, bias)
        new_attention = partial(
            Attention, width, heads, attention_scale, bias, causal=True, kv_heads=kv_heads, qk_norm=qk_norm
        )
        new_feed_forward = partial(FeedForward, width, bias, feed_forward)
        new_block = partial(Block, new_norm, new_attention, new_feed_forward, branch_multiplier)
        self.blocks = nn.ModuleList(new_block() for _ in range(depth))
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


class GPTCell(ConfiguredCell):
    """A decoder of this project."""

    def attention_scale(self, width: int) -> float:
        """What q·k is multiplied by: K^-1/2 in SP; in muP proportional to 1/K and equal to SP at base width.

        Source: the row of the parametrization in :mod:`coordcheck.judge.parametrizations`.
        """
        base = self.config.base_width // self.heads(self.config.base_width)
        head_size = width // self.heads(width)
        return float(base**-0.5 * (head_size / base) ** self.table.attention)

    def structure(self, width: int) -> nn.Module:
        """A GPT."""
        c, model = self.config, self.config.model
        heads = self.heads(width)
        if heads % model.queries_per_key:
            raise ValueError(
                f"`model.queries_per_key` must divide the number of heads at every width; {model.queries_per_key} "
                f"does not divide {heads} at width {width}. For example model.queries_per_key=2."
            )
        return GPT(
            width,
            heads,
            self.attention_scale(width),
            depth=model.depth,
            vocab_size=c.data.vocab_size,
            context=c.data.context,
            bias=model.bias,
            positions=model.positions,
            tied=self.tied,
            mup_multiplier=c.readout.multiplier if self.in_mup else None,
            norm=model.norm,
            feed_forward=model.feed_forward,
            kv_heads=heads // model.queries_per_key,
            qk_norm=model.qk_norm,
            branch_multiplier=1.0 if self.table.in_depth is None else self.depth_mult**self.table.in_depth.branch,
        )

    def in_branches(self, model: nn.Module) -> list[str]:
        """All parameters of blocks."""
        return [name for name, _ in model.named_parameters() if name.startswith("blocks.")]

    def rules(self) -> list[Rule]:
        """Fan-in initialization, or GPT-2's.

        Tensor Programs V (arXiv 2203.03466), table 8, which the mup package follows: hidden weights fan_in^-1/2
        in standard and in muP, input weights, and the readout under mup's 1/width_mult multiplier, a constant.
        """
        return [
            Rule("input", r"^wte\.weight$", self.embedding_std()),
            Rule("input", r"^wpe\.weight$", Std(self.config.embedding.position_std)),
            Rule("hidden", r"(?<!proj)\.weight$", self._hidden_std()),
            Rule("hidden", r"attn\.proj\.weight$", self._hidden_std(residual=True)),
            Rule("hidden", r"mlp\.proj\.weight$", self._hidden_std(residual=True, fan_in=4)),
            Rule("readout", r"\.weight$", self.readout_std()),
            Rule("vector", r"\.weight$", mean=1.0),
            Rule("vector", r"\.bias$"),
            Rule("fixed", r"_norm\.weight$", mean=1.0),
        ]

    def _hidden_std(self, *, residual: bool = False, fan_in: int = 1) -> Std:
        """Of hidden weights whose fan-in is so many times the width; `residual` ones end a branch.

        GPT-2 (Radford et al. 2019; Hugging Face modeling_gpt2.py) has 0.02 at every width, and 0.02 / sqrt(2 depth) at
        the end of branches. In muP it has that at base width, and elsewhere what fan-in scaling makes of it.
        """
        c = self.config
        if c.model.init == Init.fan_in:
            return Std(1.0, -0.5)
        std = GPT2_STD * ((2 * c.model.depth) ** -0.5 if residual else 1.0)
        return Std(std * (fan_in * c.base_width) ** 0.5, -0.5) if self.in_mup else Std(std)
