"""Our models give Hugging Face's logits on Hugging Face's weights, whatever the weights are.

Hugging Face computes RMS norms in float32 even in a float64 model; there torch's own, on the same gains, takes
their place, so that everything else is held to float64 accuracy.
"""

import re
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from coordcheck.models.gpt import GPT
from coordcheck.models.t5 import T5

transformers = pytest.importorskip("transformers")

WIDTH, HEADS, VOCAB = 48, 4, 53
PRECISIONS = [pytest.param(torch.float32, 5e-5, id="float32"), pytest.param(torch.float64, 1e-12, id="float64")]


# Hugging Face's weights under our names; a name that is not known passes through, so that load_state_dict objects
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
    """Weights for a GPT with biases and learned positions.

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
    """Weights for a T5.

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


# parity


def randomized(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Every parameter random, gains and biases too, and large enough that no part is invisible in the logits."""
    torch.manual_seed(0)
    model = model.to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.3)
            else:
                parameter.normal_(0.0, 1.0 if "relative_attention_bias" in name else WIDTH**-0.5)
    return exact_rms_norms(model) if dtype == torch.float64 else model


def exact_rms_norms(model: nn.Module) -> nn.Module:
    for name, module in list(model.named_modules()):
        if type(module).__name__ in ("T5LayerNorm", "Qwen3RMSNorm"):
            norm = nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon)
            norm.weight = module.weight
            model.set_submodule(name, norm)
    return model


def tokens(length: int, seed: int) -> torch.Tensor:
    return torch.randint(VOCAB, (2, length), generator=torch.Generator().manual_seed(seed))


def assert_equal(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() / theirs.abs().max() < tolerance


def t5_pair(tied: bool, gated: bool, dtype: torch.dtype) -> tuple[nn.Module, T5]:
    config = transformers.T5Config(
        vocab_size=VOCAB,
        d_model=WIDTH,
        d_kv=16,  # not the width / heads
        d_ff=80,
        num_heads=HEADS,
        num_layers=2,
        num_decoder_layers=3,
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    config.tie_word_embeddings = tied  # in transformers 5 the argument alone only stops the scaling of the readout
    theirs = transformers.T5ForConditionalGeneration(config)
    theirs.set_input_embeddings(theirs.shared)  # which transformers 5 unties together with the readout
    theirs = randomized(theirs, dtype)
    assert (theirs.lm_head.weight is theirs.shared.weight) == tied
    ours = T5(
        WIDTH,
        HEADS,
        1.0,
        encoder_depth=2,
        decoder_depth=3,
        vocab_size=VOCAB,
        tied=tied,
        mup_multiplier=None,
        head_size=16,
        feed_forward="geglu" if gated else "relu",
        feed_forward_size=80,
    ).to(dtype)
    ours.load_state_dict(t5_weights(theirs.state_dict()))
    return theirs, ours


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("gated", [False, True], ids=["relu", "gated"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_t5_gives_the_logits_of_hugging_face(tied, gated, dtype, tolerance):
    theirs, ours = t5_pair(tied, gated, dtype)
    source, target = tokens(300, 1), tokens(170, 2)  # both beyond the largest distance, so every bucket is used
    with torch.no_grad():
        expected = theirs(input_ids=source, decoder_input_ids=target).logits
        assert_equal(ours(source, target), expected, tolerance)


def gpt2_config(tied: bool, activation: str) -> "transformers.GPT2Config":
    return transformers.GPT2Config(
        vocab_size=VOCAB,
        n_positions=40,
        n_embd=WIDTH,
        n_layer=3,
        n_head=HEADS,
        activation_function=activation,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )


def gpt2_twin(tied: bool, feed_forward: str) -> GPT:
    return GPT(
        WIDTH,
        HEADS,
        (WIDTH // HEADS) ** -0.5,
        depth=3,
        vocab_size=VOCAB,
        context=40,
        bias=True,
        positions="learned",
        tied=tied,
        mup_multiplier=None,
        feed_forward=feed_forward,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(("activation", "feed_forward"), [("gelu", "gelu"), ("gelu_new", "gelu_tanh")])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_gpt_gives_the_logits_of_hugging_face(tied, activation, feed_forward, dtype, tolerance):
    theirs = randomized(transformers.GPT2LMHeadModel(gpt2_config(tied, activation)), dtype)
    assert (theirs.lm_head.weight is theirs.transformer.wte.weight) == tied
    ours = gpt2_twin(tied, feed_forward).to(dtype)
    ours.load_state_dict(gpt2_weights(theirs.state_dict()))
    with torch.no_grad():
        assert_equal(ours(tokens(33, 1)), theirs(tokens(33, 1)).logits, tolerance)


def test_the_two_gelus_differ_and_parity_sees_it():
    theirs = randomized(transformers.GPT2LMHeadModel(gpt2_config(True, "gelu_new")), torch.float64)
    ours = gpt2_twin(True, "gelu").double()
    ours.load_state_dict(gpt2_weights(theirs.state_dict()))
    with torch.no_grad():
        difference = (ours(tokens(33, 1)) - theirs(tokens(33, 1)).logits).abs().max()
    assert 1e-5 < difference < 1e-2


def test_checkpoints_without_prefix_or_tied_readout_and_with_masks_load_too():
    theirs = transformers.GPT2LMHeadModel(gpt2_config(True, "gelu"))
    checkpoint = {
        name.removeprefix("transformer."): tensor
        for name, tensor in theirs.state_dict().items()
        if name != "lm_head.weight"
    }
    checkpoint |= {"h.0.attn.bias": torch.ones(1, 1, 40, 40), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    expected = gpt2_weights(theirs.state_dict())
    assert gpt2_weights(checkpoint).keys() == expected.keys()
    assert all(gpt2_weights(checkpoint)[name].equal(expected[name]) for name in expected)


def test_early_t5_checkpoints_load_too():
    theirs, ours = t5_pair(True, False, torch.float32)
    checkpoint = {n: t for n, t in theirs.state_dict().items() if n != "lm_head.weight" and "embed_tokens" not in n}
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    assert t5_weights(checkpoint | {unused: torch.ones(32, HEADS)}).keys() == ours.state_dict().keys()


def test_a_t5_with_three_token_embeddings_raises():
    theirs, _ = t5_pair(False, False, torch.float32)
    separate = theirs.state_dict() | {"decoder.embed_tokens.weight": torch.ones(VOCAB, WIDTH)}
    with pytest.raises(ValueError, match=r"'decoder.embed_tokens.weight' differs.*set_input_embeddings"):
        t5_weights(separate)


QWEN3_NAMES = {
    "model.embed_tokens": "wte",
    "model.layers": "blocks",
    "model.norm": "ln_f",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "self_attn.o_proj": "attn.proj",
    "self_attn": "attn",
    "attn.([qkv])_proj": r"attn.\1",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.fc",
    "mlp.down_proj": "mlp.proj",
}


class NoRotation(nn.Module):
    """Stands for Qwen3's rotary positions, which our GPT does not have: rotates by zero."""

    def forward(self, x, position_ids):
        one = x.new_ones(*position_ids.shape, WIDTH // HEADS)
        return one, torch.zeros_like(one)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_rms_norm_swiglu_grouped_queries_and_qk_norm_are_those_of_qwen3(dtype, tolerance):
    config = transformers.Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        head_dim=WIDTH // HEADS,
        tie_word_embeddings=False,
        attn_implementation="sdpa",  # eager attention takes its softmax in float32 whatever the model's type
    )
    theirs = randomized(transformers.Qwen3ForCausalLM(config), dtype)
    theirs.model.rotary_emb = NoRotation()
    ours = GPT(
        WIDTH,
        HEADS,
        (WIDTH // HEADS) ** -0.5,
        depth=2,
        vocab_size=VOCAB,
        context=40,
        bias=False,
        positions="none",
        tied=False,
        mup_multiplier=None,
        norm="rms",
        feed_forward="swiglu",
        kv_heads=2,
        qk_norm=True,
    ).to(dtype)
    weights = {}
    for name, tensor in theirs.state_dict().items():
        for theirs_name, our_name in QWEN3_NAMES.items():
            name = re.sub(theirs_name, our_name, name)
        weights[name] = tensor
    ours.load_state_dict(weights)
    with torch.no_grad():
        assert_equal(ours(tokens(33, 1)), theirs(tokens(33, 1)).logits, tolerance)
