"""A failing check whose cause was not recorded records it in a few narrow runs; a passing one never does."""

import pytest
import torch
from torch import nn

from coordcheck import CoordCheck, coord_check
from coordcheck.judge.diagnose.lacking import lacking
from coordcheck.judge.finding import Finding
from coordcheck.result import Audit

BASE, WIDTHS = 32, (32, 64, 128, 256)
TOKENS = torch.randint(16, (8, 16), generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """In muP: an embedding, two hidden layers, a readout that divides its input."""

    def __init__(self, width):
        super().__init__()
        self.mult, self.embed = width / BASE, nn.Embedding(16, width)
        self.hidden = nn.Sequential(nn.Linear(width, width, bias=False), nn.Tanh(), nn.Linear(width, width, bias=False))
        self.head = nn.Linear(width, 16, bias=False)
        for layer in (self.hidden[0], self.hidden[2]):
            nn.init.normal_(layer.weight, std=width**-0.5)
        nn.init.normal_(self.head.weight, std=BASE**-0.5)

    def forward(self, tokens):
        return self.head(torch.tanh(self.hidden(self.embed(tokens))) / self.mult)


class Overwriting(torch.optim.Adam):
    """As with a scheduler that sets one rate for all groups after the first step."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group["lr"] = 4e-3


def optimizer(kind):
    def make(model):
        rates = {"hidden": 4e-3 / model.mult}
        named = model.named_parameters()
        groups = [{"params": [p], "lr": rates.get(name.partition(".")[0], 4e-3)} for name, p in named]
        return kind(groups, eps=1e-12)

    return make


def check(kind=Overwriting, **more):
    more = {"kinds": ("activation", "delta"), "seeds": 4, **more}
    return coord_check(
        Model, (TOKENS, TOKENS.roll(1, 1)), WIDTHS, optimizer=optimizer(kind), device="cpu", workers=1, **more
    )


def test_what_a_diagnosis_lacks_is_recorded_at_the_narrowest_widths(tmp_path, monkeypatch):
    monkeypatch.setattr(CoordCheck, "plot", lambda self, path: None)  # a picture takes longer than the runs
    monkeypatch.setattr(Audit, "plot", lambda self, path: None)
    plain = check(rerun=False)
    assert plain.findings[0].fault == "unexplained" and not plain.rerun_sentence()
    assert "The kind effective_update was not recorded" in plain.findings[0].advice
    checked = check()
    assert (checked.findings[0].fault, checked.findings[0].kind) == ("learning_rate", "effective_update")
    assert "scheduler" in checked.findings[0].advice
    added = checked.records[checked.records["kind"] == "effective_update"]
    assert (sorted(added["width"].unique()), added["seed"].nunique()) == ([32, 64, 128], 3)
    assert len(checked.records) == len(plain.records) + len(added)
    said = checked.rerun_sentence()
    assert "9 runs at widths [32, 64, 128] recorded the kind effective_update as well" in said
    checked.save(tmp_path)
    assert said in (tmp_path / "report.md").read_text().replace("\\", "")
    again = CoordCheck.load(tmp_path)
    assert again.findings == checked.findings and again.rerun_sentence() == said and said in repr(again)


@pytest.mark.parametrize("more", [{"kind": torch.optim.Adam}, {"kinds": ("activation", "delta", "effective_update")}])
def test_nothing_runs_again_where_nothing_is_lacking(more):
    checked = check(**more)
    assert not checked.rerun_sentence()
    assert checked.records.groupby("kind")["width"].nunique().eq(len(WIDTHS)).all()


@pytest.mark.parametrize(
    ("fault", "kinds", "steps", "expected"),
    [
        ("unexplained", ["activation"], 4, (["activation", "effective_update"], 4)),
        ("unexplained", ["effective_update"], 2, (["effective_update"], 3)),
        ("unexplained", ["activation", "effective_update"], 3, None),
        ("init", ["activation"], 2, None),
        ("", ["activation"], 2, None),
    ],
)
def test_only_a_cause_that_is_not_known_lacks_something(fault, kinds, steps, expected):
    assert lacking([Finding(fault, "(model)", None, "", "")], kinds, steps) == expected
