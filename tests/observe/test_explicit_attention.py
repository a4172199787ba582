"""Attention written by hand against the fused one; products that are no attention are not taken for one."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import recorded, row

B, H, L, S, K = 2, 3, 6, 5, 4


class Attention(nn.Module):
    """Queries, keys and values of one input, and a way to attend."""

    def __init__(self, attend):
        super().__init__()
        self.attend = attend
        self.dropout = nn.Dropout(0.0)

    def forward(self, x):
        return self.attend(self, x[..., :L, :], x[..., L : L + S, :], x[..., L + S :, :])


def nanogpt(self, q, k, v):
    att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
    att = att.masked_fill(torch.ones(L, S).tril() == 0, float("-inf"))
    return self.dropout(F.softmax(att, dim=-1)) @ v


def eager(self, q, k, v):
    weights = torch.matmul(q, k.transpose(2, 3)) * K**-0.5
    weights = weights + torch.zeros(1, 1, L, S)
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(F.dropout(weights, p=0.0, training=self.training), v).transpose(1, 2).contiguous()


def scaled_queries(self, q, k, v):
    return torch.softmax((q / math.sqrt(K)) @ k.mT, -1) @ v


def in_place(self, q, k, v):
    scores = torch.matmul(q, k.mT)
    scores /= torch.tensor(K**0.5)
    scores += torch.ones(1, H, L, S)
    return scores.float().softmax(dim=3).type_as(scores).matmul(v)


def stacked(self, q, k, v):
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    scores = torch.baddbmm(torch.empty(B * H, L, S), q, k.mT, beta=0, alpha=K**-0.5)
    probabilities = nn.functional.softmax(scores.view(B, H, L, S), dim=-1)
    return torch.bmm(probabilities.view(B * H, L, S), v)


def einsum(self, q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / K**0.5
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def where(self, q, k, v):
    scores = q @ k.mT / K**0.5
    return torch.softmax(torch.where(torch.ones(L, S) > 0, scores, -1e9), dim=-1) @ v


def sink(self, q, k, v):
    scores = torch.cat([q @ k.mT * K**-0.5, torch.zeros(B, H, L, 1)], dim=-1)
    return F.softmax(scores, dim=-1)[..., :-1] @ v


@pytest.mark.parametrize("attend", [nanogpt, eager, scaled_queries, in_place, stacked, einsum, where, sink])
def test_attention_by_hand_is_seen_like_the_fused_one(attend):
    torch.manual_seed(0)
    x = torch.randn(B, H, L + 2 * S, K)

    def fused(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)

    expected = row(recorded(nn.Sequential(Attention(fused)), x), "0[attention_logits]")
    seen = row(recorded(nn.Sequential(Attention(attend)), x), "0[attention_logits]")
    assert seen["rms"] == pytest.approx(expected["rms"], rel=1e-5)
    assert (seen["count"], seen["role"]) == (expected["count"], "attention_logits")


def test_a_factor_for_each_head_is_part_of_the_scale():
    torch.manual_seed(0)
    x, factors = torch.randn(B, H, L + 2 * S, K), torch.tensor([1.0, 2.0, 4.0]).view(H, 1, 1)

    def attend(self, q, k, v):
        return F.softmax(q @ k.mT * factors, dim=-1) @ v

    expected = (x[..., :L, :] @ x[..., L : L + S, :].mT * factors).square().mean().sqrt()
    seen = row(recorded(nn.Sequential(Attention(attend)), x), "0[attention_logits]")
    assert seen["rms"] == pytest.approx(expected.item(), rel=1e-5)


class Router(nn.Module):
    """Softmax over experts, and the sum of what they give."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(B, K, 7))
        self.experts = nn.Parameter(torch.randn(7, K))

    def forward(self, x):
        stacked = torch.bmm(x, self.weight).softmax(-1)
        plain = (x @ self.experts.T.float().clone()).softmax(-1)
        return stacked @ self.experts.expand(B, 7, K) + plain @ self.experts


def over_queries(self, q, k, v):
    return (q @ k.mT).softmax(-2) @ v


def without_values(self, q, k, v):
    return (q @ k.mT).softmax(-1)


def without_softmax(self, q, k, v):
    return (q @ k.mT).relu() @ v


def linear(self, q, k, v):
    return q @ k.mT @ v


def through_a_sigmoid(self, q, k, v):
    return (q @ k.mT).sigmoid().softmax(-1) @ v


@pytest.mark.parametrize(
    "model",
    [Router(), *map(Attention, (over_queries, without_values, without_softmax, linear, through_a_sigmoid))],
    ids=["router", "over queries", "without values", "without softmax", "linear", "through a sigmoid"],
)
def test_products_that_are_no_attention_are_not_taken_for_one(model):
    x = torch.randn(B, 6, K) if isinstance(model, Router) else torch.randn(B, H, L + 2 * S, K)
    records = recorded(model, x)
    assert not records["module"].str.contains("attention_logits").any()


@pytest.mark.parametrize("name", ["LlamaConfig", "GPT2Config", "GPTNeoXConfig"])
def test_eager_attention_of_transformers_gives_the_numbers_of_the_fused_one(name):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 4, "bos_token_id": 0, "eos_token_id": 0}
    sizes |= {"num_key_value_heads": 2} if name == "LlamaConfig" else {}
    tokens = torch.randint(0, 50, (2, 10))
    found = []
    for way in ("sdpa", "eager"):
        torch.manual_seed(0)
        config = getattr(transformers, name)(**sizes)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=way).eval()
        records = recorded(model, tokens, kinds=("activation",))
        found.append(records[records["role"] == "attention_logits"][["module", "rms", "count"]].values.tolist())
    assert len(found[0]) == 1
    assert found[0] == [[module, pytest.approx(rms, rel=1e-5), count] for module, rms, count in found[1]]
