"""The decoder of DETR in flax.linen, as the author of google/flax#4027 has it: post-LN, the first input zero.

Every projection starts as flax makes it, by lecun_normal, where torch's attention has q, k and v in one packed matrix
of three times the fan-out, so that they start at 0.707 of it. Sources: facebookresearch/detr models/transformer.py;
https://github.com/google/flax/issues/4027.

Shapes: B scenes, N objects in each, Q queries, D width, C classes.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

SCENES, OBJECTS, FEATURES, CLASSES = 16, 8, 16, 8
HEADS = 8
CLIP, WEIGHT_DECAY, LR = 0.1, 1e-4, 1e-4  # facebookresearch/detr main.py


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention and a feed-forward layer, each followed by a norm."""

    width: int

    @nn.compact
    def __call__(self, x_BQD: Any, query_QD: Any, memory_BND: Any) -> Any:
        """What is made of `x_BQD`; `query_QD` is added to queries and keys alone."""
        at_BQD = x_BQD + query_QD
        attention = nn.MultiHeadDotProductAttention(HEADS, name="self_attention")
        x_BQD = nn.LayerNorm(name="norm_self")(x_BQD + attention(at_BQD, at_BQD, x_BQD))
        attention = nn.MultiHeadDotProductAttention(HEADS, name="cross_attention")
        x_BQD = nn.LayerNorm(name="norm_cross")(x_BQD + attention(x_BQD + query_QD, memory_BND, memory_BND))
        y_BQF = nn.relu(nn.Dense(4 * self.width, name="up")(x_BQD))
        return nn.LayerNorm(name="norm_feed_forward")(x_BQD + nn.Dense(self.width, name="down")(y_BQF))


class Decoder(nn.Module):
    """A set of objects told from their features.

    Attributes:
        width: D, a multiple of 8.
        depth: Blocks.
    """

    width: int
    depth: int = 2

    @nn.compact
    def __call__(self, features_BNF: Any) -> Any:
        """Logits (B, Q, C) of float features (B, N, 16)."""
        memory_BND = nn.Dense(self.width, name="input")(features_BNF)
        query_QD = self.param("query", nn.initializers.normal(1.0), (OBJECTS, self.width))
        x_BQD = jnp.zeros((features_BNF.shape[0], OBJECTS, self.width))
        for i in range(self.depth):
            x_BQD = DecoderBlock(self.width, name=f"decoder_{i}")(x_BQD, query_QD, memory_BND)
        return nn.Dense(CLASSES, name="class_head")(x_BQD)


def build(width: int, depth: int = 2) -> Decoder:
    """The decoder of one width."""
    return Decoder(width, depth)


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
