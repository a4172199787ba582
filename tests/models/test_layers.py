"""Layers against their mathematics, written out once more with einsum."""

import math

import pytest
import torch
from torch import nn

from coordcheck.models.gpt import GPT
from coordcheck.models.layers import Attention, FeedForward, RMSNorm, make_norm

NO_BIAS = torch.zeros(1, 1, 1, 1)


def rms_normed(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain


def attention_by_hand(layer: Attention, x, memory, scale, size, group, bias=NO_BIAS):
    """Query head h attends with the keys and values of head h // group."""

    def heads(linear, y):
        return linear(y).unflatten(-1, (-1, size))

    q, k, v = heads(layer.q, x), heads(layer.k, memory), heads(layer.v, memory)
    if layer.q_norm is not None:
        q, k = rms_normed(q, layer.q_norm.weight), rms_normed(k, layer.k_norm.weight)
    mixed = []
    for h in range(q.shape[2]):
        logits = scale * torch.einsum("blk,bsk->bls", q[:, :, h], k[:, :, h // group])
        weights = (logits + bias.expand(1, q.shape[2], -1, -1)[:, h]).softmax(-1)
        mixed.append(torch.einsum("bls,bsk->blk", weights, v[:, :, h // group]))
    return layer.proj(torch.cat(mixed, -1))


def randomized(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0.5, 0.5)
    return layer.double()


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("kv_heads", [None, 4, 2, 1])
@pytest.mark.parametrize("head_size", [None, 5])
def test_causal_attention(head_size, kv_heads, qk_norm):
    layer = randomized(
        Attention(12, 4, 0.3, True, causal=True, head_size=head_size, kv_heads=kv_heads, qk_norm=qk_norm)
    )
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    causal = torch.full((1, 1, 7, 7), -math.inf, dtype=torch.float64).triu(1)
    expected = attention_by_hand(layer, x, x, 0.3, head_size or 3, 4 // (kv_heads or 4), causal)
    torch.testing.assert_close(layer(x), expected)


def test_attention_to_a_memory_with_a_bias():
    layer = randomized(Attention(12, 4, 1.0, False, causal=False))
    x, memory = torch.randn(2, 7, 12, dtype=torch.float64), torch.randn(2, 5, 12, dtype=torch.float64)
    bias = torch.randn(1, 4, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x, memory, bias), attention_by_hand(layer, x, memory, 1.0, 3, 1, bias))
    torch.testing.assert_close(layer(x, memory), attention_by_hand(layer, x, memory, 1.0, 3, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "`heads` must divide width=12; got 5"),
        ({"heads": 0}, "`heads` must divide width=12; got 0"),
        ({"heads": 4, "kv_heads": 3}, "`kv_heads` must divide heads=4; got 3"),
        ({"heads": 4, "kv_heads": 0}, "`kv_heads` must divide heads=4; got 0"),
        ({"heads": 4, "head_size": 5, "kv_heads": 8}, "`kv_heads` must divide heads=4; got 8"),
    ],
)
def test_heads_that_do_not_divide_raise(options, message):
    with pytest.raises(ValueError, match=message):
        Attention(12, scale=1.0, bias=False, causal=True, **options)


def gelu_tanh(a: torch.Tensor) -> torch.Tensor:
    return 0.5 * a * (1 + torch.tanh((2 / math.pi) ** 0.5 * (a + 0.044715 * a**3)))


ACTIVATIONS = {
    "relu": lambda a: a * (a > 0),
    "gelu": lambda a: 0.5 * a * (1 + torch.erf(a / 2**0.5)),
    "gelu_tanh": gelu_tanh,
    "geglu": gelu_tanh,
    "swiglu": lambda a: a / (1 + torch.exp(-a)),
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_feed_forwards(kind):
    layer = randomized(FeedForward(6, True, kind, size=10))
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    activated, other = (layer.gate(x), layer.fc(x)) if kind.endswith("glu") else (layer.fc(x), 1.0)
    torch.testing.assert_close(layer(x), layer.proj(other * ACTIVATIONS[kind](activated)))


def test_a_feed_forward_is_four_times_as_wide_by_default():
    assert FeedForward(6, True).fc.weight.shape == (24, 6)


def test_norms():
    x = 3 * torch.randn(2, 8, dtype=torch.float64) + 1
    rms = randomized(make_norm("rms", 8, bias=True))
    torch.testing.assert_close(rms(x), rms_normed(x, rms.weight))
    assert [name for name, _ in rms.named_parameters()] == ["weight"]
    assert isinstance(make_norm("layer", 8, bias=True), nn.LayerNorm)
    assert make_norm("layer", 8, bias=False).bias is None


def test_unknown_kinds_raise():
    with pytest.raises(ValueError, match=r"`norm` is one of \['layer', 'rms'\]; got 'batch'"):
        make_norm("batch", 8, bias=True)
    with pytest.raises(ValueError, match=r"`feed_forward` is one of .*'swiglu'.*; got 'glu'"):
        FeedForward(8, True, "glu")


def test_an_rms_norm_takes_narrower_input_without_a_warning():
    assert RMSNorm(8)(torch.ones(2, 8, dtype=torch.bfloat16)).dtype == torch.float32


def options_gpt(**options) -> GPT:
    return GPT(
        32,
        4,
        0.25,
        depth=2,
        vocab_size=11,
        context=8,
        bias=False,
        positions="learned",
        tied=True,
        mup_multiplier=None,
        **options,
    )


def test_gpt_passes_its_options_on():
    plain = {name for name, _ in options_gpt().named_parameters()}
    model = options_gpt(norm="rms", feed_forward="swiglu", kv_heads=2, qk_norm=True)
    new = {name for name, _ in model.named_parameters()} - plain
    assert new == {f"blocks.{i}.{layer}.weight" for i in (0, 1) for layer in ("attn.q_norm", "attn.k_norm", "mlp.gate")}
    assert model.blocks[0].attn.k.weight.shape == (16, 32)
    assert isinstance(model.ln_f, RMSNorm)


def test_every_option_trains_in_bf16():
    model = options_gpt(norm="rms", feed_forward="swiglu", kv_heads=2, qk_norm=True)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.arange(8)[None])
    logits.float().square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
