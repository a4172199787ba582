"""nanoGPT's weight tying: what decays, what it saves, what ``torch.compile`` makes of it, and what scales with width.

That the logits are those of Hugging Face is tested in ``test_parity.py``.
"""

import pytest
import torch
from torch import nn

from conftest import TINY
from coordcheck.check import check_config, count_parameters
from coordcheck.config.load import load
from coordcheck.models.families import make_cell
from coordcheck.report.markdown import check_markdown

CPU = torch.device("cpu")
EXPERIMENT = ["experiment=gpt2_tied", *TINY, "model.head_size=32"]
EMBEDDINGS = ["untied", "tied"]


def decayed_since_may_2023(model: nn.Module) -> set[int]:
    """karpathy/nanoGPT model.py at 3adf61e1: what has two dimensions or more."""
    return {id(parameter) for parameter in model.parameters() if parameter.dim() >= 2}


def decayed_in_january_2023(model: nn.Module) -> set[int]:
    """The same file at 7c828855: weights of linear layers, but not one that is the embedding's too.

    Whatever is called bias, gains of norms and weights of embeddings do not decay.
    """
    decayed, kept = set(), set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            stays = name.endswith("bias") or isinstance(module, nn.LayerNorm | nn.Embedding)
            (kept if stays else decayed).add(id(parameter))
    return decayed - kept


@pytest.mark.parametrize("embedding", EMBEDDINGS)
@pytest.mark.parametrize("parametrization", ["sp", "mup"])
@pytest.mark.parametrize(
    ("decay_embedding", "rule"), [("true", decayed_since_may_2023), ("false", decayed_in_january_2023)]
)
def test_what_decays_is_what_nanogpt_decays(embedding, parametrization, decay_embedding, rule):
    decay = f"optimizer.decay_embedding={decay_embedding}"
    cell = make_cell(load([*EXPERIMENT, f"embedding={embedding}", f"parametrization={parametrization}", decay]))
    model = cell.build(128, 0, CPU)
    groups = cell.optimizer(model, 128).param_groups
    assert {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]} == rule(model)
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_the_two_rules_differ_in_the_embeddings_alone(embedding):
    model = make_cell(load([*EXPERIMENT, f"embedding={embedding}"])).build(64, 0, CPU)
    changed = decayed_since_may_2023(model) - decayed_in_january_2023(model)
    assert {name for name, p in model.named_parameters() if id(p) in changed} == {"wte.weight", "wpe.weight"}


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_a_compiled_model_has_the_same_gradients_and_warns_of_nothing(embedding):
    cell = make_cell(load([*EXPERIMENT, f"embedding={embedding}"]))
    batch = cell.batch(0, CPU)
    gradients = []
    # tied weights concern the tracing, which this backend does without the C++ compiler that inductor needs
    for wrap in (lambda model: model, lambda model: torch.compile(model, backend="aot_eager")):
        model = cell.build(64, 0, CPU)
        cell.loss(wrap(model), batch).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    plain, compiled = gradients
    assert plain.keys() == compiled.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, msg=name)
    assert plain["wte.weight"].abs().sum() > 0


def test_gpt2_has_124439808_parameters_and_tying_saves_the_readout():
    small = ["experiment=gpt2_tied_full", "data.vocab_size=50257"]
    counts = {
        embedding: count_parameters(make_cell(load([*small, f"embedding={embedding}"])), [768, 1600])
        for embedding in EMBEDDINGS
    }
    assert counts["tied"]["768"] == 124_439_808  # of openai-community/gpt2
    assert {width: counts["untied"][width] - n for width, n in counts["tied"].items()} == {
        "768": 50257 * 768,
        "1600": 50257 * 1600,
    }


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The experiment at reduced size, by parametrization and embedding."""
    overrides = [*EXPERIMENT, "control=false", f"runs={tmp_path_factory.mktemp('runs')}"]
    return {
        (parametrization, embedding): check_config(
            load([*overrides, f"parametrization={parametrization}", f"embedding={embedding}"])
        )
        for parametrization in ("sp", "mup")
        for embedding in EMBEDDINGS
    }


def slopes_at_initialization(check):
    curves = check.slopes[(check.slopes["kind"] == "activation") & (check.slopes["step"] == 0)]
    return curves.set_index("module")["slope"]


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_one_std_for_all_widths_grows_from_the_first_projection_on(cells, embedding):
    check = cells["sp", embedding]
    assert check.verdict == "fail"
    assert (check.findings[0].module, check.findings[0].fault) == ("blocks.0.attn.q", "init")
    slopes = slopes_at_initialization(check)
    assert slopes["blocks.0.attn.q"] == pytest.approx(0.5, abs=0.05)  # width terms of one size: 0.02 sqrt(width)
    assert slopes["blocks.0.attn[attention_logits]"] == pytest.approx(1.0, abs=0.1)  # q and k
    assert slopes["lm_head"] == pytest.approx(0.5, abs=0.05)
    assert slopes["wte"] == pytest.approx(0.0, abs=0.03)


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_in_mup_the_same_initialization_keeps_its_sizes_tied_or_not(cells, embedding):
    check = cells["mup", embedding]
    assert check.verdict != "fail"
    slopes = slopes_at_initialization(check)
    assert slopes["lm_head"] == pytest.approx(-0.5, abs=0.07)
    hidden = slopes[check.slopes.set_index("module")["role"].groupby(level=0).first() == "hidden"]
    assert hidden.abs().max() < 0.12


def test_the_report_says_how_many_parameters_there_are(cells):
    tied, untied = (cells["sp", embedding] for embedding in ("tied", "untied"))
    assert untied.config["parameters"]["64"] - tied.config["parameters"]["64"] == 256 * 64
    # two embeddings, and per block 12 width^2 of weights, 9 width of biases and 4 width of norms
    count = 256 * 64 + 16 * 64 + 2 * (12 * 64**2 + 13 * 64) + 2 * 64
    assert tied.config["parameters"]["64"] == count
    assert f"Parameters: {count / 1e6:.3g} M (width 64) to 1.65 M (width 256)." in check_markdown(tied)
