"""The encoder-decoder of "Attention is All You Need" as DETR uses it: post-LN, learned queries, decoder input zero.

Legend of the shape suffixes: B batch, S source length, Q queries, L either of the two, D width, H heads, K head
size, F feed-forward, I input features, C classes, P coordinates of a box, N decoder layers. Source of the
structure: Vaswani et al. 2017; facebookresearch/detr ``models/transformer.py`` and ``models/detr.py``. Unlike there
q, k and v are three matrices, so that each is recorded, the positions are those of a line, not of an image, there
is no dropout, and nothing here initializes a parameter.
"""

from typing import cast

import mup
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention whose queries, keys and values come from three tensors.

    Args:
        width: D.
        heads: H; the head size K is ``width // heads``.
        scale: What q·k is multiplied by.
    """

    def __init__(self, width: int, heads: int, scale: float):
        super().__init__()
        self.heads = heads
        self.scale = scale
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, query_BxLxD: Tensor, key_BxSxD: Tensor, value_BxSxD: Tensor) -> Tensor:
        """Returns the mixed values, (B, L, D)."""

        def heads_first(y_BxLxD: Tensor) -> Tensor:
            return y_BxLxD.view(*y_BxLxD.shape[:2], self.heads, -1).transpose(1, 2)

        q_BxHxLxK = heads_first(self.q(query_BxLxD))
        k_BxHxSxK = heads_first(self.k(key_BxSxD))
        v_BxHxSxK = heads_first(self.v(value_BxSxD))
        y_BxHxLxK = F.scaled_dot_product_attention(q_BxHxLxK, k_BxHxSxK, v_BxHxSxK, scale=self.scale)
        return cast(Tensor, self.out(y_BxHxLxK.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """Two layers with a ReLU between them."""

    def __init__(self, width: int, feed_forward: int):
        super().__init__()
        self.fc = nn.Linear(width, feed_forward)
        self.act = nn.ReLU()
        self.proj = nn.Linear(feed_forward, width)

    def forward(self, x_BxLxD: Tensor) -> Tensor:
        """Returns (B, L, D)."""
        return cast(Tensor, self.proj(self.act(self.fc(x_BxLxD))))


class EncoderBlock(nn.Module):
    """Self-attention and feed-forward, each normalized after its residual sum."""

    def __init__(self, width: int, heads: int, attention_scale: float, feed_forward: int, eps: float):
        super().__init__()
        self.attn = Attention(width, heads, attention_scale)
        self.ln_1 = nn.LayerNorm(width, eps)
        self.mlp = FeedForward(width, feed_forward)
        self.ln_2 = nn.LayerNorm(width, eps)

    def forward(self, x_BxSxD: Tensor, positions_SxD: Tensor) -> Tensor:
        """Returns (B, S, D); positions go into queries and keys, not into values."""
        placed_BxSxD = x_BxSxD + positions_SxD
        x_BxSxD = self.ln_1(x_BxSxD + self.attn(placed_BxSxD, placed_BxSxD, x_BxSxD))
        return cast(Tensor, self.ln_2(x_BxSxD + self.mlp(x_BxSxD)))


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each normalized after its residual sum."""

    def __init__(self, width: int, heads: int, attention_scale: float, feed_forward: int, eps: float):
        super().__init__()
        self.self_attn = Attention(width, heads, attention_scale)
        self.ln_1 = nn.LayerNorm(width, eps)
        self.cross_attn = Attention(width, heads, attention_scale)
        self.ln_2 = nn.LayerNorm(width, eps)
        self.mlp = FeedForward(width, feed_forward)
        self.ln_3 = nn.LayerNorm(width, eps)

    def forward(self, x_BxQxD: Tensor, memory_BxSxD: Tensor, queries_QxD: Tensor, positions_SxD: Tensor) -> Tensor:
        """Returns (B, Q, D); object queries go into queries and keys of slots, positions into keys of the memory."""
        asking_BxQxD = x_BxQxD + queries_QxD
        x_BxQxD = self.ln_1(x_BxQxD + self.self_attn(asking_BxQxD, asking_BxQxD, x_BxQxD))
        seen_BxQxD = self.cross_attn(x_BxQxD + queries_QxD, memory_BxSxD + positions_SxD, memory_BxSxD)
        x_BxQxD = self.ln_2(x_BxQxD + seen_BxQxD)
        return cast(Tensor, self.ln_3(x_BxQxD + self.mlp(x_BxQxD)))


