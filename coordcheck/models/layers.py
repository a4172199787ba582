"""Layers that more than one model uses.

Legend of the shape suffixes: B batch, L length, D width, H heads, K head size, F feed-forward, V vocabulary.

A layer has no initialization code: models are built on the ``meta`` device, where a layer's own
``reset_parameters`` touches no memory, and are written once by :mod:`coordcheck.initialize`.
"""

from typing import cast

import mup
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Causal multi-head self-attention with separate q, k and v projections.

    Args:
        width: D.
        heads: H; the head size K is ``width // heads``.
        scale: What q·k is multiplied by: K^-1/2 in standard parametrization, proportional to 1/K in muP.
        bias: Whether the four projections have biases.
    """

    def __init__(self, width: int, heads: int, scale: float, bias: bool):
        super().__init__()
        self.heads = heads
        self.scale = scale
        self.q = nn.Linear(width, width, bias=bias)
        self.k = nn.Linear(width, width, bias=bias)
        self.v = nn.Linear(width, width, bias=bias)
        self.proj = nn.Linear(width, width, bias=bias)

    def forward(self, x_BxLxD: Tensor) -> Tensor:
        """Returns the mixed values, (B, L, D)."""

        def heads_first(y_BxLxD: Tensor) -> Tensor:
            return y_BxLxD.view(*y_BxLxD.shape[:2], self.heads, -1).transpose(1, 2)

        q_BxHxLxK, k_BxHxLxK, v_BxHxLxK = (heads_first(f(x_BxLxD)) for f in (self.q, self.k, self.v))
        y_BxHxLxK = F.scaled_dot_product_attention(q_BxHxLxK, k_BxHxLxK, v_BxHxLxK, is_causal=True, scale=self.scale)
        return cast(Tensor, self.proj(y_BxHxLxK.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """Two layers with a GELU between them; F = 4 D."""

    def __init__(self, width: int, bias: bool):
        super().__init__()
        self.fc = nn.Linear(width, 4 * width, bias=bias)
        self.act = nn.GELU()
        self.proj = nn.Linear(4 * width, width, bias=bias)

    def forward(self, x_BxLxD: Tensor) -> Tensor:
        """Returns (B, L, D)."""
        return cast(Tensor, self.proj(self.act(self.fc(x_BxLxD))))


def make_readout(embedding: nn.Embedding, tied: bool, mup_multiplier: float | None) -> nn.Module:
    """The layer from width to vocabulary.

    Args:
        embedding: The token embedding, weight (V, D).
        tied: Whether the embedding's weight is the readout's too.
        mup_multiplier: mup's ``output_mult`` for a readout of the mup package, which multiplies its input
            by ``output_mult / width_mult``; None for a plain ``nn.Linear``.

    Returns:
        A module that maps (..., D) to (..., V), without bias. Whether ``mup.set_base_shapes`` rescales the weight
        of a readout of the mup package is for its caller to say.
    """
    vocab_size, width = embedding.weight.shape
    if mup_multiplier is None:
        readout = nn.Linear(width, vocab_size, bias=False)
        if tied:
            readout.weight = embedding.weight
        return readout
    if tied:
        return cast(nn.Module, mup.MuSharedReadout(embedding.weight, bias=False, output_mult=mup_multiplier))
    return cast(nn.Module, mup.MuReadout(width, vocab_size, bias=False, output_mult=mup_multiplier))


def materialize(model: nn.Module, device: torch.device) -> nn.Module:
    """Gives memory, not yet written, to a model built on ``meta``; ties between parameters survive.

    ``nn.Module.to_empty`` gives every place its own tensor and so unties shared weights.

    Args:
        model: Changed in place; all its parameters are on ``meta``. It has no buffers.
        device: Where the memory is.

    Returns:
        The same model.
    """
    new: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None:
                if old not in new:
                    new[old] = nn.Parameter(torch.empty_like(old, device=device), old.requires_grad)
                module._parameters[name] = new[old]
    return model
