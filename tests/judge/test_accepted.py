"""Deviations that are accepted by name: they fail nothing, are listed, and explain their own module's curves alone."""

import json

import pytest
import torch
from torch import nn

from coordcheck import CoordCheck, audit, coord_check
from coordcheck.result import Audit

BASE, WIDTHS = 32, (32, 64, 128)
TOKENS = torch.randint(16, (8, 16), generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """In muP: an embedding, its norm, a hidden layer, a readout that divides its input."""

    def __init__(self, width, exponent=-0.5):
        super().__init__()
        self.mult = width / BASE
        self.embed, self.norm = nn.Embedding(16, width), nn.LayerNorm(width)
        self.hidden, self.head = nn.Linear(width, width, bias=False), nn.Linear(width, 16, bias=False)
        nn.init.normal_(self.hidden.weight, std=BASE**-0.5 * (width / BASE) ** exponent)
        nn.init.normal_(self.head.weight, std=BASE**-0.5)

    def forward(self, tokens):
        return self.head(torch.tanh(self.hidden(self.norm(self.embed(tokens)))) / self.mult)


def large_hidden(width):
    return Model(width, 0.0)


def adam(**exponents):
    """Adam with muP's rates, but for those whose exponents are given."""

    def optimizer(model):
        of = {"hidden": -1.0, **exponents}
        groups = [
            {"params": [p], "lr": 4e-3 * model.mult ** of.get(name.partition(".")[0], 0.0)}
            for name, p in model.named_parameters()
        ]
        return torch.optim.Adam(groups, eps=1e-12)

    return optimizer


def check(accept=(), build=Model, **exponents):
    return coord_check(
        build,
        (TOKENS, TOKENS.roll(1, 1)),
        WIDTHS,
        3,
        3,
        optimizer=adam(**exponents),
        device="cpu",
        workers=1,
        control=False,
        accept=accept,
    )


@pytest.mark.parametrize(
    ("exponents", "entry"),
    [({"embed": -1.0}, "embed.weight: lr"), ({"head": -1.0}, "he*.weight: lr")],
)
def test_an_accepted_rate_fails_no_check_and_is_listed(exponents, entry, tmp_path, monkeypatch):
    monkeypatch.setattr(CoordCheck, "plot", lambda self, path: None)  # a picture takes longer than the runs
    monkeypatch.setattr(Audit, "plot", lambda self, path: None)
    assert check(**exponents).verdict == "fail"
    accepted = check([entry], **exponents)
    name = next(iter(exponents)) + ".weight"
    assert accepted.verdict != "fail" and not any(finding.fault for finding in accepted.findings)
    assert [(f.parameter, f.verdict) for f in accepted.audit.accepted] == [(name, "accepted")]
    assert accepted.sentence().endswith(f"Accepted: {entry}.")
    assert accepted.slopes["source"].str.endswith(f"accepted: what deviates at {name}").any()
    accepted.save(tmp_path)
    (said,) = json.loads((tmp_path / "verdict.json").read_text())["accepted"]
    assert said.startswith(f"{name}: its learning rate scales like width^-1.00") and "This is accepted." in said
    assert f"Accepted: {entry}." in (tmp_path / "report.md").read_text()
    again = CoordCheck.load(tmp_path)
    assert (again.verdict, again.sentence()) == (accepted.verdict, accepted.sentence())


def test_what_is_not_accepted_fails_as_ever():
    """Another quantity, another parameter, and more than the accepted deviation explains."""
    for accept in (["embed.weight: init"], ["head.weight: lr"]):
        checked = check(accept, embed=-1.0)
        assert checked.verdict == "fail" and checked.findings[0].parameter == "embed.weight"
        assert f"Accepted, but nothing deviates: {accept[0]}." in checked.sentence()
    both = check(["hidden.weight: lr"], build=large_hidden, hidden=0.0)
    assert (both.findings[0].fault, both.findings[0].parameter) == ("init", "hidden.weight")


def test_curves_of_an_accepted_rate_may_lie_as_far_off_as_it_explains_and_no_further():
    curves = check(["embed.weight: lr"], embed=-1.0).slopes.query("kind == 'delta' and step == 2").set_index("module")
    assert curves.loc[["embed", "norm"], "expected_low"].tolist() == [-1.0, -1.0]
    assert curves.loc[["embed", "norm"], "expected_high"].tolist() == [0.0, 0.0]
    assert curves.loc["hidden", "expected_low"] == 0.0


def test_what_an_accepted_init_does_behind_its_module_says_where_it_may_come_from():
    checked = check(["hidden.weight: init"], build=large_hidden)
    assert {f.module for f in checked.findings if f.fault} <= {"head", "(model)"}
    for finding in checked.findings:
        if finding.fault:
            assert "What is accepted of hidden.weight comes before it" in finding.cause


@pytest.mark.parametrize(
    ("accept", "message"),
    [
        (["embed: lr"], r"'embed' is none of its 5, the nearest of which are .*'embed.weight'"),
        (["embed.weight: rate"], r"the quantity one of \['init', 'lr', .*got 'embed.weight: rate'"),
        (["embed.weight"], r"PARAMETER: QUANTITY"),
        ("embed.weight: lr", r"is a list of names; got 'embed.weight: lr'. For example accept=\['embed.weight: lr'\]"),
    ],
)
def test_an_entry_that_matches_nothing_is_refused(accept, message):
    with pytest.raises(ValueError, match=message):
        check(accept)
    with pytest.raises(ValueError, match=message):
        audit(Model, WIDTHS, adam(), accept=accept)


def test_accepting_needs_an_audit():
    with pytest.raises(ValueError, match=r"`accept` names what an audit finds.*audit=True"):
        coord_check(Model, (TOKENS, TOKENS), WIDTHS, audit=False, accept=["embed.weight: lr"])


def test_an_accepted_number_is_told_by_itself():
    """A readout under no multiplier whose rate is accepted: its std is judged as if the rate were right."""

    class Plain(Model):
        def forward(self, tokens):
            return super().forward(tokens) * self.mult

    batch = (TOKENS, TOKENS)
    found = audit(Plain, WIDTHS, adam(), batch=batch).findings
    assert [(f.parameter, f.verdict) for f in found] == [("head.weight", "multiplier")]
    found = audit(Plain, WIDTHS, adam(), batch=batch, accept=["head.weight: lr"]).findings
    assert {(f.parameter, f.verdict) for f in found} == {("head.weight", "init"), ("head.weight", "accepted")}
    report = audit(Plain, WIDTHS, adam(), batch=batch, accept=["head.weight: lr", "head.weight: init"])
    assert report.verdict == "pass" and "but for what is accepted" in report.sentence()
