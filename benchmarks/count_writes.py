"""Counts who writes each parameter while transformers builds a model, and prints it as JSON.

Per parameter, the in-place operations on its memory that torch's ``reset_parameters`` and transformers'
``_init_weights`` ran (https://github.com/huggingface/transformers/issues/21431). Runs under any transformers 4 and 5.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import OPTConfig, OPTForCausalLM, T5Config, T5ForConditionalGeneration


class Writes(TorchDispatchMode):
    """Counts in-place operations by the storage they write and by who asked for them."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[int, str]] = Counter()
        self._alive: list[torch.UntypedStorage] = []  # a freed address could come back as another parameter's

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Tensor):
                self._alive.append(value.untyped_storage())
                self.counts[value.untyped_storage().data_ptr(), _author()] += 1
        return func(*args, **(kwargs or {}))


def _author() -> str:
    """Whose function is at work: transformers' if one of its ``_init_weights`` is on the stack."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "_init_weights":
            return "transformers"
        frame = frame.f_back
    return "torch"


def count(build: Callable[[], nn.Module]) -> dict[str, dict[str, int]]:
    """Writes per parameter of a model, by author; a tied parameter under its first name."""
    with Writes() as writes:
        model = build()
    return {
        name: {who: writes.counts[parameter.untyped_storage().data_ptr(), who] for who in ("torch", "transformers")}
        for name, parameter in model.named_parameters()
    }


def opt() -> nn.Module:
    """Two layers; the embedding is tied and has a padding row."""
    sizes = {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 256, "num_attention_heads": 4}
    return OPTForCausalLM(OPTConfig(vocab_size=256, num_hidden_layers=2, max_position_embeddings=32, **sizes))


def t5() -> nn.Module:
    """Two layers each of encoder and decoder; the embedding is tied."""
    return T5ForConditionalGeneration(
        T5Config(vocab_size=256, d_model=64, d_kv=16, d_ff=256, num_layers=2, num_heads=4)
    )


if __name__ == "__main__":
    print(json.dumps({"OPTForCausalLM": count(opt), "T5ForConditionalGeneration": count(t5)}))
