"""The model families that a configuration can name."""

import math

import pytest
import torch

from conftest import tiny_cell
from coordcheck.config.load import load
from coordcheck.config.schema import Precision
from coordcheck.judge.loss import InitialLoss
from coordcheck.models.families import make_cell
from coordcheck.observe.recorder import Recorder
from coordcheck.run.queue import RunQueue
from coordcheck.run.train import RunPlan

CPU = torch.device("cpu")
SP = ["parametrization=sp", "gate.expect=sp", "readout=own"]
FAMILIES = {
    "gpt": [],
    "gpt with every option": [
        *("model.norm=rms", "model.feed_forward=swiglu", "model.queries_per_key=2", "model.qk_norm=true"),
        *("model.bias=true", "model.init=gpt2", "model.positions=none"),
    ],
    "t5": ["model=t5"],
    "t5 with a fixed count of heads": ["model=t5", "model.heads=2", "model.head_size=null"],
    "post_ln": ["model=post_ln", "data=scenes", *SP],
    "hf causal": ["model=hf", "model.config=llama", *SP],
    "hf encoder-decoder": ["model=hf", "model.config=t5", *SP],
}
SMALL = ["data.batch=2", "data.context=16", "widths=[64,128,256]"]


def cell_of(name: str, *overrides: str):
    return make_cell(load([*FAMILIES[name], *SMALL, *overrides]))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_and_is_the_same_for_the_same_seed(name):
    cell = cell_of(name)
    losses = []
    for seed in (0, 0, 1):
        model = cell.build(64, seed, CPU)
        optimizer = cell.optimizer(model, 64)
        loss = cell.loss(model, cell.batch(seed, CPU))
        loss.backward()
        optimizer.step()
        losses.append((float(loss.detach()), float(cell.loss(model, cell.batch(seed, CPU)).detach())))
    assert losses[0] == losses[1] != losses[2]
    assert losses[0][1] < losses[0][0]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_says_what_it_is_and_what_its_numbers_depend_on(name):
    cell = cell_of(name)
    assert cell.columns["model"].startswith(cell.config.model.name)
    assert cell.determinants["model"]["name"] == cell.config.model.name
    assert set(cell.roles.values()) >= {"hidden", "readout"}


@pytest.mark.parametrize("embedding", ["untied", "tied"])
@pytest.mark.parametrize("name", ["gpt", "gpt with every option", "t5", "t5 with a fixed count of heads"])
def test_parametrizations_agree_at_base_width_and_nowhere_else(name, embedding):
    def logits(parametrization, width):
        choice = [f"parametrization={parametrization}", f"embedding={embedding}", "readout=constant"]
        cell = cell_of(name, *choice, "data.context=8")
        model = cell.build(width, 0, CPU)
        inputs, _ = cell.batch(0, CPU)
        with torch.no_grad():
            return model(*inputs) if isinstance(inputs, tuple) else model(inputs)

    torch.testing.assert_close(logits("mup", 64), logits("sp", 64), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits("mup", 256), logits("sp", 256), rtol=1e-2, atol=1e-3)


def test_gpt2s_init_has_its_std_at_base_width_and_scales_in_mup():
    for parametrization, at_256 in (("sp", 0.02), ("mup", 0.01)):
        cell = tiny_cell("model.init=gpt2", f"parametrization={parametrization}", "model.depth=2")
        for width, std in ((64, 0.02), (256, at_256)):
            block = cell.build(width, 0, CPU).blocks[0]
            assert block.attn.q.weight.detach().std() == pytest.approx(std, rel=0.05)
            assert block.mlp.fc.weight.detach().std() == pytest.approx(std, rel=0.05)
            for end in (block.attn.proj, block.mlp.proj):
                assert end.weight.detach().std() == pytest.approx(std / 2, rel=0.05)  # two blocks: 1 / sqrt(4)


def test_t5_folds_the_scale_of_attention_into_q():
    for heads in (["model.head_size=16"], ["model.heads=4", "model.head_size=null"]):
        cell = make_cell(load(["model=t5", "parametrization=sp", *SMALL, *heads]))
        for width in (64, 256):
            size = width // cell.heads(width)
            model = cell.build(width, 0, CPU)
            assert model.encoder.blocks[0].attn.q.weight.detach().std() == pytest.approx(
                (width * size) ** -0.5, rel=0.05
            )
            assert model.encoder.blocks[0].attn.k.weight.detach().std() == pytest.approx(width**-0.5, rel=0.05)


def test_a_t5_reads_the_first_half_of_a_text_and_writes_the_second():
    cell = cell_of("t5")
    (read, written), targets = cell.batch(0, CPU)
    assert read.shape == written.shape == targets.shape == (2, 16)
    assert torch.equal(written[:, 1:], targets[:, :-1])
    longer, _ = cell._corpus.batch(0, 2, 32)
    assert torch.equal(torch.cat([read, written], dim=1), longer)


def test_queries_per_key_must_divide_the_heads():
    cell = make_cell(load(["model.queries_per_key=4", "widths=[96,128,256]"]))
    with pytest.raises(ValueError, match=r"`model.queries_per_key` must divide .* 4 does not divide 3 at width 96"):
        cell.on_meta(96)


def test_the_title_names_the_size_and_what_is_unusual():
    assert tiny_cell().columns["model"] == "gpt depth=2 head_size=32"
    assert tiny_cell("model.norm=rms").columns["model"] == "gpt depth=2 head_size=32 norm=rms"


def test_every_module_of_the_encoder_and_the_decoder_is_recorded():
    cell = cell_of("t5")
    model = cell.build(64, 0, CPU)
    with Recorder(model, width=64, roles=cell.roles) as recorder:
        cell.loss(model, cell.batch(0, CPU))
        recorder.step()
    modules = set(recorder.records()["module"])
    for part in ("encoder.blocks.1.attn[attention_logits]", "decoder.blocks.0.cross[attention_logits]", "lm_head"):
        assert part in modules


def test_a_loss_that_is_no_cross_entropy_is_not_held_against_chance():
    plan = RunPlan(1, ("activation",), None, CPU, Precision.fp32)
    chances = {}
    for name in ("gpt", "post_ln"):
        records = RunQueue(cell_of(name), plan, (64, 128, 256), (0,)).finish().records
        chances[name] = InitialLoss.of(records).chance
    assert chances["gpt"] == pytest.approx(math.log(256)) and math.isnan(chances["post_ln"])
