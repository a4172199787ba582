import copy
import inspect

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coordcheck.models import hf
from coordcheck.models.layers import materialize
from coordcheck.observe.writes import WriteTracer


def test_a_layer_writes_itself_once():
    with WriteTracer() as tracer:
        layer = nn.Linear(4, 8)
    (write,) = tracer.history(layer.weight).writes
    assert write.rule.startswith("Linear.reset_parameters linear.py:")
    assert write.effect == "full" and write.operations == 1


def set_normal(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.5)


@pytest.mark.parametrize(
    "init",
    [
        set_normal,
        lambda module: module.weight.data.normal_(),
        lambda module: module.weight.data.copy_(torch.randn(8, 4)),
        lambda module: module.weight.data.__setitem__(slice(None), torch.randn(8, 4)),
        lambda module: nn.init.orthogonal_(module.weight),
        lambda module: nn.init.trunc_normal_(module.weight, std=0.02),
        lambda module: torch.normal(0.0, 1.0, (8, 4), out=module.weight.data),
    ],
    ids=["init", "data", "copy_", "setitem", "orthogonal", "truncated", "out"],
)
def test_every_way_to_write_is_one_full_write_of_who_ordered_it(init):
    with WriteTracer() as tracer:
        layer = nn.Linear(4, 8)
        init(layer)
    default, ours = tracer.history(layer.weight).full_writes
    assert default.code.co_qualname == "Linear.reset_parameters"
    assert ours.code is init.__code__
    assert not ours.by_default({layer})


def test_a_call_that_overwrites_its_own_beginning_is_one_write():
    def truncated_(tensor):
        tensor.normal_()
        return tensor.copy_(tensor.clamp(-2, 2))

    def once(weight):
        truncated_(weight)

    def thrice(weight):
        for _ in range(3):
            truncated_(weight)

    with WriteTracer() as tracer:
        first, second = (nn.Parameter(torch.empty(6), requires_grad=False) for _ in range(2))
        once(first)
        thrice(second)
    assert [(w.effect, w.operations) for w in tracer.history(first).writes] == [("full", 2)]
    assert [(w.effect, w.operations) for w in tracer.history(second).writes] == [("full", 2)] * 3


def test_the_size_after_each_write_is_kept():
    with WriteTracer() as tracer:
        layer = nn.Linear(300, 300)
        nn.init.constant_(layer.weight, 3.0)
        nn.init.zeros_(layer.weight)
    sizes = [write.size for write in tracer.history(layer.weight).writes]
    assert sizes[0] == pytest.approx((1 / 3 / 300) ** 0.5, rel=0.02)  # uniform within +- 300^-1/2
    assert sizes[1] == pytest.approx(3.0)


def test_a_padding_row_is_a_partial_write():
    with WriteTracer() as tracer:
        embedding = nn.Embedding(10, 4, padding_idx=0)
    history = tracer.history(embedding.weight)
    assert [write.effect for write in history.writes] == ["full", "in part"]
    assert history.unwritten(embedding.weight) == 0


def test_slices_that_cover_everything_are_one_write():
    weight = nn.Parameter(torch.empty(6, 2))
    with WriteTracer() as tracer:
        weight = nn.Parameter(torch.empty(6, 2))
        for part in weight.data.split(2):
            part.normal_()
    history = tracer.history(weight)
    assert [(write.effect, write.operations) for write in history.writes] == [("full", 3)]
    assert history.unwritten(weight) == 0


def test_what_slices_leave_out_is_unwritten():
    with WriteTracer() as tracer:
        weight = nn.Parameter(torch.empty(6, 2))
        nn.init.normal_(weight.data[1:5:2])
    assert tracer.history(weight).unwritten(weight) == 8


@pytest.mark.parametrize("make", [torch.empty, torch.Tensor], ids=["empty", "legacy constructor"])
def test_nothing_wrote_it(make):
    with WriteTracer() as tracer:
        weight = nn.Parameter(make(3, 4))
    assert tracer.history(weight).writes == []
    assert tracer.history(weight).unwritten(weight) == 12


@pytest.mark.parametrize(
    "make",
    [lambda: torch.zeros(3), lambda: torch.randn(3) * 0.02, lambda: torch.tensor([1.0, 2.0, 3.0])],
    ids=["zeros", "arithmetic", "numbers"],
)
def test_a_tensor_that_is_made_with_values_is_written(make):
    with WriteTracer() as tracer:
        weight = nn.Parameter(make())
    (write,) = tracer.history(weight).full_writes
    assert write.code is make.__code__


def test_memory_from_elsewhere_counts_as_written():
    before = torch.empty(3)
    with WriteTracer() as tracer:
        weight = nn.Parameter(before)
        other = nn.Parameter(torch.from_numpy(np.ones(3)))
    assert tracer.history(weight).unwritten(weight) == 0
    assert tracer.history(other).unwritten(other) == 0


def test_meta_then_to_empty_is_unwritten_until_it_is_written():
    with WriteTracer() as tracer:
        layer = nn.Linear(4, 8, device="meta").to_empty(device="cpu")
        nn.init.ones_(layer.weight)
    assert tracer.history(layer.weight).unwritten(layer.weight) == 0
    assert len(tracer.history(layer.weight).writes) == 1
    assert tracer.history(layer.bias).unwritten(layer.bias) == 8


def test_materialize_leaves_everything_to_be_written():
    with WriteTracer() as tracer:
        layer = materialize(nn.Linear(4, 8, device="meta"), torch.device("cpu"))
    assert tracer.history(layer.weight).unwritten(layer.weight) == 32