class PostLN(nn.Module):
    """Predicts a set of objects, each a class and a box, from a sequence of features.

    Args:
        width: D, even.
        heads: H; divides `width`.
        attention_scale: What q·k is multiplied by.
        encoder_depth: Number of encoder blocks.
        decoder_depth: N, number of decoder blocks.
        feed_forward: F.
        input_size: I.
        queries: Q, the most objects that can be predicted.
        classes: C, without the class "no object".
        box_size: P.
        eps: Of every layer norm: 1e-5 in torch, 1e-6 in flax.
        mup_multiplier: mup's ``output_mult`` for readouts of the mup package, None for plain ones.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        attention_scale: float,
        *,
        encoder_depth: int,
        decoder_depth: int,
        feed_forward: int,
        input_size: int,
        queries: int,
        classes: int,
        box_size: int,
        eps: float,
        mup_multiplier: float | None,
    ):
        super().__init__()
        block = (width, heads, attention_scale, feed_forward, eps)
        self.input = nn.Linear(input_size, width)
        self.queries = nn.Embedding(queries, width)
        self.encoder = nn.ModuleList(EncoderBlock(*block) for _ in range(encoder_depth))
        self.decoder = nn.ModuleList(DecoderBlock(*block) for _ in range(decoder_depth))
        self.ln_f = nn.LayerNorm(width, eps)
        self.class_head = _readout(width, classes + 1, mup_multiplier)
        self.box_fc_1 = nn.Linear(width, width)
        self.box_fc_2 = nn.Linear(width, width)
        self.box_head = _readout(width, box_size, mup_multiplier)

    def encode(self, x_BxSxD: Tensor, positions_SxD: Tensor) -> Tensor:
        """Returns the memory, (B, S, D); the encoder has no final norm."""
        for block in self.encoder:
            x_BxSxD = block(x_BxSxD, positions_SxD)
        return x_BxSxD

    def decode(self, x_BxQxD: Tensor, memory_BxSxD: Tensor, queries_QxD: Tensor, positions_SxD: Tensor) -> Tensor:
        """Returns what every decoder block gives, through the one final norm, (N, B, Q, D)."""
        outputs = []
        for block in self.decoder:
            x_BxQxD = block(x_BxQxD, memory_BxSxD, queries_QxD, positions_SxD)
            outputs.append(x_BxQxD)
        return cast(Tensor, self.ln_f(torch.stack(outputs)))

    def forward(self, features_BxSxI: Tensor) -> tuple[Tensor, Tensor]:
        """Returns class logits, (N, B, Q, C + 1), and boxes in (0, 1), (N, B, Q, P).

        The last of N is the prediction; the others are for the auxiliary losses that DETR trains with.
        """
        x_BxSxD = self.input(features_BxSxI)
        positions_SxD = sine_positions(x_BxSxD)
        memory_BxSxD = self.encode(x_BxSxD, positions_SxD)
        queries_QxD = self.queries.weight
        zero_BxQxD = torch.zeros_like(queries_QxD).expand(len(x_BxSxD), -1, -1)
        y_NxBxQxD = self.decode(zero_BxQxD, memory_BxSxD, queries_QxD, positions_SxD)
        box_NxBxQxD = self.box_fc_2(self.box_fc_1(y_NxBxQxD).relu()).relu()
        return self.class_head(y_NxBxQxD), self.box_head(box_NxBxQxD).sigmoid()


def sine_positions(x_BxSxD: Tensor) -> Tensor:
    """Sines and cosines of each position at D/2 wavelengths from 2 pi to 20000 pi, (S, D), like `x_BxSxD`.

    Source: Vaswani et al. 2017, section 3.5; sines come first here, which only permutes the entries.
    """
    length, width = x_BxSxD.shape[1:]
    place_S = torch.arange(length, dtype=x_BxSxD.dtype, device=x_BxSxD.device)
    rate = 10000 ** -(torch.arange(0, width, 2, dtype=x_BxSxD.dtype, device=x_BxSxD.device) / width)
    angle = torch.outer(place_S, rate)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def _readout(width: int, size: int, mup_multiplier: float | None) -> nn.Module:
    if mup_multiplier is None:
        return nn.Linear(width, size)
    return cast(nn.Module, mup.MuReadout(width, size, output_mult=mup_multiplier))
