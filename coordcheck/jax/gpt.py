"""A GPT in flax.linen, in muP and in standard parametrization: the example of ``coordcheck model=flax``.

    coordcheck model=flax model.build=coordcheck.jax.gpt.build model.optimizer=coordcheck.jax.gpt.optimizer
    coordcheck model=flax model.build=coordcheck.jax.gpt.build model.args.parametrization=sp

Shapes: B sequences, L tokens, D width, H heads of size K, V tokens known.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import optax

from coordcheck.jax.scale import scale_by_width
from coordcheck.records.names import shown

BASE_WIDTH = 64
HEAD_SIZE = 32


class Block(nn.Module):
    """Attention and a feed-forward layer, each on a normalized residual stream."""

    width: int

    @nn.compact
    def __call__(self, x_BLD: Any) -> Any:
        """Adds what both make of `x_BLD`, float (B, L, D)."""
        mask_11LL = nn.make_causal_mask(jnp.ones((1, x_BLD.shape[1])))
        y_BLD = nn.RMSNorm(name="norm_attention")(x_BLD)
        x_BLD = x_BLD + nn.SelfAttention(self.width // HEAD_SIZE, use_bias=False, name="attention")(y_BLD, mask_11LL)
        y_BLD = nn.RMSNorm(name="norm_feed_forward")(x_BLD)
        y_BLF = nn.gelu(nn.Dense(4 * self.width, use_bias=False, name="up")(y_BLD))
        return x_BLD + nn.Dense(self.width, use_bias=False, name="down")(y_BLF)


class GPT(nn.Module):
    """A decoder.

    Attributes:
        width: D, a multiple of 32.
        depth: Blocks.
        vocab_size: V.
        mup: Whether the logits are those of muP: of a readout that starts as at the base width, divided by
            width / base width.
    """

    width: int
    depth: int = 2
    vocab_size: int = 256
    mup: bool = True

    @nn.compact
    def __call__(self, tokens_BL: Any) -> Any:
        """Logits (B, L, V) of integers (B, L)."""
        x_BLD = nn.Embed(self.vocab_size, self.width, embedding_init=nn.initializers.normal(1.0), name="embed")(
            tokens_BL
        )
        for i in range(self.depth):
            x_BLD = Block(self.width, name=f"blocks_{i}")(x_BLD)
        x_BLD = nn.RMSNorm(name="norm")(x_BLD)
        base = nn.initializers.normal(BASE_WIDTH**-0.5)
        start = base if self.mup else nn.initializers.lecun_normal()
        divided = self.width / BASE_WIDTH if self.mup else 1.0
        return nn.Dense(self.vocab_size, use_bias=False, kernel_init=start, name="readout")(x_BLD / divided)


def build(width: int, depth: int = 2, vocab_size: int = 256, parametrization: str = "mup") -> GPT:
    """The GPT of one width.

    Args:
        width: A multiple of 32.
        depth: Blocks.
        vocab_size: Tokens known.
        parametrization: "mup" or "sp".

    Raises:
        ValueError: if the parametrization is neither, or the width is no such multiple.
    """
    if parametrization not in ("mup", "sp"):
        raise ValueError(f"`parametrization` is 'mup' or 'sp'; got {shown(parametrization)}. For example 'mup'.")
    if width % HEAD_SIZE:
        raise ValueError(f"`widths` are multiples of {HEAD_SIZE}; got {width}. For example widths=[64,128,256].")
    return GPT(width, depth, vocab_size, parametrization == "mup")


def optimizer(width: int, roles: Mapping[str, str], lr: float = 5e-3) -> optax.GradientTransformation:
    """Adam with muP's learning rates for :class:`GPT`."""
    return optax.chain(
        optax.adam(lr, eps=1e-12), scale_by_width(width, roles, BASE_WIDTH, multipliers={"readout": -1.0})
    )


def optimizer_in_sp(width: int, roles: Mapping[str, str], lr: float = 5e-3) -> optax.GradientTransformation:
    """Adam with the same learning rate everywhere."""
    return optax.adam(lr, eps=1e-12)
