"""The decoder of DETR in flax.linen, as the author of google/flax#4027 has it: post-LN, the first input zero.

Every projection starts as flax makes it, by lecun_normal; or by xavier_uniform, as the thread tries; or as in DETR,
whose torch keeps q, k and v in one packed matrix of three times the fan-out, so that xavier_uniform makes them 0.707
times as large. Sources: facebookresearch/detr models/transformer.py; https://github.com/google/flax/issues/4027.

Shapes: B scenes, N objects in each, Q queries, D width, C classes.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

from coordcheck.records.names import shown

SCENES, OBJECTS, FEATURES, CLASSES = 16, 8, 16, 8
HEADS = 8
CLIP, WEIGHT_DECAY, LR = 0.1, 1e-4, 1e-4  # facebookresearch/detr main.py
_XAVIER = nn.initializers.xavier_uniform()
# by the names of the torch experiment: initializers of q, k and v, and of the other kernels of a block
SCHEMES = {
    "lecun_normal": (nn.initializers.lecun_normal(), nn.initializers.lecun_normal()),
    "xavier_separate": (_XAVIER, _XAVIER),
    "xavier_packed": (nn.initializers.variance_scaling(2 / (1 + 3), "fan_in", "uniform"), _XAVIER),
}


def attention_of(scheme: str, name: str | None) -> nn.MultiHeadDotProductAttention:
    """Flax's attention of 8 heads, initialized by a name of :data:`SCHEMES`."""
    of_qkv, of_out = SCHEMES[scheme]
    return nn.MultiHeadDotProductAttention(HEADS, kernel_init=of_qkv, out_kernel_init=of_out, name=name)


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention and a feed-forward layer, each followed by a norm."""

    width: int
    scheme: str

    @nn.compact
    def __call__(self, x_BQD: Any, query_QD: Any, memory_BND: Any) -> Any:
        """What is made of `x_BQD`; `query_QD` is added to queries and keys alone."""
        at_BQD = x_BQD + query_QD
        attention = attention_of(self.scheme, "self_attention")
        x_BQD = nn.LayerNorm(name="norm_self")(x_BQD + attention(at_BQD, at_BQD, x_BQD))
        attention = attention_of(self.scheme, "cross_attention")
        x_BQD = nn.LayerNorm(name="norm_cross")(x_BQD + attention(x_BQD + query_QD, memory_BND, memory_BND))
        init = SCHEMES[self.scheme][1]
        y_BQF = nn.relu(nn.Dense(4 * self.width, kernel_init=init, name="up")(x_BQD))
        return nn.LayerNorm(name="norm_feed_forward")(
            x_BQD + nn.Dense(self.width, kernel_init=init, name="down")(y_BQF)
        )


class Decoder(nn.Module):
    """A set of objects told from their features.

    Attributes:
        width: D, a multiple of 8.
        depth: Blocks.
        scheme: Of the kernels of blocks, a name of :data:`SCHEMES`.
    """

    width: int
    depth: int = 2
    scheme: str = "lecun_normal"

    @nn.compact
    def __call__(self, features_BNF: Any) -> Any:
        """Logits (B, Q, C) of float features (B, N, 16)."""
        memory_BND = nn.Dense(self.width, name="input")(features_BNF)
        query_QD = self.param("query", nn.initializers.normal(1.0), (OBJECTS, self.width))
        x_BQD = jnp.zeros((features_BNF.shape[0], OBJECTS, self.width))
        for i in range(self.depth):
            x_BQD = DecoderBlock(self.width, self.scheme, name=f"decoder_{i}")(x_BQD, query_QD, memory_BND)
        return nn.Dense(CLASSES, name="class_head")(x_BQD)


def build(width: int, depth: int = 2, init: str = "lecun_normal") -> Decoder:
    """The decoder of one width.

    Args:
        width: A multiple of 8.
        depth: Blocks.
        init: "lecun_normal", flax's own; "xavier_separate"; or "xavier_packed", as torch and DETR have it.

    Raises:
        ValueError: if `init` is none of them.
    """
    if init not in SCHEMES:
        raise ValueError(f"`init` is one of {', '.join(SCHEMES)}; got {shown(init)}. For example init='lecun_normal'.")
    return Decoder(width, depth, init)


def batch(seed: int) -> tuple[Any, Any]:
    """Objects in a fixed order, whose class is the largest of their first features.

    Returns:
        Features, float32 (B, N, 16), and classes, int32 (B, Q): query i is asked for object i.
    """
    features = np.random.default_rng(seed).normal(size=(SCENES, OBJECTS, FEATURES)).astype(np.float32)
    return features, features[..., :CLASSES].argmax(axis=-1).astype(np.int32)


def optimizer(width: int, roles: Mapping[str, str]) -> optax.GradientTransformation:
    """DETR's: AdamW behind a clipped gradient."""
    return optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(LR, weight_decay=WEIGHT_DECAY))
