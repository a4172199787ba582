"""The table of schemes against torch's own modules, numbers measured on flax, and the formula of T-Fixup's paper."""

import math

import pytest
import torch
from test_post_ln import build
from torch import nn

from coordcheck.config.schema import Scheme
from coordcheck.models.initialize import Rule, Std

D = 256


def kernels(block: nn.Module, attention: str) -> dict[str, torch.Tensor]:
    modules = {name: block.get_submodule(f"{attention}.{name}") for name in ("q", "k", "v", "out")}
    return {name: module.weight for name, module in modules.items()} | {
        "fc": block.mlp.fc.weight,
        "proj": block.mlp.proj.weight,
    }


def of_torch(layer: nn.TransformerEncoderLayer) -> dict[str, torch.Tensor]:
    q, k, v = layer.self_attn.in_proj_weight.chunk(3)
    others = {"out": layer.self_attn.out_proj.weight, "fc": layer.linear1.weight, "proj": layer.linear2.weight}
    return {"q": q, "k": k, "v": v} | others


@pytest.mark.parametrize("scheme", [Scheme.xavier_packed, Scheme.torch_layers])
def test_torch_itself_draws_from_the_same_distributions(scheme):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, 4, 4 * D, batch_first=True)
    if scheme == Scheme.xavier_packed:
        encoder = nn.TransformerEncoder(layer, 1)
        nn.Transformer(D, 4, custom_encoder=encoder, num_decoder_layers=1, dim_feedforward=4 * D, batch_first=True)
        layer = encoder.layers[0]
    ours, theirs = kernels(build(scheme, D, 1).encoder[0], "attn"), of_torch(layer)
    for name, weight in theirs.items():
        assert ours[name].std().item() == pytest.approx(weight.std().item(), rel=0.02), name
        assert ours[name].abs().max().item() == pytest.approx(weight.abs().max().item(), rel=0.002), name


def test_unpacked_torch_attention_is_the_separate_scheme():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(D, 4, kdim=D, vdim=D + 1)  # unequal sizes make torch keep three matrices
    ours = build(Scheme.xavier_separate, D, 1).encoder[0].attn.q.weight
    assert ours.abs().max().item() == pytest.approx(attention.q_proj_weight.abs().max().item(), rel=0.002)


def test_flaxs_default_has_unit_gain_and_ends_at_two_standard_deviations_of_the_uncut_normal():
    # flax 0.12.8, jax 0.10.2, MultiHeadDotProductAttention: std * sqrt(d) 1.001, largest entry 2.271 std
    for name, weight in kernels(build(Scheme.lecun_normal, D, 1).encoder[0], "attn").items():
        assert weight.std().item() * weight.shape[-1] ** 0.5 == pytest.approx(1.0, rel=0.01), name
        assert weight.abs().max().item() / weight.std().item() == pytest.approx(2.271, rel=0.01), name


@pytest.mark.parametrize(
    ("part", "attention", "scale"),
    [("encoder", "attn", 0.67 / 2**0.25), ("decoder", "self_attn", 18**-0.25), ("decoder", "cross_attn", 18**-0.25)],
)
def test_t_fixup_scales_v_out_and_the_feed_forward_of_two_blocks(part, attention, scale):
    block = build(Scheme.t_fixup, D, 2).get_submodule(part)[0]
    bounds = {"q": 1.0, "k": 1.0, "v": scale, "out": scale}
    bounds = {name: factor * math.sqrt(6 / (2 * D)) for name, factor in bounds.items()}
    bounds |= dict.fromkeys(("fc", "proj"), scale * math.sqrt(6 / (5 * D)))
    for name, weight in kernels(block, attention).items():
        assert weight.abs().max().item() == pytest.approx(bounds[name], rel=0.002), name


def test_schemes_differ_in_nothing_else():
    first, *others = (build(scheme, 64, 1).state_dict() for scheme in Scheme)
    for other in others:
        for name in ("queries.weight", "input.weight", "class_head.weight", "decoder.0.mlp.fc.bias", "ln_f.weight"):
            assert other[name].std(correction=0).item() == pytest.approx(first[name].std(correction=0).item(), rel=0.2)


def test_the_seed_decides():
    rule = Rule("hidden", "", Std(1.0), distribution="truncated_normal")
    first, again = nn.Parameter(torch.empty(8, 8)), nn.Parameter(torch.empty(8, 8))
    with torch.no_grad():
        rule.write(first, 8, torch.Generator().manual_seed(0))
        rule.write(again, 8, torch.Generator().manual_seed(0))
    assert first.equal(again)
