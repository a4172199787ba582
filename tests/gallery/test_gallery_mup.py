"""microsoft/mup#55: what the released shared readout does to an embedding, and what the experiment says of it."""

import mup
import pytest
import torch
from mup import MuSharedReadout
from torch import nn

import coordcheck
from conftest import TINY
from coordcheck.check import check_config
from coordcheck.config.load import load

BASE = 16
EXPERIMENT = ["experiment=mup_shared_readout", *TINY, "control=false", "audit=false", "resume=false"]


class FlaggedReadout(MuSharedReadout):
    """The fix that the thread proposes: a readout that says it was rescaled already."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._has_rescaled_params = True


class LeftAloneReadout(MuSharedReadout):
    """What works: a readout that lets its weight be."""

    def _rescale_parameters(self):
        pass


class Shared(nn.Module):
    """An embedding, and readouts that share its weight."""

    def __init__(self, width, *readouts):
        super().__init__()
        self.embedding = nn.Embedding(8, width)
        self.readouts = nn.ModuleList(readout(self.embedding.weight, bias=False) for readout in readouts)

    def forward(self, tokens):
        return sum(readout(self.embedding(tokens)) for readout in self.readouts)


def build(width, *readouts):
    model = Shared(width, *readouts)
    return mup.set_base_shapes(model, Shared(BASE, *readouts), delta=Shared(2 * BASE, *readouts))


def rescaled_by(width, *readouts):
    """By what `mup.set_base_shapes` multiplies the embedding."""
    torch.manual_seed(0)
    before = Shared(width, *readouts).embedding.weight
    torch.manual_seed(0)
    after = build(width, *readouts).embedding.weight
    ratio = (after / before).detach()
    assert ratio.std() < 1e-5
    return ratio.mean().item()


@pytest.mark.parametrize("width_mult", [1, 4, 16])
def test_the_embedding_is_rescaled_once_for_each_released_readout(width_mult):
    width = width_mult * BASE
    assert rescaled_by(width, MuSharedReadout) == pytest.approx(width_mult**0.5)
    assert rescaled_by(width, MuSharedReadout, MuSharedReadout) == pytest.approx(width_mult)
    assert rescaled_by(width, LeftAloneReadout) == 1.0


def test_the_fix_that_the_thread_proposes_raises():
    with pytest.raises(RuntimeError, match="`_rescale_parameters` has been called once before already"):
        build(4 * BASE, FlaggedReadout)


@pytest.mark.parametrize(
    ("readouts", "exponent"),
    [([MuSharedReadout], 0.5), ([MuSharedReadout, MuSharedReadout], 1.0), ([LeftAloneReadout], 0.0)],
    ids=["once", "twice", "never"],
)
def test_the_audit_names_who_rescaled_the_embedding(readouts, exponent):
    report = coordcheck.audit(
        lambda width: build(width, *readouts), (64, 128, 256), lambda model: mup.MuAdam(model.parameters(), lr=1e-2)
    )
    (row,) = report.parameters.to_dict("records")
    assert row["std_exponent"] == pytest.approx(exponent, abs=0.05)
    assert ("MuReadout._rescale_parameters layer.py:" in row["rules"]) == (exponent > 0)
    assert report.verdict == ("fail" if exponent else "pass")
    if exponent:
        (finding,) = [finding for finding in report.findings if finding.verdict == "init"]
        assert finding.parameter == "embedding.weight"
        assert "MuReadout._rescale_parameters" in finding.cause


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The experiment at reduced size, by embedding and readout."""
    runs = f"runs={tmp_path_factory.mktemp('runs')}"
    return {
        (embedding, readout): check_config(load([*EXPERIMENT, runs, f"embedding={embedding}", f"readout={readout}"]))
        for embedding in ("untied", "tied_rescaled", "tied")
        for readout in ("constant", "zero")
    }


def slopes_of(check, module):
    curves = check.slopes[(check.slopes["module"] == module) & (check.slopes["kind"] == "activation")]
    return curves.sort_values("step")["slope"].tolist()


def test_only_the_rescaled_embedding_fails_and_it_is_named(cells):
    assert [cell for cell, check in cells.items() if check.verdict == "fail"] == [("tied_rescaled", "constant")]
    first = cells["tied_rescaled", "constant"].findings[0]
    assert (first.module, first.kind, first.step, first.curve.verdict) == ("wte", "activation", 0, "explodes")


def test_the_rescaled_embedding_grows_like_the_root_of_the_width_and_the_last_norm_hides_it(cells):
    rescaled = cells["tied_rescaled", "constant"]
    assert slopes_of(rescaled, "wte") == pytest.approx([0.5] * 4, abs=0.03)
    assert min(slopes_of(rescaled, "blocks.1")) > 0.1
    assert slopes_of(rescaled, "ln_f") == pytest.approx([0.0] * 4, abs=0.05)


@pytest.mark.parametrize("embedding", ["untied", "tied"])
def test_correct_embeddings_are_flat_and_their_logits_shrink_at_initialization(cells, embedding):
    for module in ("wte", "ln_f"):
        assert slopes_of(cells[embedding, "constant"], module) == pytest.approx([0.0] * 4, abs=0.03)
    assert slopes_of(cells[embedding, "constant"], "blocks.1") == pytest.approx([0.0] * 4, abs=0.12)
    # width independent terms, multiplied by 1/width; a token's own logit is larger if the embedding is tied
    assert slopes_of(cells[embedding, "constant"], "lm_head")[0] == pytest.approx(-0.5, abs=0.05)


def test_a_zero_readout_has_nothing_to_rescale(cells):
    rescaled, tied = cells["tied_rescaled", "zero"].records, cells["tied", "zero"].records
    assert rescaled["l1"].equals(tied["l1"])
    logits = tied[(tied["module"] == "lm_head") & (tied["step"] == 0)]
    assert (logits["max"] == 0).all()
