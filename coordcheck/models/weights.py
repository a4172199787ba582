"""Hugging Face's weights under the names of this project's models, to load with ``load_state_dict``.

The functions know names and layouts only. What is not a weight is left out: masks and copies of the token
embedding. A name that they do not know passes through, so that ``load_state_dict`` says what does not fit.
"""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

Names = Sequence[tuple[str, str]]  # regular expressions and their replacements, applied in this order

GPT2_NAMES: Names = (
    (r"^transformer\.", ""),
    (r"^h\.", "blocks."),
    (r"\.c_fc\.", ".fc."),
    (r"\.c_proj\.", ".proj."),
)

T5_NAMES: Names = (
    (r"^shared\.", "wte."),
    (r"\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.", ".position_bias."),
    (r"\.block\.", ".blocks."),
    (r"\.layer\.0\.layer_norm\.", ".ln_1."),
    (r"\.layer\.0\.SelfAttention\.", ".attn."),
    (r"^(decoder.*)\.layer\.1\.layer_norm\.", r"\1.ln_cross."),
    (r"\.layer\.1\.EncDecAttention\.", ".cross."),
    (r"\.layer\.[12]\.layer_norm\.", ".ln_2."),
    (r"\.layer\.[12]\.DenseReluDense\.", ".mlp."),
    (r"\.wi_0\.", ".gate."),
    (r"\.(wi|wi_1)\.", ".fc."),
    (r"\.(o|wo)\.", ".proj."),
    (r"\.final_layer_norm\.", ".ln_f."),
)


def gpt2_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for a :class:`~coordcheck.models.gpt.GPT` with biases and learned positions.

    Args:
        state: State dict of a ``GPT2LMHeadModel``, or a checkpoint, which lacks the tied readout.

    Returns:
        Tensors by our names. Hugging Face stores the linear layers of a block as (fan-in, fan-out), and q, k and v
        in one.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        tensor = tensor.t() if ".c_" in name else tensor
        name = _rename(name, GPT2_NAMES)
        if ".c_attn." in name:
            weights |= {name.replace("c_attn", part): third for part, third in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            weights[name] = tensor
    return _with_readout(weights)


def t5_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for a :class:`~coordcheck.models.t5.T5`.

    Args:
        state: State dict of a ``T5ForConditionalGeneration``, or a checkpoint, which lacks the tied readout.

    Returns:
        Tensors by our names. Early checkpoints hold a position bias for cross attention that no model uses.

    Raises:
        ValueError: if encoder and decoder do not embed tokens alike.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(".embed_tokens.weight"):
            _check_shared(name, tensor, state["shared.weight"])
        elif "EncDecAttention.relative_attention_bias" not in name:
            weights[_rename(name, T5_NAMES)] = tensor
    return _with_readout(weights)


def _check_shared(name: str, tensor: Tensor, shared: Tensor) -> None:
    # transformers from 5 on gives encoder and decoder embeddings of their own when the readout is untied
    if not tensor.equal(shared):
        raise ValueError(
            f"T5 has one token embedding, but {name!r} differs from 'shared.weight'. "
            f"For example call model.set_input_embeddings(model.shared) before model.state_dict()."
        )


def _rename(name: str, names: Names) -> str:
    for pattern, replacement in names:
        name = re.sub(pattern, replacement, name)
    return name


def _with_readout(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    weights.setdefault("lm_head.weight", weights["wte.weight"])
    return weights
