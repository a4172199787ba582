"""T5's output layer: the sizes that google-research/t5x discussion 1477 saw, from Hugging Face's T5 and from ours.

Oracle: after the last RMS norm every entry has mean square 1, so a logit of a readout of std s is normal with std
s sqrt(d), the same for every token. Logits z that are independent of the target cost E[logsumexp z] - E[z].
"""

import math

import numpy as np
import pytest
import torch
import transformers

from conftest import plan_of
from coordcheck.check import check_config
from coordcheck.config.load import load
from coordcheck.models import hf
from coordcheck.models.families import make_cell
from coordcheck.run.train import run

VOCABULARY = 32128
SMALL = ["experiment=t5_lm_head", "widths=[64,128,256]", "seeds=2", "control=false"]
pytestmark = pytest.mark.slow
STDS = {"1": lambda d: 1.0, "0.05": lambda d: 0.05, "d^-1/2": lambda d: d**-0.5}


def loss_of_normal_logits(std: float) -> float:
    """E[log of the sum over V of exp(std z)], z normal: the mean of 100 draws."""
    z = np.random.default_rng(0).standard_normal((100, VOCABULARY))
    return float(np.log(np.exp(std * z).sum(axis=1)).mean())


@pytest.fixture(scope="module")
def theirs():
    """Initial loss of Hugging Face's T5 with an untied head, by its std and the width."""
    losses = {}
    tokens = torch.randint(0, VOCABULARY, (4, 128), generator=torch.Generator().manual_seed(0))
    for width in (64, 128, 256):
        config = hf.scaled_config("t5", width, width // 64, depth=2, vocab_size=VOCABULARY, context=64, tied=False)
        model = hf.build(config, seed=0)
        batch = hf.make_batch(config, tokens[:, :64], tokens[:, 64:])
        own = model.lm_head.weight.detach().clone()
        assert own.std().item() == pytest.approx(1.0, rel=0.01)
        for name, std in STDS.items():
            with torch.no_grad():
                model.lm_head.weight.copy_(own * std(width))
                losses[name, width] = model(**batch).loss.item()
    return losses


@pytest.mark.parametrize(("width", "in_4_26"), [(64, 32.7), (128, 46.9), (256, 66.0)])
def test_hugging_faces_head_starts_at_four_times_the_root_of_the_width(theirs, width, in_4_26):
    assert theirs["1", width] == pytest.approx(in_4_26, rel=0.05)  # as measured with 6 + 6 blocks
    assert theirs["1", width] == pytest.approx(loss_of_normal_logits(width**0.5), rel=0.05)


@pytest.mark.parametrize("name", ["0.05", "d^-1/2"])
def test_other_stds_start_near_chance_and_only_widths_tell_them_apart(theirs, name):
    for width in (64, 128, 256):
        expected = loss_of_normal_logits(STDS[name](width) * width**0.5)
        assert theirs[name, width] == pytest.approx(expected, abs=0.3)
        assert math.log(VOCABULARY) < theirs[name, width] < math.log(VOCABULARY) + 1


def test_only_the_attribute_unties_and_stops_the_scaling():
    """The argument alone, `T5Config(tie_word_embeddings=False)`, gives a tied head from transformers 5.1 on."""
    sizes = {"d_model": 64, "d_ff": 64, "num_layers": 1, "vocab_size": 96}
    by_argument = transformers.T5Config(**sizes, tie_word_embeddings=False)
    ours = hf.scaled_config("t5", 64, 1, depth=1, vocab_size=96, context=16, tied=False)
    assert by_argument.tie_word_embeddings and not ours.tie_word_embeddings
    model = hf.build(ours)
    assert model.lm_head.weight is not model.shared.weight


@pytest.fixture(scope="module", params=["constant-1", "constant-0.05", "fan_in-1"])
def cell(request, tmp_path_factory):
    """The readout of a cell of the experiment, and its check."""
    readout, std = request.param.split("-")
    runs = f"runs={tmp_path_factory.mktemp('runs')}"
    return readout, float(std), check_config(load([*SMALL, f"readout={readout}", f"readout.std={std}", runs]))


def test_the_experiment_finds_a_std_that_does_not_shrink(cell):
    readout, std, check = cell
    logits = check.slopes.query("module == 'lm_head' and kind == 'activation' and step == 0").iloc[0]
    assert logits["slope"] == pytest.approx(0.5 if readout == "constant" else 0.0, abs=0.02)
    assert logits["verdict"] == ("explodes" if readout == "constant" else "pass")
    assert (check.verdict == "fail") == (readout == "constant")
    causes = {finding.module: finding.cause for finding in check.findings if finding.fault}
    assert set(causes) == ({"lm_head"} if readout == "constant" else set())
    if readout == "constant":
        said = "where ln V = 10.4: the readout's std does not shrink with width" in causes["lm_head"]
        assert said == (std == 1)


def test_the_experiment_starts_at_the_loss_of_normal_logits(cell):
    readout, std, check = cell
    loss = check.records.query("module == '(loss)' and step == 0").groupby("width")["l1"].mean()
    for width, value in loss.items():
        of_logits = std * (width**0.5 if readout == "constant" else 1.0)
        assert value == pytest.approx(loss_of_normal_logits(of_logits), rel=0.05)


def test_a_tied_head_of_std_1_keeps_its_size():
    """Hugging Face and Mesh TensorFlow multiply what it reads by d^-1/2."""
    config = load([*SMALL, "embedding=tied", "readout=constant", "readout.std=1", "steps=1"])
    tied, size = make_cell(config), {}
    for width in (64, 256):
        plan = plan_of(config)
        model = tied.build(width, 0, plan.device)
        records = run(
            model,
            tied.optimizer(model, width),
            tied.batch(0, plan.device),
            tied.loss,
            plan,
            width=width,
            seed=0,
            roles=tied.roles,
        )
        size[width] = records.query("module == 'lm_head' and kind == 'activation'")["rms"].item()
    assert math.log2(size[256] / size[64]) / 2 == pytest.approx(0.0, abs=0.15)
