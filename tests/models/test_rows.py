"""Rows of parametrizations applied to a model: the same training where the sources say so, and what the audit reads."""

import itertools
import sys
from importlib.util import find_spec

import pytest
import torch

from coordcheck.auditing import audit_config
from coordcheck.config.load import load
from coordcheck.judge.parametrizations import TABLES
from coordcheck.models.families import make_cell

DATA = ["data.batch=2", "data.context=8", "data.vocab_size=64", "data=zipf"]
SMALL = ["model.depth=1", "base_depth=1", "base_width=32", *DATA]
CPU = torch.device("cpu")
MUON = hasattr(torch.optim, "Muon")  # from torch 2.9 on
needs_muon = pytest.mark.skipif(not MUON, reason="this torch has no Muon")
needs_lion = pytest.mark.skipif(not find_spec("lion_pytorch"), reason="not installed: pip install 'coordcheck[lion]'")
muon = pytest.param("muon", marks=needs_muon)


def config(scheme, optimizer="adam", *overrides):
    return load([f"parametrization={scheme}", f"optimizer={optimizer}", "readout=constant", *SMALL, *overrides])


def trained(scheme, optimizer, width, steps=4):
    """The losses of a few steps."""
    cell = make_cell(config(scheme, optimizer, "optimizer.eps=1e-20", "optimizer.lr=0.01"))
    model = cell.build(width, 0, CPU)
    made, batch, losses = cell.optimizer(model, width), cell.batch(0, CPU), []
    for _ in range(steps):
        made.zero_grad()
        loss = cell.loss(model, batch)
        loss.backward()
        made.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "adafactor", muon])
@pytest.mark.parametrize("pair", [("mup", "mean_field"), ("sp_full_align", "ntk"), ("mup", "completep")], ids="-".join)
def test_rows_that_differ_by_a_shift_are_the_same_training(pair, optimizer):
    """(a+t, b-t, c-t) for Adam, c-2t for SGD; muP is the mup package's own under these two."""
    first, second = (trained(scheme, optimizer, 96) for scheme in pair)
    assert second == pytest.approx(first, rel=2e-3 if optimizer == "muon" else 2e-5)  # Muon iterates in bfloat16
    assert abs(first[0] - first[-1]) > 0.002, "nothing was learned, so nothing was compared"


@pytest.mark.parametrize("optimizer", ["adam", muon])
def test_at_the_base_width_all_rows_are_the_same_model(optimizer):
    rows = [name for name in TABLES if name != "umup" or optimizer == "adam"]
    for one, other in itertools.pairwise(trained(scheme, optimizer, 32, 2) for scheme in rows):
        assert one == pytest.approx(other, rel=1e-5)


def test_wider_they_are_not():
    losses = [trained(scheme, "adam", 96, 3)[-1] for scheme in ("mup", "ntk", "umup")]
    assert len({round(loss, 4) for loss in losses}) == 3


@pytest.mark.parametrize(
    ("scheme", "optimizer"),
    [
        *[("ntk", "adam"), ("ntk", "sgd"), ("mup", "adafactor"), ("mean_field", "adafactor")],
        *[("umup", "adamw"), ("sp_full_align", "sgd"), ("completep", "adam")],
        *[pytest.param(scheme, "muon", marks=needs_muon) for scheme in ("mup", "mean_field")],
        *[pytest.param(scheme, "lion", marks=needs_lion) for scheme in ("mup", "umup", "completep")],
    ],
)
def test_the_audit_reads_a_row_as_it_was_written(scheme, optimizer):
    wanted = ["widths=[32,64,128]", f"gate.expect={scheme}"]
    audit = audit_config(config(scheme, optimizer, *wanted))
    assert audit.verdict == "pass", audit.findings[:3]
    read = audit.parameters.set_index("parameter")["multiplier_exponent"]
    row = TABLES[scheme]
    for name, role in (("wte", "input"), ("blocks.0.mlp.fc", "hidden"), ("lm_head", "readout")):
        assert read[f"{name}.weight"] == pytest.approx(row.multiplier(role))


@pytest.mark.parametrize(
    ("scheme", "expect", "at_fault"),
    [
        ("ntk", "mup", {"lm_head.weight"}),
        ("umup", "mean_field", {"wte.weight", "wpe.weight"}),
        ("sp", "sp_full_align", {"blocks.0.mlp.fc.weight", "lm_head.weight"}),
    ],
)
def test_one_row_is_not_another(scheme, expect, at_fault):
    audit = audit_config(config(scheme, "adam", "widths=[32,64,128]", f"gate.expect={expect}"))
    faults = {
        finding.parameter for finding in audit.findings if finding.verdict in ("init", "learning_rate", "multiplier")
    }
    assert audit.verdict == "fail" and at_fault <= faults


