"""Roles by hand from shapes, and mup's numbers on our models by hand from its paper."""

import mup
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import coordcheck
from conftest import tiny_cell
from coordcheck.observe.roles import attached_roles, infshapes, roles, shapes


class Conv1D(nn.Module):
    """Hugging Face's layer: its weight is (fan_in, fan_out)."""

    def __init__(self, fan_out, fan_in):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(fan_in, fan_out))


def zoo(width):
    return nn.ModuleDict(
        {
            "embedding": nn.Embedding(100, width),
            "linear_in": nn.Linear(10, width),
            "hidden": nn.Linear(width, 4 * width),
            "norm": nn.LayerNorm(width),
            "conv1d_in": Conv1D(width, 10),
            "conv1d_out": Conv1D(10, width),
            "conv2d_in": nn.Conv2d(3, width, 2),
            "transposed_in": nn.ConvTranspose2d(3, width, 2),
            "transposed_out": nn.ConvTranspose1d(width, 3, 2),
            "readout": nn.Linear(width, 10),
            "fixed": nn.Linear(10, 10),
        }
    )


def test_roles_follow_from_what_grows():
    narrow = zoo(8)
    assert roles(narrow, infshapes(shapes(narrow), shapes(zoo(16)))) == {
        "embedding.weight": "input",
        "linear_in.weight": "input",
        "linear_in.bias": "vector",
        "hidden.weight": "hidden",
        "hidden.bias": "vector",
        "norm.weight": "vector",
        "norm.bias": "vector",
        "conv1d_in.weight": "input",
        "conv1d_out.weight": "readout",
        "conv2d_in.weight": "input",
        "conv2d_in.bias": "vector",
        "transposed_in.weight": "input",
        "transposed_in.bias": "vector",
        "transposed_out.weight": "readout",
        "transposed_out.bias": "fixed",
        "readout.weight": "readout",
        "readout.bias": "fixed",
        "fixed.weight": "fixed",
        "fixed.bias": "fixed",
    }


def test_a_tied_weight_has_one_role_per_place():
    cell = tiny_cell("embedding=tied")
    assert cell.roles["wte.weight"] == "input"
    assert cell.roles["lm_head.weight"] == "readout"


def test_roles_are_read_from_what_mup_attached():
    cell = tiny_cell()
    model = cell.build(128, 0, torch.device("cpu"))
    assert attached_roles(dict(model.named_modules())) == coordcheck.roles(model) == cell.roles
    assert attached_roles(dict(zoo(8).named_modules())) == {}


def test_roles_for_a_recorder_are_those_of_a_build_at_two_widths():
    def build(width):
        model = nn.Sequential(nn.Embedding(7, width), nn.Linear(width, width), nn.Linear(width, 7, bias=False))
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    expected = {"0.weight": "input", "1.weight": "hidden", "1.bias": "vector", "2.weight": "readout"}
    assert coordcheck.roles(build) == coordcheck.roles(build, widths=(32, 16)) == expected
    with pytest.raises(ValueError, match=r"Sequential has a parameter without. For example coordcheck.roles\(build\)"):
        coordcheck.roles(build(8)[0])
    with pytest.raises(ValueError, match=r"`build` is a function from width to a model; got 'gpt'. For example"):
        coordcheck.roles("gpt")
    with pytest.raises(ValueError, match=r"`widths` are two that `build` can take; got \(8, 8\). For example"):
        coordcheck.roles(build, widths=(8, 8))


def test_names_that_differ_between_widths_are_named():
    deeper = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 16))
    with pytest.raises(ValueError, match=r"same parameter names.*1.bias.*1.weight"):
        infshapes(shapes(nn.Sequential(nn.Linear(8, 8))), shapes(deeper))


def test_a_model_that_ignores_the_width_is_refused():
    with pytest.raises(ValueError, match="no parameter's shape changes with width"):
        infshapes(shapes(nn.Linear(8, 8)), shapes(nn.Linear(8, 8)))


def test_the_mup_package_is_applied():
    model = tiny_cell().build(256, 0, torch.device("cpu"))
    assert isinstance(model.lm_head, mup.MuReadout)
    assert model.lm_head.width_mult() == 4.0
    assert model.blocks[0].mlp.fc.weight.infshape.ninf() == 2
    assert model.wte.weight.infshape.ninf() == 1


@pytest.mark.parametrize(("embedding", "factor"), [("tied", 1.0), ("tied_rescaled", 2.0)])
def test_only_the_released_shared_readout_rescales_the_embedding(embedding, factor):
    """microsoft/mup#55: at width_mult 4 the shared tensor is multiplied by sqrt(4)."""
    model = tiny_cell(f"embedding={embedding}", "readout=constant").build(256, 0, torch.device("cpu"))
    assert model.lm_head.weight is model.wte.weight
    assert model.wte.weight.std().item() == pytest.approx(factor * 64**-0.5, rel=0.02)


@pytest.mark.parametrize(
    ("overrides", "sp", "in_mup"),
    [
        ([], 32**-0.5, 32**-0.5),
        # four heads of 64 at width 256, of 16 at base width 64: muP scales by 1/64, times 16^1/2 to agree at base
        (["model.heads=4", "model.head_size=null"], 64**-0.5, 16**0.5 / 64),
    ],
)
def test_attention_scale_by_head_size_or_by_count(overrides, sp, in_mup):
    assert tiny_cell("parametrization=sp", *overrides).attention_scale(256) == pytest.approx(sp)
    assert tiny_cell("parametrization=mup", *overrides).attention_scale(256) == pytest.approx(in_mup)


@pytest.mark.parametrize("heads", [[], ["model.heads=4", "model.head_size=null"]])
def test_all_parametrizations_are_one_model_at_base_width(heads):
    tokens = torch.arange(32).view(2, 16)
    logits = [
        tiny_cell(f"parametrization={name}", "readout=constant", *heads).build(64, 0, torch.device("cpu"))(tokens)
        for name in ("mup", "sp")
    ]
    torch.testing.assert_close(*logits, rtol=0, atol=0)


def test_the_parts_of_a_parametrized_weight_have_the_roles_of_their_layer():
    """weight_norm keeps a gain per output, (fan_out, 1), and a matrix."""

    def build(width):
        return nn.Sequential(*(weight_norm(layer) for layer in (nn.Linear(8, width), nn.Linear(width, 8))))

    narrow = build(16)
    found = roles(narrow, infshapes(shapes(narrow), shapes(build(32))))
    assert found == {
        "0.bias": "vector",
        "0.parametrizations.weight.original0": "input",
        "0.parametrizations.weight.original1": "input",
        "1.bias": "fixed",
        "1.parametrizations.weight.original0": "fixed",
        "1.parametrizations.weight.original1": "readout",
    }


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (torch.zeros(3), "`build` must return a torch.nn.Module; got Tensor"),
        (nn.LazyLinear(4), r"none before the first forward pass: \['weight', 'bias'\].*nn.Linear\(8, width\)"),
    ],
)
def test_a_model_without_shapes_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        shapes(model)
