"""Weights and their changes as a recorder of somebody's own loop sees them."""

import mup
import numpy as np
import pytest
import torch
from torch import nn

from conftest import row
from coordcheck.observe.recorder import Recorder

KINDS = ("weight", "update", "effective_update")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(7, 8)
        self.fc = nn.Linear(8, 5)
        self.frozen = nn.Linear(5, 3).requires_grad_(False)
        self.unused = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, tokens):
        return self.frozen(self.fc(self.wte(tokens)) * self.scale)


def trained(steps=3, kinds=KINDS, loss=lambda output: output.square().mean(), **kwargs):
    """Records, and copies of all parameters at each step."""
    torch.manual_seed(0)
    model, tokens = Model(), torch.randint(0, 7, (4, 5))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    copies = []
    with Recorder(model, width=8, kinds=kinds, **kwargs) as recorder:
        for _ in range(steps):
            copies.append({name: p.detach().clone() for name, p in model.named_parameters()})
            loss(model(tokens)).backward()
            optimizer.step()
            optimizer.zero_grad()
            recorder.step()
    return recorder.records(), copies


def test_weights_and_updates_are_those_at_the_beginning_of_each_step():
    records, copies = trained()
    assert {*records[records.kind == "weight"].module} == {*copies[0]}
    for step, kind in ((0, "weight"), (2, "weight"), (1, "update"), (2, "update")):
        for name in ("wte.weight", "fc.weight", "fc.bias", "scale"):
            expected = copies[step][name] - (copies[0][name] if kind == "update" else 0)
            seen = row(records, name, kind, step)
            matrix = expected.reshape(-1, 1) if expected.dim() < 2 else expected
            assert seen["rms"] == pytest.approx(expected.square().mean().sqrt().item(), rel=1e-5)
            assert seen["max"] == pytest.approx(expected.abs().max().item(), rel=1e-5)
            assert seen["spectral"] == pytest.approx(torch.linalg.matrix_norm(matrix, ord=2).item(), rel=1e-4)
            assert seen["count"] == expected.numel()
    assert not len(records[(records.kind == "update") & (records.step == 0)])


def test_nobody_owes_an_update_that_no_gradient_reaches_but_what_the_optimizer_forgets_does():
    updates = trained()[0].query("kind == 'update'")
    assert {*updates.module} == {"wte.weight", "fc.weight", "fc.bias", "scale"}
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.ones(2, 4)
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with Recorder(model, width=4, kinds=("update",)) as recorder:
        for _ in range(2):
            model(x).square().sum().backward()
            optimizer.step()
            recorder.step()
        model(x)
    records = recorder.records()
    assert row(records, "1.weight", "update", 2)["spectral"] == 0.0
    assert row(records, "0.weight", "update", 2)["spectral"] > 0.0


def test_a_loop_without_backward_has_its_updates_too():
    model, x = nn.Linear(4, 4, bias=False), torch.ones(2, 4)
    with Recorder(model, width=4, kinds=("update",)) as recorder:
        model(x)
        recorder.step()
        with torch.no_grad():
            model.weight += 1
        model(x)
    assert row(recorder.records(), "weight", "update", 1)["spectral"] == pytest.approx(4.0)


def test_columns_are_added_behind_only_where_something_was_measured():
    assert list(trained(kinds=("activation",))[0].columns)[-1] == "count"
    records = trained()[0]
    assert list(records.columns)[-3:] == ["count", "spectral", "input_rms"]
    assert np.isnan(records.loc[records.kind == "effective_update", "spectral"]).all()
    assert records.loc[records.kind == "weight", "spectral"].notna().all()


def test_what_meets_a_layers_weight_is_recorded_and_an_embedding_sums_nothing():
    records, copies = trained()
    torch.manual_seed(0)
    Model()
    tokens = torch.randint(0, 7, (4, 5))
    met = copies[2]["wte.weight"][tokens]
    seen = row(records, "fc", "effective_update", 2)
    assert seen["input_rms"] == pytest.approx(met.square().mean().sqrt().item(), rel=1e-5)
    assert np.isnan(row(records, "wte", "effective_update", 2)["input_rms"])


def test_a_readout_of_mup_meets_what_it_divided():
    def made(width):
        return nn.Sequential(mup.MuReadout(width, 3, bias=False))

    model = made(32)
    mup.set_base_shapes(model, made(8), delta=made(16))
    with Recorder(model, width=32, kinds=("update", "effective_update")) as recorder:
        for _ in range(2):
            model(torch.ones(2, 32)).square().sum().backward()
            with torch.no_grad():
                model[0].weight.add_(0.1)
            recorder.step()
    assert row(recorder.records(), "0", "effective_update", 1)["input_rms"] == pytest.approx(1 / 4)


def test_what_a_layer_multiplies_its_input_by_itself_is_in_what_its_weight_meets():
    class Halved(nn.Linear):
        def forward(self, x):
            return super().forward(x / 2) * 10

    model = nn.Sequential(Halved(4, 3), nn.Linear(3, 3))
    with Recorder(model, width=4, kinds=("update", "effective_update")) as recorder:
        for _ in range(2):
            model(torch.ones(2, 4)).square().sum().backward()
            with torch.no_grad():
                model[0].weight.add_(0.1)
            recorder.step()
    assert row(recorder.records(), "0", "effective_update", 1)["input_rms"] == pytest.approx(1 / 2)


def test_a_weight_whose_gradient_is_always_zero_owes_no_update():
    model, x = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4)), torch.zeros(2, 4)
    optimizer = torch.optim.Adam(model.parameters())
    with Recorder(model, width=4, kinds=("update",)) as recorder:
        for _ in range(2):
            model(x + model[0].weight.sum() * 0).square().sum().backward()
            optimizer.step()
            recorder.step()
        model(x)
    assert {*recorder.records().module} == {"1.bias"}


def test_a_selection_of_modules_holds_for_their_parameters():
    records, _ = trained(kinds=("weight",), modules=["fc"])
    assert {*records.module} == {"fc.weight", "fc.bias"}


def test_micro_batches_and_evaluations_measure_a_weight_once():
    model, x = nn.Linear(4, 4), torch.ones(2, 4)
    with Recorder(model, width=4, kinds=("weight",)) as recorder:
        model(x)
        model(x)
        with torch.no_grad():
            model(x)
        recorder.step()
    assert row(recorder.records(), "weight", "weight")["count"] == 16


def test_weights_that_are_not_finite_are_told_as_such():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    with Recorder(model, width=2, kinds=("weight",)) as recorder:
        model(torch.ones(1, 2))
    seen = row(recorder.records(), "weight", "weight")
    assert seen["nonfinite"] == 1
    assert np.isnan(seen["spectral"])
