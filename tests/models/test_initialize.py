"""Every parameter is written exactly once, with the std that the table's source gives."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import tiny_cell
from coordcheck.models.initialize import Rule, Std, initialize

CPU = torch.device("cpu")


class Writes(TorchDispatchMode):
    """Counts in-place writes by storage, whoever orders them."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.is_mutable and isinstance(args[0], torch.Tensor) and args[0].device.type != "meta":
            self.count[args[0].untyped_storage().data_ptr()] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("readout", ["zero", "constant", "fan_in"])
@pytest.mark.parametrize("embedding", ["untied", "tied"])
@pytest.mark.parametrize("parametrization", ["mup", "sp"])
def test_every_parameter_is_written_exactly_once(parametrization, embedding, readout):
    cell = tiny_cell(f"parametrization={parametrization}", f"embedding={embedding}", f"readout={readout}")
    with Writes() as writes:
        model = cell.build(128, 0, CPU)
    assert {name: writes.count[p.data_ptr()] for name, p in model.named_parameters()} == dict.fromkeys(
        (name for name, _ in model.named_parameters()), 1
    )


def test_the_released_shared_readout_writes_twice_and_the_counter_sees_it():
    cell = tiny_cell("embedding=tied_rescaled", "readout=constant")
    with Writes() as writes:
        model = cell.build(128, 0, CPU)
    assert writes.count[model.wte.weight.data_ptr()] == 2


@pytest.mark.parametrize("parametrization", ["mup", "sp"])
@pytest.mark.parametrize(("readout", "std"), [("zero", 0.0), ("constant", 64**-0.5), ("fan_in", 256**-0.5)])
def test_stds_at_four_times_base_width(parametrization, readout, std):
    model = tiny_cell(f"parametrization={parametrization}", f"readout={readout}", "model.bias=true").build(256, 0, CPU)
    block = model.blocks[0]
    expected = {
        model.wte.weight: 1.0,
        model.wpe.weight: 1.0,
        block.attn.q.weight: 256**-0.5,
        block.mlp.fc.weight: 256**-0.5,
        block.mlp.proj.weight: 1024**-0.5,
        model.lm_head.weight: std,
        block.ln_1.weight: 0.0,
        block.mlp.fc.bias: 0.0,
    }
    for parameter, value in expected.items():
        assert parameter.std().item() == pytest.approx(value, rel=0.03)
    assert (block.ln_1.weight == 1).all()
    assert (block.mlp.fc.bias == 0).all()


def test_readout_std_is_an_option():
    model = tiny_cell("readout=constant", "readout.std=0.5").build(256, 0, CPU)
    assert model.lm_head.weight.std().item() == pytest.approx(0.5, rel=0.03)


def test_it_returns_what_it_touched():
    model = nn.Sequential(nn.Linear(4, 4))
    table = [Rule("hidden", "weight$", Std(1.0, -0.5)), Rule("vector", "bias$")]
    touched = initialize(model, {"0.weight": "hidden", "0.bias": "vector"}, table)
    assert touched == {"0.weight": table[0], "0.bias": table[1]}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([Rule("hidden", "weight$")], r"0 match '0.bias' of role 'vector'.*Rule\('vector', '\^0\\\\.bias\$'"),
        ([Rule("hidden", "weight"), Rule("hidden", "0"), Rule("vector", "")], "2 match '0.weight'"),
    ],
)
def test_no_rule_or_two_rules_raise_before_anything_is_written(table, message):
    model = nn.Sequential(nn.Linear(4, 4))
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match=message):
        initialize(model, {"0.weight": "hidden", "0.bias": "vector"}, table)
    assert model[0].weight.equal(before)


def test_the_seed_decides_the_weights():
    first, again, other = (tiny_cell("readout=constant").build(64, seed, CPU).state_dict() for seed in (0, 0, 1))
    assert all(first[name].equal(again[name]) for name in first)
    assert not first["wte.weight"].equal(other["wte.weight"])