def test_copies_go_on_from_their_source():
    with WriteTracer() as tracer:
        layer = nn.Linear(4, 8)
        twin = copy.deepcopy(layer).to(torch.bfloat16)
    (write,) = tracer.history(twin.weight).writes
    assert write.code.co_qualname == "Linear.reset_parameters"


def test_tied_parameters_have_one_history():
    with WriteTracer() as tracer:
        embedding, readout = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)
        readout.weight = embedding.weight
    assert tracer.history(readout.weight) is tracer.history(embedding.weight)


def test_a_rescaling_is_a_change_and_no_write():
    def rescale(weight):
        weight.data.mul_(2.0)

    with WriteTracer() as tracer:
        layer = nn.Linear(4, 8)
        rescale(layer.weight)
    writes = tracer.history(layer.weight).writes
    assert [write.effect for write in writes] == ["full", "changed"]
    assert writes[1].code is rescale.__code__


def test_a_module_that_writes_its_own_parameter_does_so_by_default():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.empty(3))
            nn.init.normal_(self.weight)

    with WriteTracer() as tracer:
        own = Own()
    (write,) = tracer.history(own.weight).writes
    assert write.by_default({own}) and not write.by_default({nn.Identity()})


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("convert", [Tensor.to_sparse, Tensor.to_sparse_csr])
def test_sparse_tensors_are_let_pass(convert):
    with WriteTracer() as tracer:
        layer = nn.Linear(4, 8)
        layer.register_buffer("mask", convert(torch.eye(4)))
    assert len(tracer.history(layer.weight).writes) == 1


def test_views_of_one_buffer_are_counted_apart():
    with WriteTracer() as tracer:
        buffer = torch.empty(2, 6)
        written, forgotten = nn.Parameter(buffer[0]), nn.Parameter(buffer[1])
        nn.init.normal_(written)
    assert tracer.history(written).unwritten(written) == 0
    assert tracer.history(forgotten).unwritten(forgotten) == 6


def test_values_are_those_without_a_tracer():
    torch.manual_seed(0)
    plain = nn.Linear(4, 8)
    torch.manual_seed(0)
    with WriteTracer():
        traced = nn.Linear(4, 8)
    assert torch.equal(plain.weight, traced.weight)


ONCE = [  # torch's own layer, then transformers' rule: invocations
    ("OPT", "model.decoder.layers.0.fc1.weight", ["Linear.reset_parameters", "PreTrainedModel._init_weights"]),
    ("OPT", "model.decoder.layers.0.fc1.bias", ["Linear.reset_parameters", "PreTrainedModel._init_weights"]),
    ("OPT", "model.decoder.final_layer_norm.weight", ["LayerNorm.reset_parameters", "PreTrainedModel._init_weights"]),
    (
        "OPT",
        "model.decoder.embed_tokens.weight",
        ["Embedding.reset_parameters", "Embedding._fill_padding_idx_with_zero", "PreTrainedModel._init_weights"],
    ),
    # drawn again with a std that depends on the number of layers, after the rule for every Conv1D
    ("GPT2", "transformer.h.0.mlp.c_fc.weight", ["Conv1D.__init__", "GPT2PreTrainedModel._init_weights"]),
    (
        "GPT2",
        "transformer.h.0.mlp.c_proj.weight",
        ["Conv1D.__init__", *["GPT2PreTrainedModel._init_weights"] * 2],
    ),
    # T5's own rule begins with that of all models
    (
        "T5",
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        ["Linear.reset_parameters", "PreTrainedModel._init_weights", "T5PreTrainedModel._init_weights"],
    ),
]


@pytest.fixture(scope="module")
def traced():
    """Models of transformers by name, and who wrote them."""
    transformers = pytest.importorskip("transformers", reason="needs pip install coordcheck[hf]")
    if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23):
        pytest.skip("who writes what is stated for transformers 5.23 and later")
    built = {}
    for name, model_type, cls in (
        ("OPT", "opt", "OPTForCausalLM"),
        ("GPT2", "gpt2", "GPT2LMHeadModel"),
        ("T5", "t5", "T5ForConditionalGeneration"),
    ):
        config = hf.scaled_config(model_type, 64, 4, depth=2, vocab_size=96, context=16)
        with WriteTracer() as tracer:
            model = getattr(transformers, cls)(config)
        built[name] = model, tracer
    return built


@pytest.mark.parametrize(("name", "parameter", "rules"), ONCE)
def test_who_writes_a_model_of_transformers(traced, name, parameter, rules):
    """huggingface/transformers#21431: since 4.27 every rule runs once."""
    model, tracer = traced[name]
    writes = tracer.history(model.get_parameter(parameter)).writes
    assert [write.code.co_qualname for write in writes] == rules
    if "embed_tokens" in parameter:  # a normal distribution and then a row of zeros, twice
        assert [(write.effect, write.operations) for write in writes] == [("full", 1), ("in part", 1), ("full", 2)]
    else:
        assert all(write.operations == 1 for write in writes)


def test_a_rule_is_named_by_its_function_file_and_line(traced):
    model, tracer = traced["T5"]
    *_, last = tracer.history(model.encoder.block[0].layer[0].SelfAttention.q.weight).writes
    lines, first = inspect.getsourcelines(type(model)._init_weights)
    (line,) = (number for number, text in enumerate(lines, first) if "module.q.weight" in text)
    assert last.rule == f"T5PreTrainedModel._init_weights modeling_t5.py:{line}"