@needs_muon
def test_muon_trains_hidden_matrices_and_adamw_the_rest():
    cell = make_cell(config("mup", "muon", "optimizer.weight_decay=0.1"))
    model = cell.build(128, 0, CPU)
    muon, adamw = cell.optimizer(model, 128).parts
    assert (type(muon), type(adamw)) == (torch.optim.Muon, torch.optim.AdamW)
    names = {parameter: name for name, parameter in model.named_parameters()}
    held = {names[p]: group for group in (*muon.param_groups, *adamw.param_groups) for p in group["params"]}
    assert held.keys() == {*names.values()}
    in_muon = {names[p] for group in muon.param_groups for p in group["params"]}
    assert in_muon == {name for name, role in cell.roles.items() if role == "hidden"}
    # steps as large as AdamW's have an operator norm of width^1/2, which muP divides by
    assert held["blocks.0.attn.q.weight"]["lr"] == pytest.approx(1e-3 / 2)
    assert held["blocks.0.attn.q.weight"]["weight_decay"] == pytest.approx(0.2)
    assert held["lm_head.weight"]["lr"] == held["ln_f.weight"]["lr"] == 1e-3


def test_completep_multiplies_branches_and_scales_what_stands_in_them():
    """arXiv 2505.01618, table 1 with alpha 1: depth 4 of base depth 1, width 64 of base width 32."""
    deep = ["model.depth=4", "optimizer.eps=1e-8", "model.bias=true"]
    cell = make_cell(config("completep", "adamw", *deep))
    model = cell.build(64, 0, CPU)
    x = torch.randn(1, 8, 64, generator=torch.Generator().manual_seed(0))
    block = model.blocks[2]
    after = x + block.attn(block.ln_1(x)) / 4
    assert torch.allclose(block(x), after + block.mlp(block.ln_2(after)) / 4)
    names = {parameter: name for name, parameter in model.named_parameters()}
    held = {names[p]: group for group in cell.optimizer(model, 64).param_groups for p in group["params"]}
    assert held["blocks.3.mlp.fc.weight"]["lr"] == pytest.approx(1e-3 / 2)
    assert held["blocks.3.mlp.fc.bias"]["lr"] == held["ln_f.weight"]["lr"] == held["wte.weight"]["lr"] == 1e-3
    epsilons = {name: group["eps"] * 1e8 for name, group in held.items()}
    assert epsilons["blocks.3.mlp.fc.weight"] == epsilons["blocks.0.ln_1.weight"] == pytest.approx(1 / 2 / 4)
    assert epsilons["wte.weight"] == epsilons["lm_head.weight"] == epsilons["ln_f.bias"] == pytest.approx(1 / 2)


def test_under_sgd_rates_make_up_for_the_multiplier_of_branches():
    cell = make_cell(config("completep", "sgd", "model.depth=4"))
    model = cell.build(32, 0, CPU)
    rates = {p: group["lr"] for group in cell.optimizer(model, 32).param_groups for p in group["params"]}
    assert rates[model.blocks[0].attn.q.weight] == pytest.approx(0.4) and rates[model.wte.weight] == 0.1


@needs_lion
def test_lion_has_the_rates_of_adam():
    """Its step is the sign of a mean gradient: a size that no gradient changes, as Adam's (arXiv 2302.06675)."""
    cell = make_cell(config("mup", "lion", "optimizer.weight_decay=0.1"))
    model = cell.build(128, 0, CPU)
    optimizer = cell.optimizer(model, 128)
    before = model.blocks[0].mlp.fc.weight.detach().clone()
    cell.loss(model, cell.batch(0, CPU)).backward()
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    optimizer.step()
    step = (model.blocks[0].mlp.fc.weight.detach() - before).abs()
    assert all("eps" not in group for group in optimizer.param_groups)
    assert type(optimizer).__name__ == "Lion" and step.max().item() == pytest.approx(3e-4 / 4, rel=1e-2)
    assert (step[step > 0] > 0.99 * step.max()).all()


def test_without_lion_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "lion_pytorch", None)
    cell = make_cell(config("sp", "lion"))
    with pytest.raises(ValueError, match=r"optimizer=lion needs lion-pytorch.*pip install 'coordcheck\[lion\]'"):
        cell.optimizer(cell.build(32, 0, CPU), 32)


def test_without_muon_in_torch_it_is_said(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    cell = make_cell(config("sp", "muon"))
    with pytest.raises(ValueError, match=r"optimizer=muon needs torch 2\.9 or later.*optimizer=adamw"):
        cell.optimizer(cell.build(32, 0, CPU), 32)


@pytest.mark.parametrize(
    ("overrides", "pattern"),
    [
        (["parametrization=ntk", "embedding=tied"], r"parametrization=ntk has .* embedding=untied; got embedding=tied"),
        (["parametrization=umup", "optimizer=sgd"], r"umup knows the learning rates of Adam; got optimizer=sgd"),
        (["model=own", "model.build=a.b", "optimizer=muon"], r"only a\.b knows.*model\.optimizer=my_package"),
        (["model=t5", "parametrization=ntk"], r"model=t5 takes parametrization=mup or sp"),
    ],
)
def test_what_does_not_fit_together_is_refused(overrides, pattern):
    with pytest.raises(ValueError, match=pattern):
        load(overrides)
