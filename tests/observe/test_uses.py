"""What is read off forward passes, against models and layers that were not written here, and numbers worked by hand."""

import dataclasses
import math
import os

import mup
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from coordcheck.config.load import load
from coordcheck.models.families import make_cell
from coordcheck.observe import operations
from coordcheck.observe.uses import read_uses, roles_from_uses, trace_uses, use_role

WIDTHS = (32, 64, 128)
META = torch.device("meta")


def read(build, run=None, widths=WIDTHS):
    return read_uses(build, run or (lambda model: model(torch.ones(2, 4))), widths)


def row(frame, parameter, number=0):
    return frame[frame.parameter == parameter].iloc[number]


def factors(frame, parameter, number=0):
    found = row(frame, parameter, number)
    return found.factor_before_exponent, found.factor_after_exponent


class Net(nn.Module):
    """An input layer, a hidden layer and a readout with hooks for what a test wants around them."""

    def __init__(self, width, before=lambda x, w: x, after=lambda y, w: y, inside=lambda x, w: x, last=torch.relu):
        super().__init__()
        self.width = width
        self.inp = nn.Linear(4, width)
        self.hid = nn.Linear(width, width)
        self.out = nn.Linear(width, 3, bias=False)
        self.before, self.after, self.inside, self.last = before, after, inside, last

    def forward(self, x):
        h = torch.relu(self.inp(x))
        h = self.last(self.after(self.hid(self.inside(h, self.width)), self.width))
        return self.out(self.before(h, self.width))


# factors


def test_mu_readout_multiplies_what_it_takes():
    class Tied(nn.Module):
        def __init__(self, width, shared):
            super().__init__()
            self.emb = nn.Embedding(7, width)
            self.norm = nn.LayerNorm(width)
            kind = mup.MuSharedReadout(self.emb.weight, bias=False) if shared else mup.MuReadout(width, 7, bias=False)
            self.head = kind

        def forward(self, tokens):
            return self.head(self.norm(self.emb(tokens)))

    def build(width, shared):
        model = Tied(width, shared)
        return mup.set_base_shapes(model, Tied(16, shared), delta=Tied(32, shared))

    tokens = torch.tensor([[0, 1, 2]])
    for shared, name, number in ((False, "head.weight", 0), (True, "emb.weight", 1)):
        frame = read(lambda width, shared=shared: build(width, shared), lambda model: model(tokens))
        assert factors(frame, name, number) == (-1, 0)
        assert factors(frame, "emb.weight") == (0, 0)
        assert use_role(row(frame, name, number)) == "readout"


def test_a_weight_used_past_its_module_has_no_multiplier():
    class Bypass(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.inp = nn.Linear(4, width)
            self.head = mup.MuReadout(width, 5, bias=False)

        def forward(self, x):
            return F.linear(torch.tanh(self.inp(x)), self.head.weight)

    frame = read(lambda width: mup.set_base_shapes(Bypass(width), Bypass(16), delta=Bypass(32)))
    found = row(frame, "head.weight")
    assert factors(frame, "head.weight") == (0, 0)
    assert (found.operation, found.module, found.is_returned) == ("linear", "", True)


SCALE_ONLY = {
    "times a number": lambda x, w: x * w**-0.5,
    "a number times": lambda x, w: w**-0.5 * x,
    "divided": lambda x, w: x / w**0.5,
    "function": lambda x, w: torch.div(torch.mul(x, 1 / w), w**-0.5),
    "in place": lambda x, w: x.clone().mul_(w**-1.0).div_(w**-0.5),
    "operators in place": lambda x, w: in_place(x.clone(), w**-0.5),
    "a tensor of one entry": lambda x, w: x * torch.tensor([w**-0.5]),
    "by a tensor of one entry": lambda x, w: x / torch.tensor(w**0.5),
    "negative": lambda x, w: -(x * -(w**-0.5)),
    "reshaped": lambda x, w: (x * w**-0.5).view(-1).reshape(2, 1, w).flatten(1).unsqueeze(0).squeeze(0),
    "permuted": lambda x, w: (x * w**-0.5).t().transpose(0, 1).permute(1, 0).mT.contiguous(),
    "split": lambda x, w: torch.cat([part * w**-0.5 for part in x.chunk(2, -1)], -1) * 1.0,
    "sliced": lambda x, w: (x * w**-0.5)[:, None][:, 0].expand(2, w),
    "cast": lambda x, w: (x * w**-0.5).double().to(torch.float32).clone().detach(),
    "dropped": lambda x, w: F.dropout(x * w**-0.5, 0.0),
    "stacked": lambda x, w: torch.stack([x * w**-0.5, x]).unbind(0)[0],
    "aten": lambda x, w: torch.ops.aten.mul.Tensor(x, w**-0.5),
    "negative power of one tensor": lambda x, w: x * torch.tensor(float(w)).rsqrt(),
}


def in_place(x, factor):
    x *= factor**2
    x /= factor
    return x


@pytest.mark.parametrize("scale", [name for name in SCALE_ONLY if name not in ("split", "stacked")])
def test_scale_only_operations_before_a_readout_are_its_own(scale):
    frame = read(lambda width: Net(width, before=SCALE_ONLY[scale]))
    assert factors(frame, "out.weight") == pytest.approx((-0.5, 0))
    assert factors(frame, "hid.weight") == (0, 0)


@pytest.mark.parametrize("scale", SCALE_ONLY)
def test_scale_only_operations_after_a_layer_are_its_own(scale):
    frame = read(lambda width: Net(width, after=SCALE_ONLY[scale]))
    expected = 0 if scale == "stacked" else -0.5  # its second branch, which was not scaled, is as much the result
    assert factors(frame, "hid.weight") == pytest.approx((0, expected))
    assert factors(frame, "out.weight") == (0, 0)


def test_a_factor_between_two_layers_belongs_to_one_of_them():
    def scale(x, width):
        return x / width

    def same(x):
        return x

    read_out = read(lambda width: Net(width, before=scale, last=same))
    assert factors(read_out, "out.weight") == (-1, 0), "what makes the logits takes it"
    assert factors(read_out, "hid.weight") == (0, 0)

    class Deep(nn.Module):
        def __init__(self, width, within):
            super().__init__()
            self.first, self.second = nn.Linear(4, width), Scaled(width, width) if within else nn.Linear(width, width)
            self.out, self.within = nn.Linear(width, 3), within

        def forward(self, x):
            h = self.first(x)
            return self.out(torch.relu(self.second(h if self.within else h * h.shape[-1])))

    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x * x.shape[-1])

    outside, within = (read(lambda width, within=within: Deep(width, within)) for within in (False, True))
    assert (factors(outside, "first.weight"), factors(outside, "second.weight")) == ((0, 1), (0, 0))
    assert (factors(within, "first.weight"), factors(within, "second.weight")) == ((0, 0), (1, 0))


