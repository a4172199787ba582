"""Layers that more than one model uses.

Legend of the shape suffixes: B batch, L length, S length of what is attended to, D width, H heads, G heads of
keys and values, K head size, F feed-forward, V vocabulary.

A layer has no initialization code: models are built on the ``meta`` device, where a layer's own
``reset_parameters`` touches no memory, and are written once by :mod:`coordcheck.models.initialize`.
"""

from typing import cast

import mup
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """Root mean square norm with a gain and eps 1e-6; computes in the gain's type or better.

    Under autocast a projection's output is narrower than the gain, and torch warns of the mismatch.
    """

    def __init__(self, size: int):
        super().__init__(size, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` divided by the root mean square of its last dimension, times the gain."""
        return super().forward(x.to(torch.promote_types(x.dtype, self.weight.dtype)))


def make_norm(kind: str, width: int, bias: bool) -> nn.Module:
    """A norm over the width.

    Args:
        kind: "layer" or "rms".
        width: D.
        bias: Whether a layer norm has a bias; an RMS norm has none.

    Raises:
        ValueError: if `kind` is neither.
    """
    if kind not in ("layer", "rms"):
        raise ValueError(f"`norm` is one of ['layer', 'rms']; got {kind!r}. For example norm='layer'.")
    return nn.LayerNorm(width, bias=bias) if kind == "layer" else RMSNorm(width)


class Attention(nn.Module):
    """Multi-head attention with separate q, k and v projections.

    Args:
        width: D.
        heads: H, heads of the queries.
        scale: What q·k is multiplied by: K^-1/2 in standard parametrization, proportional to 1/K in muP, 1 in T5.
        bias: Whether the four projections have biases.
        causal: Whether a position sees itself and earlier ones only.
        head_size: K; None for D / H.
        kv_heads: G, heads of the keys and values, each shared by H / G query heads; None for H. Let it grow with H:
            with G·K fixed, k and v have a finite fan-out and muP takes them for readouts.
        qk_norm: Whether the queries and keys of each head pass through an RMS norm.

    Raises:
        ValueError: if the heads do not divide the width although `head_size` is None, or `kv_heads` not the heads.

    Source:
        Grouped queries: arXiv 2305.13245. Norms of q and k: arXiv 2302.05442, there layer norms.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        scale: float,
        bias: bool,
        *,
        causal: bool,
        head_size: int | None = None,
        kv_heads: int | None = None,
        qk_norm: bool = False,
    ):
        super().__init__()
        if head_size is None:
            _check_divides("heads", heads, "width", width)
            head_size = width // heads
        kv_heads = heads if kv_heads is None else kv_heads
        _check_divides("kv_heads", kv_heads, "heads", heads)
        self.head_size = head_size
        self.scale = scale
        self.causal = causal
        self.q = nn.Linear(width, heads * head_size, bias=bias)
        self.k = nn.Linear(width, kv_heads * head_size, bias=bias)
        self.v = nn.Linear(width, kv_heads * head_size, bias=bias)
        self.q_norm = RMSNorm(head_size) if qk_norm else None
        self.k_norm = RMSNorm(head_size) if qk_norm else None
        self.proj = nn.Linear(heads * head_size, width, bias=bias)

    def forward(
        self, x_BxLxD: Tensor, memory_BxSxD: Tensor | None = None, bias_1xHxLxS: Tensor | None = None
    ) -> Tensor:
        """Mixes values.

        Args:
            x_BxLxD: What asks.
            memory_BxSxD: What is attended to; None for `x_BxLxD` itself.
            bias_1xHxLxS: Added to the scaled q·k, where -inf hides a position; not for a causal layer.

        Returns:
            (B, L, D).
        """
        memory_BxSxD = x_BxLxD if memory_BxSxD is None else memory_BxSxD
        q_BxHxLxK = self._heads_first(self.q(x_BxLxD))
        k_BxGxSxK = self._heads_first(self.k(memory_BxSxD))
        v_BxGxSxK = self._heads_first(self.v(memory_BxSxD))
        if self.q_norm is not None and self.k_norm is not None:
            q_BxHxLxK, k_BxGxSxK = self.q_norm(q_BxHxLxK), self.k_norm(k_BxGxSxK)
        y_BxHxLxK = F.scaled_dot_product_attention(
            q_BxHxLxK,
            k_BxGxSxK,
            v_BxGxSxK,
            attn_mask=bias_1xHxLxS,
            is_causal=self.causal,
            scale=self.scale,
            enable_gqa=q_BxHxLxK.shape[1] != k_BxGxSxK.shape[1],
        )
        return cast(Tensor, self.proj(y_BxHxLxK.transpose(1, 2).flatten(2)))

    def _heads_first(self, y_BxLxHK: Tensor) -> Tensor:
        return y_BxLxHK.view(*y_BxLxHK.shape[:2], -1, self.head_size).transpose(1, 2)


def _check_divides(name: str, divisor: int, whole_name: str, whole: int) -> None:
    if divisor < 1 or whole % divisor:
        raise ValueError(f"`{name}` must divide {whole_name}={whole}; got {divisor}. For example {name}={whole}.")


class FeedForward(nn.Module):
    """Two layers with an activation between them, which a third layer may gate.

    Args:
        width: D.
        bias: Whether the layers have biases.
        kind: "relu", "gelu" (exact), "gelu_tanh"; with a gate "geglu" (tanh, as T5 1.1 has it) or "swiglu".
        size: F; None for 4 D.

    Raises:
        ValueError: if `kind` is none of these.

    Source:
        Gates: arXiv 2002.05202.
    """

    def __init__(self, width: int, bias: bool, kind: str = "gelu", size: int | None = None):
        super().__init__()
        activations = {
            "relu": nn.ReLU(),
            "gelu": nn.GELU(),
            "gelu_tanh": nn.GELU("tanh"),
            "geglu": nn.GELU("tanh"),
            "swiglu": nn.SiLU(),
        }
        if kind not in activations:
            raise ValueError(
                f"`feed_forward` is one of {list(activations)}; got {kind!r}. For example feed_forward='gelu'."
            )
        size = 4 * width if size is None else size
        self.fc = nn.Linear(width, size, bias=bias)
        self.gate = nn.Linear(width, size, bias=bias) if kind in ("geglu", "swiglu") else None
        self.act = activations[kind]
        self.proj = nn.Linear(size, width, bias=bias)

    def forward(self, x_BxLxD: Tensor) -> Tensor:
        """Returns (B, L, D)."""
        y_BxLxF = self.fc(x_BxLxD)
        y_BxLxF = self.act(y_BxLxF) if self.gate is None else y_BxLxF * self.act(self.gate(x_BxLxD))
        return cast(Tensor, self.proj(y_BxLxF))


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
