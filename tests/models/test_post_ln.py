"""The post-LN encoder-decoder computes what torch and DETR compute, and its first decoder block starts as they say."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from coordcheck.config.schema import Scheme
from coordcheck.models.initialize import initialize
from coordcheck.models.layers import materialize
from coordcheck.models.post_ln import PostLN, post_ln_rules, sine_positions
from coordcheck.models.scenes import make_scenes, set_loss
from coordcheck.observe.roles import infshapes, roles, shapes

CPU = torch.device("cpu")
SIZES = {"input_size": 16, "queries": 10, "classes": 8, "box_size": 2}


def structure(width: int, depth: int, eps: float = 1e-5, mup_multiplier: float | None = None) -> PostLN:
    with torch.device("meta"):
        return PostLN(
            width,
            4,
            (width / 4) ** -0.5,
            encoder_depth=depth,
            decoder_depth=depth,
            feed_forward=4 * width,
            eps=eps,
            mup_multiplier=mup_multiplier,
            **SIZES,
        )


def role_of_each(depth: int) -> dict[str, str]:
    narrow, wide = structure(64, depth), structure(128, depth)
    return roles(narrow, infshapes(shapes(narrow), shapes(wide)))


def build(scheme: Scheme, width: int, depth: int, seed: int = 0, eps: float = 1e-5) -> PostLN:
    model = materialize(structure(width, depth, eps), CPU)
    table = post_ln_rules(scheme, feed_forward_ratio=4, encoder_depth=depth, decoder_depth=depth)
    initialize(model, role_of_each(depth), table, torch.Generator().manual_seed(seed))
    return model


def random_model(depth: int = 2) -> PostLN:
    """Float64, every parameter random, so that no bias or gain hides a mistake."""
    model = materialize(structure(32, depth), CPU).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def attention_state(ours: nn.Module) -> dict[str, torch.Tensor]:
    """What torch.nn.MultiheadAttention calls the weights of ours."""
    return {
        "in_proj_weight": torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]),
        "in_proj_bias": torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]),
        "out_proj.weight": ours.out.weight,
        "out_proj.bias": ours.out.bias,
    }


def torch_state(model: PostLN) -> dict[str, torch.Tensor]:
    """What torch.nn.Transformer calls the weights of ours."""
    others = {"ln_1": "norm1", "ln_2": "norm2", "ln_3": "norm3", "mlp.fc": "linear1", "mlp.proj": "linear2"}
    attention = {"attn": "self_attn", "self_attn": "self_attn", "cross_attn": "multihead_attn"}
    state = {f"decoder.norm.{name}": value for name, value in model.ln_f.state_dict().items()}
    for part in ("encoder", "decoder"):
        for i, block in enumerate(model.get_submodule(part)):
            modules = dict(block.named_modules())
            found = {theirs: attention_state(modules[name]) for name, theirs in attention.items() if name in modules}
            found |= {theirs: modules[name].state_dict() for name, theirs in others.items() if name in modules}
            for name, values in found.items():
                state |= {f"{part}.layers.{i}.{name}.{key}": value for key, value in values.items()}
    return state


def test_without_queries_and_positions_it_is_torch_nn_transformer():
    model = random_model()
    options = {"dim_feedforward": 128, "dropout": 0.0, "batch_first": True, "dtype": torch.float64}
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, **options), 2, enable_nested_tensor=False)
    theirs = nn.Transformer(32, 4, num_decoder_layers=2, custom_encoder=encoder, **options)
    theirs.load_state_dict(torch_state(model))
    source, target = random(3, 7, 32), random(3, 5, 32, seed=2)
    nothing = torch.zeros(1, dtype=torch.float64)
    ours = model.decode(target, model.encode(source, nothing), nothing, nothing)[-1]
    torch.testing.assert_close(ours, theirs(source, target), rtol=0, atol=1e-10)


def detr(model: PostLN, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """DETR's forward pass for one scene as facebookresearch/detr describes it, from torch's own attention."""

    def attend(ours: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        attention = nn.MultiheadAttention(32, 4, dtype=torch.float64)
        attention.load_state_dict(attention_state(ours))
        return attention(query, key, value, need_weights=False)[0]

    def norm(x: torch.Tensor, ours: nn.LayerNorm) -> torch.Tensor:
        return F.layer_norm(x, (32,), ours.weight, ours.bias, 1e-5)

    def feed_forward(ours: nn.Module, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(x @ ours.fc.weight.T + ours.fc.bias)
        return hidden @ ours.proj.weight.T + ours.proj.bias

    memory = features @ model.input.weight.T + model.input.bias
    sines = [[math.sin(s / 10000 ** (2 * i / 32)) for i in range(16)] for s in range(len(features))]
    cosines = [[math.cos(s / 10000 ** (2 * i / 32)) for i in range(16)] for s in range(len(features))]
    positions = torch.tensor([a + b for a, b in zip(sines, cosines, strict=True)], dtype=torch.float64)
    for block in model.encoder:
        memory = norm(memory + attend(block.attn, memory + positions, memory + positions, memory), block.ln_1)
        memory = norm(memory + feed_forward(block.mlp, memory), block.ln_2)
    asked = model.queries.weight
    x = torch.zeros(10, 32, dtype=torch.float64)
    for block in model.decoder:
        x = norm(x + attend(block.self_attn, x + asked, x + asked, x), block.ln_1)
        x = norm(x + attend(block.cross_attn, x + asked, memory + positions, memory), block.ln_2)
        x = norm(x + feed_forward(block.mlp, x), block.ln_3)
    x = norm(x, model.ln_f)
    hidden = torch.relu(model.box_fc_2(torch.relu(model.box_fc_1(x))))
    return model.class_head(x), torch.sigmoid(model.box_head(hidden))


def test_queries_and_positions_enter_where_detr_adds_them():
    model = random_model()
    features = random(2, 7, 16)
    logits, boxes = model(features)
    assert logits.shape == (2, 2, 10, 9)
    assert boxes.shape == (2, 2, 10, 2)
    for i in range(2):
        expected_logits, expected_boxes = detr(model, features[i])
        torch.testing.assert_close(logits[-1, i], expected_logits, rtol=0, atol=1e-10)
        torch.testing.assert_close(boxes[-1, i], expected_boxes, rtol=0, atol=1e-10)


def test_earlier_outputs_are_those_of_a_shallower_decoder():
    model = random_model()
    features = random(2, 7, 16)
    logits, boxes = model(features)
    del model.decoder[1]
    shallow_logits, shallow_boxes = model(features)
    torch.testing.assert_close(shallow_logits[-1], logits[0])
    torch.testing.assert_close(shallow_boxes[-1], boxes[0])


def test_positions_of_vaswani_et_al():
    positions = sine_positions(torch.zeros(1, 5, 8, dtype=torch.float64))
    assert positions[3, 1].item() == pytest.approx(math.sin(3 / 10000 ** (2 / 8)))
    assert positions[3, 5].item() == pytest.approx(math.cos(3 / 10000 ** (2 / 8)))


def test_roles():
    found = role_of_each(1)
    assert found["input.weight"] == found["queries.weight"] == "input"
    assert found["class_head.weight"] == found["box_head.weight"] == "readout"
    assert found["class_head.bias"] == "fixed"
    assert found["decoder.0.cross_attn.q.weight"] == found["box_fc_1.weight"] == "hidden"


def test_readouts_of_the_mup_package():
    assert "mup.layer.MuReadout" in str(type(structure(64, 1, mup_multiplier=1.0).class_head))


# The first decoder block at step 0: its input is zero, and so are its values, since biases start at zero.


def gradients(scheme: Scheme, depth: int = 2, eps: float = 1e-5, seed: int = 0) -> dict[str, torch.Tensor]:
    model = build(scheme, 64, depth, seed, eps)
    scenes = make_scenes(seed, 8)
    logits, boxes = model(scenes.features)
    set_loss(logits[-1], boxes[-1], scenes).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("scheme", Scheme)
def test_the_first_decoder_blocks_self_attention_gets_exactly_no_kernel_gradient(scheme):
    grad = gradients(scheme)
    zero = {name for name, value in grad.items() if name.startswith("decoder.0.self_attn") and not value.any()}
    biases_too = {f"decoder.0.self_attn.{name}.bias" for name in "qk"}  # no value depends on a weight of attention
    assert zero == {f"decoder.0.self_attn.{name}.weight" for name in ("q", "k", "v", "out")} | biases_too
    assert not grad["decoder.0.ln_1.weight"].any()
    assert all(grad[f"decoder.1.self_attn.{name}.weight"].any() for name in ("q", "k", "v", "out"))


def test_a_value_bias_ends_the_zero_of_out_alone():
    model = build(Scheme.xavier_packed, 64, 2)
    scenes = make_scenes(0, 8)
    with torch.no_grad():
        model.decoder[0].self_attn.v.bias.fill_(0.1)
    logits, boxes = model(scenes.features)
    set_loss(logits[-1], boxes[-1], scenes).backward()
    attention = model.decoder[0].self_attn
    assert attention.out.weight.grad.abs().max() > 1e-3
    assert not attention.v.weight.grad.any()
    # the softmax of equal values does not matter: zero but for rounding
    assert attention.q.weight.grad.abs().max() < 1e-6 * attention.out.weight.grad.abs().max()


def test_a_key_bias_never_matters():
    grad = gradients(Scheme.xavier_separate)
    for block in ("encoder.1.attn", "decoder.1.self_attn", "decoder.1.cross_attn"):
        assert grad[f"{block}.k.bias"].norm() < 1e-5 * grad[f"{block}.q.bias"].norm()


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_a_norm_of_zeros_amplifies_the_gradient(eps):
    norm = nn.LayerNorm(64, eps, dtype=torch.float64)
    x = torch.zeros(64, dtype=torch.float64, requires_grad=True)
    upstream = random(64)
    norm(x).backward(upstream)
    torch.testing.assert_close(x.grad, (upstream - upstream.mean()) / eps**0.5)


def test_flaxs_epsilon_amplifies_the_first_blocks_biases_by_its_root():
    torch_eps, flax_eps = (gradients(Scheme.xavier_packed, eps=eps) for eps in (1e-5, 1e-6))
    for name in ("v", "out"):
        ratio = (
            flax_eps[f"decoder.0.self_attn.{name}.bias"].norm() / torch_eps[f"decoder.0.self_attn.{name}.bias"].norm()
        )
        assert ratio.item() == pytest.approx(10**0.5, rel=1e-3)


def test_the_given_attention_scale_is_used():
    model, features = random_model(), random(2, 7, 16)
    logits, _ = model(features)
    attentions = [module for name, module in model.named_modules() if name.endswith("attn")]
    for attention in attentions:
        attention.scale *= 4
        with torch.no_grad():
            attention.q.weight /= 4
            attention.q.bias /= 4
    torch.testing.assert_close(model(features)[0], logits)


# Whether separate kernels get larger gradients of q and k depends on what the decoder reads.


def decoder_gradients(scheme: Scheme, encoded: bool) -> dict[str, float]:
    """Of block 1's self-attention, for tokens drawn from N(0, 1) and a random linear loss; mean of three seeds."""
    total = dict.fromkeys("qkv", 0.0)
    for seed in range(3):
        model = build(scheme, 128, 6, seed)
        generator = torch.Generator().manual_seed(seed)
        nothing = torch.zeros(1)
        memory = torch.randn(4, 32, 128, generator=generator)
        if encoded:
            memory = model.encode(memory, nothing)
        x = model.decode(torch.zeros(4, 10, 128), memory, model.queries.weight, nothing)[-1]
        (x * torch.randn(x.shape, generator=generator)).sum().backward()
        for name in total:
            total[name] += model.decoder[1].self_attn.get_submodule(name).weight.grad.norm().item() / 3
    return total


def test_separate_kernels_get_larger_gradients_only_where_the_memory_is_diverse():
    for encoded, low, high in ((False, 2.5, 5.0), (True, 0.2, 1.0)):
        packed, separate = (decoder_gradients(s, encoded) for s in (Scheme.xavier_packed, Scheme.xavier_separate))
        assert low < separate["q"] / packed["q"] < high
        assert low < separate["k"] / packed["k"] < high
        if not encoded:
            assert separate["v"] / packed["v"] == pytest.approx(1, abs=0.3)