def test_a_factor_after_raw_weights_and_their_bias_is_theirs():
    class Raw(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(4, width)), nn.Parameter(torch.zeros(width))
            self.c, self.norm = nn.Parameter(torch.zeros(width, width)), nn.RMSNorm(width)
            self.hid, self.out = nn.Linear(width, width), nn.Linear(width, 3)

        def forward(self, x):
            width = self.b.shape[0]
            h = (x @ self.a + self.b) / width @ self.c
            return self.out(torch.relu(self.hid(self.norm(h) * width**0.5)))

    frame = read(Raw)
    assert {name: factors(frame, name) for name in ("a", "b", "c")} == {"a": (0, -1), "b": (0, -1), "c": (0, 0)}
    assert factors(frame, "hid.weight") == (0.5, 0), "no gain owns what follows it"
    assert factors(frame, "norm.weight") == (0, 0)


def test_a_hook_that_scales_what_a_layer_takes_is_the_layers():
    def build(width):
        model = nn.Sequential(nn.Linear(4, width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))
        model[1].register_forward_pre_hook(lambda module, args: args[0] / width)
        return model

    frame = read(build)
    assert (factors(frame, "0.weight"), factors(frame, "1.weight")) == ((0, 0), (-1, 0))


def test_a_branch_keeps_its_factor_through_residual_sums():
    class Residual(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.width = width
            self.emb, self.pos = nn.Embedding(7, width), nn.Parameter(torch.zeros(3, width))
            self.a, self.b, self.c = (nn.Linear(width, width, bias=False) for _ in range(3))
            self.out = nn.Linear(width, 7)

        def forward(self, tokens):
            w = self.width
            x = self.emb(tokens) * w**0.5 + self.pos
            x = x + self.a(x) / w
            x = torch.add(x, self.b(torch.relu(x)), alpha=w**-0.5)
            x += torch.relu(self.c(x)) / w
            return self.out(x / w)

    frame = read(Residual, lambda model: model(torch.tensor([[0, 1, 2]])))
    found = {name: factors(frame, name) for name in ("emb.weight", "pos", "a.weight", "b.weight", "c.weight")}
    assert found == {
        "emb.weight": (0, 0.5),
        "pos": (0, 0),
        "a.weight": (0, -1),
        "b.weight": (0, -0.5),
        "c.weight": (0, 0),
    }
    assert factors(frame, "out.weight") == (-1, 0)
    assert row(frame, "pos").operation == "elementwise"


def test_a_factor_on_the_result_or_on_the_weight():
    class Head(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight * self.in_features**-0.5, self.bias) / self.in_features

    class Model(nn.Sequential):
        def __init__(self, width):
            super().__init__(nn.Linear(4, width), nn.ReLU(), Head(width, 3))

    frame = read(Model)
    assert factors(frame, "2.weight") == (-0.5, -1)
    assert factors(frame, "2.bias") == (0, -1)


def test_addmm_scales_its_product_and_its_sum():
    class Model(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.w, self.b, self.width = nn.Parameter(torch.zeros(4, width)), nn.Parameter(torch.zeros(width)), width

        def forward(self, x):
            return torch.addmm(self.b, x, self.w, alpha=1 / self.width)

    frame = read(Model)
    assert factors(frame, "w") == (0, -1)
    assert factors(frame, "b") == (0, 0)
    assert (row(frame, "w").fan_in, row(frame, "w").dim_in, row(frame, "w").dim_out) == (4, (0,), (1,))


def test_unknown_factors_have_a_reason():
    class Model(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.register_buffer("scale", torch.tensor(2.0))
            self.inp, self.gate, self.out = nn.Linear(4, width), nn.Parameter(torch.zeros(width)), nn.Linear(width, 3)

        def forward(self, x):
            return self.out(torch.relu(self.inp(x)) * self.gate.exp() * self.scale)

    def on_meta(width):
        with META:
            return Model(width)

    frame = read(on_meta, lambda model: model(torch.ones(2, 4, device=META)))
    assert "without memory" in row(frame, "out.weight").reason
    assert "exp" in row(frame, "gate").reason
    assert math.isnan(row(frame, "out.weight").factor_before_exponent)
    assert math.isnan(row(frame, "gate").factor_before_exponent)
    assert not row(read(Model), "out.weight").reason
    zero = read(lambda width: Net(width, before=lambda x, w: x * 0))
    assert row(zero, "out.weight").reason == "a factor is zero"


# which dimensions are summed


@pytest.mark.parametrize(
    ("layer", "shape", "fan_in", "fan_out", "blocks"),
    [
        (lambda w: nn.Conv1d(w, 2 * w, 5), (1, 128, 9), 128 * 5, 256, 1),
        (lambda w: nn.Conv2d(w, w, (3, 2), groups=4), (1, 128, 9, 9), 32 * 6, 32, 4),
        (lambda w: nn.Conv1d(w, w, 4, groups=w), (1, 128, 9), 4, 1, 128),
        (lambda w: nn.Conv3d(w, 3, 1), (1, 128, 2, 2, 2), 128, 3, 1),
        (lambda w: nn.ConvTranspose1d(w, 6, 4), (1, 128, 9), 128 * 4, 6, 1),
        (lambda w: nn.ConvTranspose2d(w, 2 * w, 3, groups=2), (1, 128, 9, 9), 64 * 9, 128, 2),
        (lambda w: nn.Bilinear(w, 5, 7), None, 128 * 5, 7, 1),
        (lambda w: nn.EmbeddingBag(11, w), None, 1, 128, 11),
    ],
)
def test_fans_of_layers(layer, shape, fan_in, fan_out, blocks):
    def run(model):
        if shape is not None:
            return model(torch.zeros(1, model.in_channels, *shape[2:]))
        if isinstance(model, nn.Bilinear):
            return model(torch.zeros(2, model.in1_features), torch.zeros(2, 5))
        return model(torch.tensor([[1, 2]]))

    found = row(read(layer, run), "weight")
    assert (found.fan_in, found.fan_out, found.blocks) == (fan_in, fan_out, blocks)


def test_weights_in_any_position_of_a_product():
    class Raw(nn.Module):
        def __init__(self, w):
            super().__init__()
            shapes = {
                "right": (w, 6),
                "left": (5, w),
                "hdk": (w // 8, w, 8),
                "experts": (3, 7, w),
                "packed": (3 * w, w),
            }
            for name, shape in (
                shapes | {"dots": (w,), "split": (2 * w, w), "turned": (w, 3 * w), "own": (4, w // 4, 5)}
            ).items():
                setattr(self, name, nn.Parameter(torch.zeros(shape)))

        def forward(self, x):
            w = x.shape[-1]
            torch.relu(x @ self.right)
            torch.relu(self.left @ x.mT)
            heads = torch.einsum("bld,hdk->blhk", x, self.hdk)
            torch.relu(torch.einsum("blhk,hdk->bld", heads.relu(), self.hdk))
            torch.relu(torch.bmm(x.expand(3, -1, w), self.experts.transpose(1, 2)))
            q, k, v = self.packed.view(3, w, w).unbind(0)
            torch.relu(x @ q.T + F.linear(x, k) + torch.tensordot(x, v, ([-1], [1])))
            torch.relu(F.linear(x, self.split[w:]))
            torch.relu(F.linear(x, self.turned.view(w, 3, w).permute(2, 1, 0).reshape(3 * w, w)))
            torch.relu(torch.einsum("blhk,hkj->blhj", x.unflatten(-1, (4, -1)), self.own))
            return torch.relu(torch.matmul(x, self.dots))

    frame = read(Raw, lambda model: model(torch.ones(1, 2, model.dots.shape[0])))
    found = {}
    for use in frame.itertuples():
        found.setdefault(use.parameter, []).append(
            (use.operation, use.fan_in, use.fan_out, use.blocks, use.dim_in, use.dim_out)
        )
    assert found == {
        "right": [("matmul", 128, 6, 1, (0,), (1,))],
        "left": [("matmul", 128, 5, 1, (1,), (0,))],
        "hdk": [("einsum", 128, 16 * 8, 1, (1,), (0, 2)), ("einsum", 16 * 8, 128, 1, (0, 2), (1,))],
        "experts": [("matmul", 128, 7, 3, (2,), (1,))],
        "packed": [
            ("matmul", 128, 128, 1, (1,), (0,)),
            ("linear", 128, 128, 1, (1,), (0,)),
            ("tensordot", 128, 128, 1, (1,), (0,)),
        ],
        "dots": [("matmul", 128, 1, 1, (0,), ())],
        "split": [("linear", 128, 128, 1, (1,), (0,))],
        "turned": [("linear", 128, 3 * 128, 1, (0,), (1,))],
        "own": [("einsum", 32, 5, 4, (1,), (2,))],
    }


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no F.grouped_mm")
def test_grouped_matmul():
    class Grouped(nn.Module):
        def __init__(self, w):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2, w, 16, dtype=torch.bfloat16))

        def forward(self, x):
            return F.grouped_mm(x, self.w, offs=torch.tensor([2, 4], dtype=torch.int32))

    found = row(read(Grouped, lambda model: model(torch.zeros(4, model.w.shape[1]).bfloat16())), "w")
    assert (found.operation, found.fan_in, found.fan_out, found.blocks) == ("matmul", 128, 16, 2)


@pytest.mark.parametrize("train", [False, True])
def test_torch_transformer_layer(train):
    frame = read(
        lambda w: nn.TransformerEncoderLayer(w, w // 8, 2 * w, batch_first=True).train(train),
        lambda model: model(torch.ones(2, 3, model.linear1.in_features)),
    )
    roles = roles_from_uses(frame)
    matrices = ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")
    assert {name: roles.pop(name) for name in matrices} == dict.fromkeys(matrices, ("hidden",))
    assert set(roles.values()) == {("vector",)}
    found = row(frame, "self_attn.in_proj_weight")
    assert (found.module, found.fan_in, found.dim_in) == ("self_attn", 128, (1,))


def test_cross_attention_takes_slices_of_packed_weights():
    class Cross(nn.MultiheadAttention):
        def __init__(self, w):
            super().__init__(w, w // 8, kdim=6, vdim=6) if w % 3 else super().__init__(w, w // 8)

    def run(model):
        query, memory = torch.ones(2, 3, model.embed_dim), torch.ones(4, 3, model.kdim)
        return model(query, memory, memory)

    roles = roles_from_uses(read(Cross, run))
    assert [roles[f"{name}_proj_weight"] for name in "qkv"] == [("hidden",), ("input",), ("input",)]
    packed = read(lambda w: nn.MultiheadAttention(w, w // 8), run)
    assert sorted(packed[packed.parameter == "in_proj_weight"].fan_out) == [128, 256]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_layers(kind):
    frame = read(lambda w: kind(4, w), lambda model: model(torch.ones(3, 4)))
    roles = {name.removesuffix("_l0"): role for name, role in roles_from_uses(frame).items()}
    assert roles == {"weight_ih": ("input",), "weight_hh": ("hidden",), "bias_ih": ("vector",), "bias_hh": ("vector",)}
    assert set(frame.operation) == {"recurrent", "elementwise"}


# roles


def test_lora_projects_and_its_merged_form_does_too():
    class LoRA(nn.Module):
        def __init__(self, w, merged=False):
            super().__init__()
            self.base, self.a, self.b = nn.Linear(w, w), nn.Linear(w, 4, bias=False), nn.Linear(4, w, bias=False)
            self.merged = merged

        def forward(self, x):
            if self.merged:
                return F.linear(x, self.base.weight + self.b.weight @ self.a.weight * 2.0, self.base.bias)
            return self.base(x) + self.b(self.a(x)) / x.shape[-1]

    for merged in (False, True):
        frame = read(
            lambda w, merged=merged: nn.Sequential(LoRA(w, merged), nn.ReLU(), nn.Linear(w, 3)),
            lambda model: model(torch.ones(2, model[2].in_features)),
        )
        roles = roles_from_uses(frame)
        assert (roles["0.a.weight"], roles["0.b.weight"]) == (("projection",), ("input",))
        assert (roles["0.base.weight"], roles["2.weight"]) == (("hidden",), ("readout",))
        assert factors(frame, "0.b.weight") == (0, 0 if merged else -1)
        a, b = row(frame, "0.a.weight"), row(frame, "0.b.weight")
        assert (a.fan_in, a.fan_out, b.fan_in, b.fan_out) == (128, 4, 4, 128)


class RawMoE(nn.Module):
    """Raw experts and a raw router, as in transformers 5."""

    def __init__(self, w):
        super().__init__()
        self.router = nn.Parameter(torch.zeros(4, w))
        self.w1, self.w2 = nn.Parameter(torch.zeros(4, 2 * w, w)), nn.Parameter(torch.zeros(4, w, 2 * w))
        self.head = nn.Linear(w, 5)

    def forward(self, x):
        gate = F.linear(x, self.router).softmax(-1)
        y = torch.bmm(F.silu(torch.bmm(x.expand(4, -1, -1), self.w1.transpose(1, 2))), self.w2.transpose(1, 2))
        return self.head(x + (y * gate.T[..., None]).sum(0)), gate


def test_raw_router_is_a_projection_even_when_it_is_returned():
    frame = read(RawMoE, lambda model: model(torch.ones(3, model.router.shape[1])))
    roles = roles_from_uses(frame)
    del roles["head.bias"]
    assert roles == {"router": ("projection",), "w1": ("hidden",), "w2": ("hidden",), "head.weight": ("readout",)}
    assert row(frame, "w1").blocks == 4


def test_positions_and_class_tokens_sum_nothing():
    class Tokens(nn.Module):
        def __init__(self, w):
            super().__init__()
            self.cls, self.pos = nn.Parameter(torch.zeros(1, 1, w)), nn.Parameter(torch.zeros(9, w))
            self.table, self.queries = nn.Parameter(torch.zeros(1, 9, w)), nn.Parameter(torch.zeros(2, w))
            self.norm, self.out = nn.LayerNorm(w), nn.Linear(w, w)

        def forward(self, tokens):
            x = self.table[0, tokens]
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1)
            x = x + self.pos[: x.shape[1]]
            return self.out(self.norm(x)), self.out(self.queries)

    frame = read(Tokens, lambda model: model(torch.tensor([[1, 2, 3]])))
    found = {name: (row(frame, name).operation, row(frame, name).fan_in) for name in ("cls", "pos", "table", "queries")}
    assert found == {
        "cls": ("concatenate", 1),
        "pos": ("elementwise", 1),
        "table": ("embedding", 1),
        "queries": ("elementwise", 1),
    }
    roles = roles_from_uses(frame)
    assert roles["out.weight"] == ("hidden",)
    assert [roles[name] for name in found] == [("input",), ("vector",), ("input",), ("vector",)]


def test_conv_readout_that_divides_its_input():
    class Readout(nn.Conv1d):
        def forward(self, x):
            return super().forward(x / x.shape[1])

    def build(w):
        return nn.Sequential(nn.Conv1d(1, w, 7, padding=3), nn.GELU(), Readout(w, 1, 3, padding=1))

    frame = read(build, lambda model: model(torch.ones(2, 1, 8)))
    assert factors(frame, "2.weight") == (-1, 0)
    assert roles_from_uses(frame) == {
        "0.weight": ("input",),
        "0.bias": ("vector",),
        "2.weight": ("readout",),
        "2.bias": ("fixed",),
    }


# transformers


@pytest.fixture(scope="module")
def hf():
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("transformers")


def causal(hf, name, meta=True, **options):
    """Build and run a small language model of transformers."""

    def build(width):
        heads = width // 16
        sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": heads}
        sizes |= {"num_key_value_heads": heads, "head_dim": 16, "num_hidden_layers": 2, "vocab_size": 50}
        if name == "gpt2":
            sizes = {"n_embd": width, "n_head": heads, "n_layer": 2, "vocab_size": 50}
            options.setdefault("pad_token_id", None)
        if name == "opt":
            sizes = sizes | {"ffn_dim": 2 * width, "word_embed_proj_dim": width}
        if name == "mamba":
            sizes = {"hidden_size": width, "num_hidden_layers": 1, "vocab_size": 50, "state_size": 4}
        small = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **options}
        config = hf.AutoConfig.for_model(name, **sizes, **small)
        with META if meta else torch.device("cpu"):
            return hf.AutoModelForCausalLM.from_config(config).eval()

    def run(model):
        return model(input_ids=torch.arange(6).view(1, 6).to(next(model.parameters()).device))

    return read_uses(build, run, WIDTHS)


def matrix_roles(frame):
    """Roles of what is no vector, with the names of layers taken off."""
    roles = {}
    for name, found in roles_from_uses(frame).items():
        if found not in (("vector",), ("fixed",)):
            words = [word for word in name.split(".") if word != "weight"]
            roles.setdefault(words[-1], set()).update(found)
    return roles


ROPE = {**{f"{letter}_proj": {"hidden"} for letter in "qkvo"}, "embed_tokens": {"input"}, "lm_head": {"readout"}}
SWIGLU = {"gate_proj": {"hidden"}, "up_proj": {"hidden"}, "down_proj": {"hidden"}}


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral"])
def test_hf_decoders(hf, name):
    frame = causal(hf, name, tie_word_embeddings=False)
    assert matrix_roles(frame) == ROPE | SWIGLU
    assert not frame.reason.any()
    assert (frame.factor_before_exponent == 0).all()
    assert row(frame, "lm_head.weight").is_returned
    assert not row(frame, "lm_head.weight").feeds


def test_hf_gpt2_stores_its_weights_the_other_way_round(hf):
    frame = causal(hf, "gpt2")
    assert matrix_roles(frame) == {
        "wte": {"input", "readout"},
        "wpe": {"input"},
        "c_attn": {"hidden"},
        "c_proj": {"hidden"},
        "c_fc": {"hidden"},
    }
    attn = row(frame, "transformer.h.0.attn.c_attn.weight")
    assert (attn.operation, attn.fan_in, attn.fan_out, attn.dim_in) == ("matmul", 128, 3 * 128, (0,))


def test_hf_opt(hf):
    roles = matrix_roles(causal(hf, "opt"))
    assert roles["embed_tokens"] == {"input", "readout"}
    assert roles["embed_positions"] == {"input"}
    assert {name for name, found in roles.items() if found == {"hidden"}} >= {"q_proj", "out_proj", "fc1", "fc2"}


def test_hf_gemma_multiplies_its_embedding(hf):
    frame = causal(hf, "gemma2", meta=False)
    assert factors(frame, "model.embed_tokens.weight") == pytest.approx((0, 0.5), abs=1e-3)
    assert factors(frame, "model.embed_tokens.weight", 1) == (0, 0)
    assert matrix_roles(frame)["embed_tokens"] == {"input", "readout"}


def test_hf_granite_divides_its_logits(hf):
    def build(width):
        sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": width // 16}
        scaled = {"logits_scaling": width / 16, "embedding_multiplier": width**0.5, "residual_multiplier": 1 / width}
        config = hf.GraniteConfig(vocab_size=50, num_hidden_layers=1, **sizes, **scaled, pad_token_id=0)
        with META:
            return hf.GraniteForCausalLM(config)

    frame = read_uses(build, lambda model: model(torch.zeros(1, 4, dtype=torch.long, device=META)), WIDTHS)
    assert factors(frame, "model.embed_tokens.weight") == (0, 0.5)
    assert factors(frame, "lm_head.weight") == (0, -1)
    assert factors(frame, "model.layers.0.self_attn.o_proj.weight") == (0, -1)
    assert factors(frame, "model.layers.0.mlp.down_proj.weight") == (0, -1)


@pytest.mark.parametrize("experts", ["eager", "grouped_mm", "batched_mm"])
def test_hf_mixtral_routes_by_a_projection(hf, experts):
    frame = causal(hf, "mixtral", meta=False, num_local_experts=4, experts_implementation=experts)
    experts = {"gate": {"projection"}, "gate_up_proj": {"hidden"}, "down_proj": {"hidden"}}
    assert matrix_roles(frame) == ROPE | experts
    router = row(frame, "model.layers.0.mlp.gate.weight")
    assert (router.fan_in, router.fan_out, router.dim_in) == (128, 4, (1,))
    assert row(frame, "model.layers.0.mlp.experts.down_proj").fan_in == 256


def test_hf_mamba(hf):
    frame = causal(hf, "mamba", meta=False, time_step_rank=4)
    assert matrix_roles(frame) == {
        "embeddings": {"input", "readout"},
        "in_proj": {"hidden"},
        "x_proj": {"projection"},
        "dt_proj": {"input"},
        "out_proj": {"hidden"},
    }
    roles = {name.split(".")[-1]: found for name, found in roles_from_uses(frame).items()}
    assert (roles["A_log"], roles["D"]) == (("vector",), ("vector",))
    assert roles_from_uses(frame)["backbone.layers.0.mixer.conv1d.weight"] == ("vector",)


def test_hf_t5_scales_before_its_tied_readout(hf):
    def build(width):
        sizes = {"d_model": width, "d_kv": 16, "d_ff": 2 * width, "num_heads": width // 16, "num_layers": 1}
        with META:
            return hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=50, decoder_start_token_id=0, **sizes)).eval()

    def run(model):
        tokens = torch.zeros(1, 4, dtype=torch.long, device=META)
        return model(input_ids=tokens, decoder_input_ids=tokens)

    frame = read_uses(build, run, WIDTHS)
    readout = frame[(frame.parameter == "shared.weight") & frame.is_returned].iloc[0]
    assert (readout.factor_before_exponent, readout.fan_in) == (-0.5, 128)
    assert roles_from_uses(frame)["shared.weight"] == ("input", "readout")
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert roles_from_uses(frame)[bias] == ("input",)


def test_hf_vit(hf):
    def build(width):
        sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": width // 16}
        return hf.ViTForImageClassification(
            hf.ViTConfig(num_hidden_layers=1, image_size=16, patch_size=8, num_labels=3, **sizes)
        )

    frame = read_uses(build, lambda model: model(pixel_values=torch.ones(1, 3, 16, 16)), WIDTHS)
    roles = roles_from_uses(frame)
    assert row(frame, "vit.embeddings.patch_embeddings.projection.weight").fan_in == 3 * 8 * 8
    assert roles["vit.embeddings.patch_embeddings.projection.weight"] == ("input",)
    assert roles["vit.embeddings.position_embeddings"] == ("vector",)
    assert roles["vit.embeddings.cls_token"] == ("input",)
    assert roles["classifier.weight"] == ("readout",)


# what hides, what fails, what wraps


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        return (x / x.shape[-1]) @ weight.t()

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError


def test_what_an_autograd_function_calls_is_seen():
    class Model(nn.Module):
        def __init__(self, w):
            super().__init__()
            self.inp, self.out = nn.Linear(4, w), nn.Linear(w, 3, bias=False)

        def forward(self, x):
            return Opaque.apply(torch.relu(self.inp(x)), self.out.weight)

    assert factors(read(Model), "out.weight") == (-1, 0)


@torch.library.custom_op("coordcheck_tests::linear", mutates_args=())
def hidden_kernel(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    with torch._C.DisableTorchFunction():
        return x @ weight.t() / x.shape[-1]


class Kernel(nn.Module):
    """A layer that divides by its width within somebody's kernel."""

    def __init__(self, w, visible):
        super().__init__()
        self.inp, self.out = nn.Linear(4, w), nn.Linear(w, w, bias=False)
        nn.init.normal_(self.out.weight)
        self.out.forward = self.visible if visible else self.invisible

    def visible(self, x):
        return hidden_kernel(x, self.out.weight)

    def invisible(self, x):
        with torch._C.DisableTorchFunction():
            return x @ self.out.weight.t() / x.shape[-1]

    def forward(self, x):
        return self.out(torch.sin(self.inp(x)))


@pytest.mark.parametrize("visible", [True, False])
def test_what_a_kernel_hides_is_measured(visible):
    torch.manual_seed(0)
    frame = read(lambda w: Kernel(w, visible), lambda model: model(torch.randn(64, 4)), (64, 128, 256, 512))
    found = row(frame, "out.weight")
    assert found.operation == ("coordcheck_tests::linear" if visible else "unseen")
    assert found.reason
    assert math.isnan(found.factor_before_exponent)
    assert found.measured_low < -1 < found.measured_high
    assert found.measured == pytest.approx(-1, abs=0.1)
    assert found.measured_high - found.measured_low < 0.5
    assert frame[frame.parameter != "out.weight"].measured.isna().all()


def test_a_failing_observation_leaves_the_model_alone(monkeypatch):
    def fail(*args):
        raise KeyError("planted")

    model = Net(8)
    expected = model(torch.ones(2, 4))
    monkeypatch.setitem(operations._PRODUCTS, "linear", fail)
    results = []
    uses = trace_uses(model, lambda: results.append(model(torch.ones(2, 4))))
    torch.testing.assert_close(results[0], expected)
    assert {use.reason for use in uses if use.parameter.endswith("weight")} == {
        "KeyError while reading linear: 'planted'"
    }


def test_nothing_is_left_behind():
    model = Net(8, before=lambda x, w: x.nothing)
    with pytest.raises(AttributeError, match="nothing"):
        trace_uses(model, lambda: model(torch.ones(2, 4)))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.overrides._get_current_function_mode() is None


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    aux: dict


class Fancy(Net):
    """Takes a dict, returns a dataclass, branches on data, writes into a buffer of its own."""

    def forward(self, x, *, more):
        h = torch.relu(self.inp(more["x"])) / self.width
        if h.sum() > -1e9:
            out = torch.zeros_like(h)
            out[:, :] = h
        return Output(self.out(h), {"h": self.hid(out)})


def wrapped(kind):
    def build(width):
        model = Net(width, before=SCALE_ONLY["divided"])
        if kind == "hook":
            model.out.register_forward_hook(lambda module, args, output: output / model.width)
        return {"parallel": nn.DataParallel, "compile": lambda m: torch.compile(m, backend="eager")}.get(
            kind, lambda m: m
        )(model)

    def run(model):
        x = torch.ones(2, 4)
        if kind == "functional":
            with torch._C.DisableTorchFunction():
                copies = {name: p.detach().clone() for name, p in model.named_parameters()}
            return torch.func.functional_call(model, copies, (x,))
        return torch.func.vmap(model)(x) if kind == "vmap" else model(x)

    return read_uses(build, run, WIDTHS)


@pytest.mark.parametrize("kind", ["plain", "parallel", "compile", "functional", "vmap", "hook"])
def test_wrappers(kind):
    frame = wrapped(kind)
    out = frame[frame.parameter.str.endswith("out.weight")].iloc[0]
    assert out.factor_before_exponent == -0.5
    assert out.factor_after_exponent == (-1 if kind == "hook" else 0)
    assert out.is_returned
    assert [use_role(use) for use in frame.itertuples() if use.parameter.endswith("weight")] == [
        "input",
        "hidden",
        "readout",
    ]


def test_what_is_written_into_a_buffer_is_followed():
    class Writes(nn.Linear):
        def forward(self, x):
            out = torch.zeros(2, self.out_features)
            out[:, :] = super().forward(x) / self.out_features
            return out

    frame = read(lambda width: Writes(4, width))
    assert factors(frame, "weight") == (0, -1)
    assert row(frame, "weight").is_returned


def test_dict_in_dataclass_out():
    frame = read(Fancy, lambda model: model(None, more={"x": torch.ones(2, 4)}))
    assert factors(frame, "out.weight") == (-1, 0)
    assert factors(frame, "inp.weight") == (0, 0), "relu ends it"
    assert factors(frame, "hid.weight") == (0, 0), "what is written into a buffer joins it, as in a sum"
    assert row(frame, "out.weight").is_returned
    assert row(frame, "hid.weight").is_returned


def test_checkpointing_and_loss_change_nothing():
    def run(model):
        y = torch.utils.checkpoint.checkpoint(model, torch.ones(2, 4), use_reentrant=False)
        return F.cross_entropy(y, torch.tensor([0, 1]))

    frame = read(lambda width: Net(width, before=SCALE_ONLY["divided"]), run)
    assert factors(frame, "out.weight") == (-0.5, 0)
    assert row(frame, "out.weight").is_returned


def test_repeated_and_unused_parameters():
    class Loop(nn.Module):
        def __init__(self, w):
            super().__init__()
            self.inp, self.cell, self.spare = nn.Linear(4, w), nn.Linear(w, w), nn.Linear(w, w)

        def forward(self, x):
            h = self.inp(x)
            for _ in range(h.shape[-1] // 32):  # more often where it is wider
                h = torch.tanh(self.cell(h))
            return h

    frame = read(Loop)
    assert (frame.parameter == "cell.weight").sum() == 1
    spare = row(frame, "spare.weight")
    assert (spare.operation, spare.reason) == ("unused", "its module did not run")
    assert roles_from_uses(frame)["spare.weight"] == ()


def test_a_shared_layer_is_read_and_returned():
    class Shared(nn.Module):
        def __init__(self, w):
            super().__init__()
            self.inp, self.cell = nn.Linear(4, w), nn.Linear(w, w)

        def forward(self, x):
            return self.cell(torch.relu(self.cell(torch.relu(self.inp(x)))))

    cell = row(read(Shared), "cell.weight")
    assert (cell.is_returned, cell.feeds) == (True, True)


def test_a_token_that_was_chosen_does_not_make_its_logits_a_projection():
    class Greedy(nn.Module):
        def __init__(self, w):
            super().__init__()
            self.emb, self.out = nn.Embedding(7, w), nn.Linear(w, 7, bias=False)

        def forward(self, tokens):
            logits = self.out(self.emb(tokens))
            return logits, self.out(self.emb(logits.argmax(-1)))

    assert roles_from_uses(read(Greedy, lambda model: model(torch.tensor([1, 2])))) == {
        "emb.weight": ("input",),
        "out.weight": ("readout",),
    }


def test_parts_of_a_model_and_a_module_that_fails():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("planted")

    class Tries(Net):
        def __init__(self, width):
            super().__init__(width)
            self.broken = Broken()
            self.raw = nn.Parameter(torch.zeros(width, 3))

        def half(self, x):
            try:
                return self.broken(x)
            except RuntimeError:
                return torch.relu(self.inp(x)) @ self.raw

        def forward(self, x):
            return self.half(x)

    assert row(read(Tries), "raw").module == ""
    frame = read(Tries, lambda model: model.half(torch.ones(2, 4)))
    assert (row(frame, "raw").module, row(frame, "raw").is_returned) == ("", True)


def test_a_table_of_one_width_is_refused():
    with pytest.raises(ValueError, match=r"at least 2 distinct values.*got \[8, 8\].*widths=\[64, 128, 256\]"):
        read(Net, widths=[8, 8])


# our own


def test_default_gpt_on_meta_and_in_memory_is_the_same():
    cell = make_cell(load([]))
    tokens = torch.zeros(2, 16, dtype=torch.long)
    on_meta = read_uses(cell.runnable_on_meta, lambda model: model(tokens.to(META)), (64, 128, 256))
    real = read_uses(lambda w: cell.build(w, 0, torch.device("cpu")), lambda model: model(tokens), (64, 128, 256))
    assert on_meta.drop(columns=["dim_in", "dim_out"]).equals(real.drop(columns=["dim_in", "dim_out"]))
    assert {name: found for name, found in roles_from_uses(real).items() if name.endswith(("wpe.weight", "q.weight"))}[
        "wpe.weight"
    ] == ("input",)
    assert factors(real, "lm_head.weight") == (-1, 0)
    expected = {name: (role,) for name, role in cell.roles.items()}
    assert roles_from_uses(real) == expected


@pytest.mark.parametrize("fused", [True, False])
def test_what_scales_queries_belongs_to_their_product_with_the_keys(fused):
    class Attention(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))

        def forward(self, x):
            q, k, v = self.q(x) * x.shape[-1] ** -0.5, self.k(x), self.v(x)
            if fused:
                return self.out(F.scaled_dot_product_attention(q, k, v, scale=1.0))
            return self.out((q @ k.mT).softmax(-1) @ v)

    frame = read_uses(Attention, lambda model: model(torch.randn(2, 4, model.q.in_features)), [16, 32, 64])
    assert frame["factor_after_exponent"].tolist() == [0.0] * 4
