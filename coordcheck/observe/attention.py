"""Attention logits q·k of any model, seen where torch's attention is called, or where a softmax makes it attention."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from coordcheck.observe.explicit_attention import ExplicitAttention
from coordcheck.observe.sums import at_least_float32, thinned, without_autocast


@torch.no_grad()
def attention_logits(query: Tensor, key: Tensor, scale: float | Tensor) -> Tensor:
    """``scale * query @ key^T`` for some queries and keys, evenly spaced, so that long sequences take no memory.

    The causal mask, which would hide half of them, is ignored.

    Args:
        query: (..., H, L, K); see :func:`coordcheck.observe.sums.thinned` for those that are used.
        key: (..., H or a divisor of H, S, K); likewise.
        scale: What query·key is multiplied by; one number, or a tensor (..., H, 1, 1).

    Returns:
        (..., H, L', S'), at least float32; where fewer heads have keys, (..., heads of keys, L' H / heads of keys, S').
    """
    with without_autocast(query.device):
        # a transposed view, as heads mostly are, would be multiplied two to four times slower
        query = (at_least_float32(_some_positions(query)) * scale).contiguous()
        key = at_least_float32(_some_positions(key)).contiguous()
        if min(query.dim(), key.dim()) > 2 and query.shape[-3] > key.shape[-3] > 1:
            query = query.reshape(*query.shape[:-3], key.shape[-3], -1, query.shape[-1])
        return query @ key.mT


def _some_positions(heads: Tensor) -> Tensor:
    """Of (H, L, K) too, where heads, which may grow with width, are no batch."""
    return thinned(heads[None])[0] if heads.dim() == 3 else thinned(heads)


@torch.no_grad()
def projected_heads(call: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Queries and keys of a call of ``F.multi_head_attention_forward``, computed anew from its arguments.

    The call makes them out of any caller's sight. A position that it adds itself, ``bias_k`` or ``add_zero_attn``, is
    left out.

    Args:
        call: The call's arguments by name; ``query`` (L, N, E) and ``key`` (S, N, E), or both without N.

    Returns:
        (N, H, L, K) and (N, H, S, K), or both without N.
    """
    inputs: tuple[Tensor, Tensor] = call["query"], call["key"]
    width = inputs[0].shape[-1]
    weights = call["q_proj_weight"], call["k_proj_weight"]
    if not call["use_separate_proj_weight"]:
        weights = call["in_proj_weight"].split(width)[:2]
    biases = (None, None) if call["in_proj_bias"] is None else call["in_proj_bias"].split(width)[:2]
    query, key = (
        F.linear(x, weight, bias).view(*x.shape[:-1], call["num_heads"], -1).movedim(0, -2)
        for x, weight, bias in zip(inputs, weights, biases, strict=True)
    )
    return query, key


class AttentionObserver(TorchFunctionMode):
    """Sees every attention that the model computes, by one of torch's functions or by hand, with its actual scale."""

    multi_head = inspect.signature(F.multi_head_attention_forward)

    def __init__(self, seen: Callable[[Tensor, Tensor, Any], None]):
        super().__init__()
        self.seen = seen
        self.explicit = ExplicitAttention(seen)

    def __exit__(self, *error: Any) -> None:
        """Ends a forward pass."""
        self.explicit.forget()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key"), args, strict=False)) | (kwargs or {})
            scale = named.get("scale")
            head_size = named["query"].shape[-1]
            self.seen(named["query"], named["key"], head_size**-0.5 if scale is None else scale)
        elif func is F.multi_head_attention_forward:
            call = self.multi_head.bind(*args, **(kwargs or {}))
            call.apply_defaults()
            query, key = projected_heads(call.arguments)
            self.seen(query, key, query.shape[-1] ** -0.5)
        result = func(*args, **(kwargs or {}))
        self.explicit.after(func, args, kwargs or {}, result)
        return result
