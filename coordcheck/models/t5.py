"""T5: encoder and decoder with relative position biases, RMS norms and no other biases.

Legend of the shape suffixes: B batch, S length of the encoder's input, L length of a stack's input, D width,
H heads, V vocabulary. Source of the structure: Raffel et al. 2020 (arXiv 1910.10683), section 2.1; its version
1.1 differs by ``feed_forward="geglu"`` and ``tied=False``. T5 does not scale q·k, for its initialization makes q
smaller instead; that, like all initialization, is left to others.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from coordcheck.models.configured import ConfiguredCell
from coordcheck.models.initialize import Rule, Std
from coordcheck.models.layers import Attention, FeedForward, RMSNorm, make_readout
from coordcheck.run.device import to_device

# section 2.1: rows of a position bias, and the distance from which on all share one
BUCKETS = 32
MAX_DISTANCE = 128


def relative_buckets(offset: Tensor, causal: bool) -> Tensor:
    """The row of the position bias that a pair of positions takes.

    Half of the rows stand for one distance each, the others for ranges that grow geometrically up to
    `MAX_DISTANCE`. Without a causal mask, positions before and after have half of the rows each.

    Args:
        offset: Position attended to minus the position that asks, integers of any shape.
        causal: Whether only offsets up to 0 are used.

    Returns:
        Integers below `BUCKETS`, in the shape of `offset`.

    >>> relative_buckets(torch.tensor([-200, -20, -3, 0, 3]), causal=False).tolist()
    [15, 10, 3, 0, 19]
    """
    buckets = BUCKETS if causal else BUCKETS // 2
    exact = buckets // 2
    distance = offset.abs()
    share = torch.log(distance.clamp(min=exact) / exact) / math.log(MAX_DISTANCE / exact)
    geometric = (exact + share * (buckets - exact)).long().clamp(max=buckets - 1)
    rows = torch.where(distance < exact, distance, geometric)
    return rows if causal else rows + buckets * (offset > 0)


class Block(nn.Module):
    """One pre-norm block; in a decoder it also attends to the encoder's output."""

    def __init__(
        self,
        width: int,
        new_attention: Callable[[], nn.Module],
        new_feed_forward: Callable[[], nn.Module],
        decoder: bool,
    ):
        super().__init__()
        self.ln_1 = RMSNorm(width)
        self.attn = new_attention()
        self.ln_cross = RMSNorm(width) if decoder else None
        self.cross = new_attention() if decoder else None
        self.ln_2 = RMSNorm(width)
        self.mlp = new_feed_forward()

    def forward(self, x_BxLxD: Tensor, bias_1xHxLxL: Tensor, memory_BxSxD: Tensor | None) -> Tensor:
        """Returns the residual stream after the block, (B, L, D)."""
        x_BxLxD = x_BxLxD + self.attn(self.ln_1(x_BxLxD), bias_1xHxLxS=bias_1xHxLxL)
        if self.ln_cross is not None and self.cross is not None:
            x_BxLxD = x_BxLxD + self.cross(self.ln_cross(x_BxLxD), memory_BxSxD)
        return cast(Tensor, x_BxLxD + self.mlp(self.ln_2(x_BxLxD)))


class Stack(nn.Module):
    """An encoder or a decoder: blocks that share one position bias, and a final norm."""

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int,
        new_attention: Callable[[], nn.Module],
        new_feed_forward: Callable[[], nn.Module],
        decoder: bool,
    ):
        super().__init__()
        self.causal = decoder
        self.position_bias = nn.Embedding(BUCKETS, heads)
        self.blocks = nn.ModuleList(Block(width, new_attention, new_feed_forward, decoder) for _ in range(depth))
        self.ln_f = RMSNorm(width)

    def forward(self, x_BxLxD: Tensor, memory_BxSxD: Tensor | None = None) -> Tensor:
        """Returns the normed residual stream, (B, L, D); `memory_BxSxD` is the encoder's."""
        position_L = torch.arange(x_BxLxD.shape[1], device=x_BxLxD.device)
        offset_LxL = position_L[None, :] - position_L[:, None]
        bias_LxLxH = self.position_bias(relative_buckets(offset_LxL, self.causal))
        bias_1xHxLxL = bias_LxLxH.permute(2, 0, 1)[None]
        if self.causal:  # here, not in a module of its own: recorded, -inf would look like a diverged activation
            bias_1xHxLxL = bias_1xHxLxL.masked_fill(offset_LxL > 0, -math.inf)
        for block in self.blocks:
            x_BxLxD = block(x_BxLxD, bias_1xHxLxL, memory_BxSxD)
        return cast(Tensor, self.ln_f(x_BxLxD))


