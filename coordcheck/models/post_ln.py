"""The encoder-decoder of "Attention is All You Need" as DETR uses it: post-LN, learned queries, decoder input zero.

Legend of the shape suffixes: B batch, S source length, Q queries, L either of the two, D width, H heads, K head
size, F feed-forward, I input features, C classes, P coordinates of a box, N decoder layers. Source of the
structure: Vaswani et al. 2017; facebookresearch/detr ``models/transformer.py`` and ``models/detr.py``. Unlike there
q, k and v are three matrices, so that each is recorded, the positions are those of a line, not of an image, there
is no dropout, and nothing here initializes a parameter.
"""

from typing import Any, cast

import mup
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coordcheck.config.schema import Scheme
from coordcheck.models.configured import ConfiguredCell
from coordcheck.models.initialize import Rule, Std
from coordcheck.models.scenes import make_scenes, set_loss

PACKED = 3.0  # fan-out over fan-in of a matrix that holds q, k and v
# nn.Linear's kaiming_uniform_(a=sqrt(5)) is uniform up to fan_in^-1/2
TORCH_LINEAR = Std(3**-0.5, -0.5)


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


def kernel_factors(scheme: Scheme, feed_forward_ratio: float) -> dict[str, float]:
    """Std x sqrt(fan_in) of each kernel of a block, before :func:`depth_factor`.

    Args:
        scheme: "lecun_normal", flax.linen's default; "xavier_separate", flax.linen with xavier_uniform;
            "xavier_packed", torch.nn.Transformer and so DETR, whose in_proj_weight is (3 D, D); "torch_layers",
            torch's layers without the Transformer's reset; "t_fixup", Huang et al. 2020, but the norms stay.
        feed_forward_ratio: F / D.

    Returns:
        By the name of the layer: q, k, v, out, fc, proj. Sources: flax ``linen/linear.py``, ``default_kernel_init``;
        torch ``nn/modules/activation.py``, ``MultiheadAttention._reset_parameters``; facebookresearch/detr
        ``models/transformer.py``, ``Transformer._reset_parameters``.
    """
    separate = {
        **dict.fromkeys(("q", "k", "v", "out"), _xavier(1.0)),
        "fc": _xavier(feed_forward_ratio),
        "proj": _xavier(1 / feed_forward_ratio),
    }
    packed = dict.fromkeys(("q", "k", "v"), _xavier(PACKED))
    return {
        Scheme.lecun_normal: dict.fromkeys(separate, 1.0),
        Scheme.xavier_separate: separate,
        Scheme.xavier_packed: separate | packed,
        Scheme.torch_layers: dict.fromkeys(separate, TORCH_LINEAR.factor) | packed,
        Scheme.t_fixup: separate,
    }[scheme]


def _xavier(ratio: float) -> float:
    """Std x sqrt(fan_in) of xavier_uniform: the variance is 2 / (fan_in + fan_out); `ratio` is fan_out / fan_in."""
    return float((2 / (1 + ratio)) ** 0.5)


def depth_factor(scheme: Scheme, part: str, kernel: str, depth: int) -> float:
    """What T-Fixup multiplies v, out and the feed-forward by; 1 elsewhere.

    The authors' code starts from fairseq's q and k, whose std is 1/sqrt(2) of xavier's; their paper from xavier's.
    We follow the paper.

    Args:
        scheme: Who initializes.
        part: "encoder" or "decoder".
        kernel: Name of the layer, as in :func:`kernel_factors`.
        depth: Number of blocks of the part.

    Returns:
        Source: Huang et al. 2020, "Improving Transformer Optimization Through Better Initialization", section 3.2;
        layer6ai-labs/T-Fixup ``fairseq/modules/transformer_layer.py``, ``fixup_initialization``.
    """
    if scheme != Scheme.t_fixup or kernel in ("q", "k"):
        return 1.0
    return float(0.67 * depth**-0.25 if part == "encoder" else (9 * depth) ** -0.25)


def post_ln_rules(scheme: Scheme, *, feed_forward_ratio: float, encoder_depth: int, decoder_depth: int) -> list[Rule]:
    """The table for :class:`coordcheck.models.post_ln.PostLN`.

    Args:
        scheme: Who initializes.
        feed_forward_ratio: F / D.
        encoder_depth: Number of encoder blocks.
        decoder_depth: Number of decoder blocks.

    Returns:
        Rules for :func:`coordcheck.models.initialize.initialize`.
    """
    shape = "truncated_normal" if scheme == Scheme.lecun_normal else "uniform"
    kernels = [
        Rule(
            "hidden",
            rf"^{part}\..*\.{kernel}\.weight$",
            Std(factor * depth_factor(scheme, part, kernel, depth), -0.5),
            distribution=shape,
        )
        for part, depth in (("encoder", encoder_depth), ("decoder", decoder_depth))
        for kernel, factor in kernel_factors(scheme, feed_forward_ratio).items()
    ]
    return [
        *kernels,
        Rule("input", r"^queries\.weight$", Std(1.0)),
        Rule("input", r"^input\.weight$", TORCH_LINEAR, distribution="uniform"),
        Rule("hidden", r"^box_fc_\d\.weight$", TORCH_LINEAR, distribution="uniform"),
        Rule("readout", r"_head\.weight$", TORCH_LINEAR, distribution="uniform"),
        Rule("vector", r"\.weight$", mean=1.0),
        Rule("vector", r"\.bias$"),
        Rule("fixed", r"\.bias$"),  # of a readout, whose size is not the width
    ]


class PostLNCell(ConfiguredCell):
    """The encoder-decoder of DETR, which finds objects in scenes."""

    INPUT_SIZE = 16
    cross_entropy = False

    @property
    def corpus_sha256(self) -> str | None:  # type: ignore[override]
        """None: scenes are generated."""
        return None

    def structure(self, width: int) -> nn.Module:
        """A post-LN encoder-decoder."""
        model = self.config.model
        heads = self.heads(width)
        return PostLN(
            width,
            heads,
            (width // heads) ** -0.5,
            encoder_depth=model.encoder_depth,
            decoder_depth=model.decoder_depth,
            feed_forward=model.feed_forward_ratio * width,
            input_size=self.INPUT_SIZE,
            queries=model.queries,
            classes=self.config.data.vocab_size,
            box_size=2,
            eps=model.eps,
            mup_multiplier=None,
        )

    def rules(self) -> list[Rule]:
        """Those of the scheme."""
        model = self.config.model
        return post_ln_rules(
            model.init,
            feed_forward_ratio=model.feed_forward_ratio,
            encoder_depth=model.encoder_depth,
            decoder_depth=model.decoder_depth,
        )

    def batch(self, seed: int, device: torch.device) -> Any:
        """Scenes."""
        data = self.config.data
        return make_scenes(
            seed, data.batch, length=data.context, classes=data.vocab_size, input_size=self.INPUT_SIZE
        ).to(device)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """DETR's, summed over the decoder's blocks."""
        logits, boxes = model(batch.features)
        losses = [set_loss(*of_block, batch) for of_block in zip(logits, boxes, strict=True)]
        return torch.stack(losses).sum()
