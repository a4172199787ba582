"""Attention logits against matrices written out, of any model that calls torch's attention."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import recorded, row
from coordcheck.observe.attention import attention_logits
from coordcheck.observe.recorder import Recorder


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize(
    ("length", "queries", "source", "keys"),
    [(7, slice(None), 9, slice(None)), (64, slice(2, None, 4), 32, slice(1, None, 2))],
    ids=["all", "some"],
)
def test_attention_logits_agree_with_the_matrix_written_out(heads, length, queries, source, keys):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(8, 4, length, 5, generator=generator, dtype=torch.float64)
    k = torch.randn(8, heads, source, 5, generator=generator, dtype=torch.float64)
    expected = 0.3 * q[:, :, queries] @ k[:, :, keys].repeat_interleave(4 // heads, dim=1).mT
    logits = attention_logits(q, k, 0.3)
    assert logits.numel() == expected.numel()
    torch.testing.assert_close(logits.flatten(), expected.flatten())


@pytest.mark.parametrize(
    ("query", "key"),
    [((1, 6, 4), (3, 5, 4)), ((2, 1, 6, 4), (2, 3, 5, 4)), ((2, 3, 6, 4), (2, 1, 5, 4)), ((3, 6, 4), (5, 4))],
    ids=["heads", "heads of a batch", "one head of keys", "no heads of keys"],
)
def test_heads_that_torch_broadcasts_are_broadcast(query, key):
    q, k = torch.randn(query), torch.randn(key)
    torch.testing.assert_close(attention_logits(q, k, 1.0), q @ k.mT)


def test_heads_without_a_batch_leave_the_positions_as_they_are():
    for heads in (2, 8):
        assert attention_logits(*torch.randn(2, heads, 256, 4), 1.0).shape == (heads, 32, 32)


def test_attention_to_nothing_is_left_out():
    class Model(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x[:, :0], x[:, :0])

    assert "(model)[attention_logits]" not in set(recorded(Model(), torch.ones(2, 3, 4))["module"])


def test_attention_of_any_model_is_seen_with_its_actual_scale():
    class Attention(nn.Module):
        def __init__(self, **kwargs):
            super().__init__()
            self.kwargs = kwargs

        def forward(self, x):
            return F.scaled_dot_product_attention(x, key=x, value=x, **self.kwargs)

    x = torch.randn(2, 4, 6, 16)
    for kwargs, scale in (({}, 16**-0.5), ({"scale": 0.5}, 0.5)):
        model = nn.Sequential(Attention(**kwargs))
        seen = row(recorded(model, x), "0[attention_logits]")
        assert seen["rms"] == pytest.approx((scale * x @ x.mT).square().mean().sqrt().item(), rel=1e-5)
        assert seen["count"] == 2 * 4 * 6 * 6
        assert seen["role"] == "attention_logits"
        assert seen["l1"] == pytest.approx((scale * x @ x.mT).abs().mean().item(), rel=1e-5)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": True}, {"bias": False}, {"kdim": 10, "vdim": 12}],
    ids=["packed", "batch_first", "no_bias", "separate"],
)
def test_attention_logits_of_torchs_own_attention_are_those_of_its_weights(options, need_weights):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, **options)

        def forward(self, query, key, value):
            return self.attention(query, key, value, need_weights=need_weights)[0]

    torch.manual_seed(0)
    model = Model()
    mha = model.attention
    nn.init.normal_(mha.in_proj_bias) if mha.in_proj_bias is not None else None
    query = torch.randn(5, 3, 8)
    key, value = torch.randn(5, 7, mha.kdim), torch.randn(5, 7, mha.vdim)  # (N, S, E)
    packed = mha.in_proj_weight
    w_q, w_k = (packed[:8], packed[8:16]) if packed is not None else (mha.q_proj_weight, mha.k_proj_weight)
    b_q, b_k = (mha.in_proj_bias[:8], mha.in_proj_bias[8:16]) if mha.in_proj_bias is not None else (0.0, 0.0)
    q = (query @ w_q.T + b_q).reshape(5, 3, 2, 4)
    k = (key @ w_k.T + b_k).reshape(5, 7, 2, 4)
    logits = torch.einsum("nlhk,nshk->nhls", q, k) / 2
    with Recorder(model, width=8) as recorder:
        order = (0, 1, 2) if mha.batch_first else (1, 0, 2)
        model(*(x.permute(order) for x in (query, key, value)))
    seen = row(recorder.records(), "attention[attention_logits]")
    assert seen["rms"] == pytest.approx(logits.square().mean().sqrt().item(), rel=1e-5)
    assert seen["count"] == 5 * 2 * 3 * 7


def test_attention_logits_of_torchs_own_encoder_layer_are_seen():
    model = nn.TransformerEncoderLayer(16, 4, 16, dropout=0.0, batch_first=True)
    records = recorded(model, torch.randn(2, 5, 16))
    assert row(records, "self_attn[attention_logits]")["count"] == 2 * 4 * 5 * 5