class T5(nn.Module):
    """An encoder-decoder transformer.

    Args:
        width: D.
        heads: Number of attention heads; also the columns of the position biases, which grow with it.
        attention_scale: What q·k is multiplied by; T5's own is 1.
        encoder_depth: Number of the encoder's blocks.
        decoder_depth: Number of the decoder's blocks.
        vocab_size: V.
        tied: Whether the readout's weight is the token embedding's. A plain tied readout takes its input times
            D^-1/2, as T5 does; one of the mup package has its own multiplier.
        mup_multiplier: mup's ``output_mult`` for a readout of the mup package, None for a plain one.
        head_size: Size of a head; None for ``width / heads``.
        feed_forward: Kind of :class:`~coordcheck.models.layers.FeedForward`; T5's own is "relu", version 1.1's "geglu".
        feed_forward_size: F; None for 4 D.

    Raises:
        ValueError: if `feed_forward` is unknown, or `heads` does not divide `width` although `head_size` is None.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        attention_scale: float,
        *,
        encoder_depth: int,
        decoder_depth: int,
        vocab_size: int,
        tied: bool,
        mup_multiplier: float | None,
        head_size: int | None = None,
        feed_forward: str = "relu",
        feed_forward_size: int | None = None,
    ):
        super().__init__()
        self.readout_scale = width**-0.5 if tied and mup_multiplier is None else 1.0
        self.wte = nn.Embedding(vocab_size, width)
        # never `causal`: the decoder's mask is part of its position bias
        new_attention = partial(Attention, width, heads, attention_scale, bias=False, causal=False, head_size=head_size)
        new_feed_forward = partial(FeedForward, width, bias=False, kind=feed_forward, size=feed_forward_size)
        self.encoder = Stack(width, heads, encoder_depth, new_attention, new_feed_forward, decoder=False)
        self.decoder = Stack(width, heads, decoder_depth, new_attention, new_feed_forward, decoder=True)
        self.lm_head = make_readout(self.wte, tied, mup_multiplier)

    def forward(self, tokens_BxS: Tensor, decoder_tokens_BxL: Tensor) -> Tensor:
        """Returns the logits, (B, L, V)."""
        memory_BxSxD = self.encoder(self.wte(tokens_BxS))
        x_BxLxD = self.decoder(self.wte(decoder_tokens_BxL), memory_BxSxD)
        return cast(Tensor, self.lm_head(self.readout_scale * x_BxLxD))


class T5Cell(ConfiguredCell):
    """An encoder-decoder of this project, which reads a text and writes on."""

    def structure(self, width: int) -> nn.Module:
        """A T5.

        T5 folds the scale of attention into the init of q. In muP the scale is K_base / K: the same at base width, and
        proportional to 1/K.
        """
        c, model = self.config, self.config.model
        head_size, base = (w // self.heads(w) for w in (width, c.base_width))
        # mup's multiplier takes the place of T5's D^-1/2 before a tied readout, and equals it at base width
        multiplier = c.readout.multiplier * (c.base_width**-0.5 if self.tied else 1.0)
        return T5(
            width,
            self.heads(width),
            base / head_size if self.in_mup else 1.0,
            encoder_depth=model.encoder_depth,
            decoder_depth=model.decoder_depth,
            vocab_size=c.data.vocab_size,
            tied=self.tied,
            mup_multiplier=multiplier if self.in_mup else None,
            feed_forward=model.feed_forward,
        )

    def rules(self) -> list[Rule]:
        """T5X's initializers (t5x examples/t5/layers.py): fan-in, q divided by sqrt(K), embeddings as configured.

        Position biases are added to the logits of attention, so their std keeps the size that Hugging Face gives them
        at base width (d^-1/2, modeling_t5.py).
        """
        c = self.config
        head_size = c.base_width // self.heads(c.base_width)
        bias = Std(c.base_width**-0.5)
        return [
            Rule("input", r"^wte\.weight$", self.embedding_std()),
            Rule("input", r"position_bias\.weight$", bias),
            Rule("fixed", r"position_bias\.weight$", bias),
            Rule("hidden", r"\.q\.weight$", Std(head_size**-0.5, -0.5) if self.in_mup else self._q_std()),
            Rule("hidden", r"(?<!\.q)\.weight$", Std(1.0, -0.5)),
            Rule("readout", r"\.weight$", self.readout_std()),
            Rule("vector", r"\.weight$", mean=1.0),
        ]

    def _q_std(self) -> Std:
        """(D K)^-1/2 in standard parametrization, where K is D / H if the count of heads is fixed."""
        model = self.config.model
        return Std(model.heads**0.5, -1.0) if model.heads is not None else Std(model.head_size**-0.5, -0.5)

    def batch(self, seed: int, device: torch.device) -> Any:
        """What the encoder and the decoder read, and the decoder's targets: (B, L) each."""
        length = self.config.data.context
        inputs, targets = self._corpus.batch(seed, self.config.data.batch, 2 * length)
        return to_device(((inputs[:, :length], inputs[:, length:]), targets[:, length:]), device)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean cross entropy of the decoder's tokens."""
        inputs, targets = batch
        return nn.functional.cross_entropy(model(*inputs).flatten(0, -2), targets.flatten())
