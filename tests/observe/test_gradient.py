"""Gradients against torch.autograd.grad."""

import pandas as pd
import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from conftest import tiny_config
from coordcheck.check import check_config
from coordcheck.judge.undecided import weights
from coordcheck.observe.recorder import Recorder


class Model(nn.Module):
    def __init__(self, checkpointed=False):
        super().__init__()
        self.wte = nn.Embedding(7, 8)
        self.fc = nn.Linear(8, 8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.checkpointed = checkpointed

    def forward(self, tokens):
        x = self.wte(tokens)
        if self.checkpointed:
            return torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False)
        return self.body(x)

    def body(self, x):
        return self.frozen(self.fc((self.fc(x) + 1).relu()))


def loss_of(output):
    return output.square().mean()


def recorded(model, batches, steps=1, **kwargs):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, width=8, kinds=("gradient",), **kwargs) as recorder:
        for _ in range(steps):
            for batch in batches:
                loss_of(model(batch)).backward()
            optimizer.step()
            optimizer.zero_grad()
            recorder.step()
    return recorder.records()


def make(**kwargs):
    torch.manual_seed(0)
    return Model(**kwargs), torch.randint(0, 7, (4, 5))


def l1(records):
    return records.set_index("module")["l1"].to_dict()


def test_gradients_by_outputs_and_parameters_are_those_of_autograd():
    model, tokens = make()
    x = model.wte(tokens)
    first = model.fc(x)
    second = model.fc((first + 1).relu())
    last = model.frozen(second)
    outputs = torch.autograd.grad(loss_of(last), (x, first, second, last), retain_graph=True)
    parameters = torch.autograd.grad(loss_of(last), (model.wte.weight, model.fc.weight, model.fc.bias))
    records = recorded(model, [tokens])
    seen = l1(records)
    assert list(records.sort_values("order").module) == [
        *("wte", "wte.weight", "fc", "fc.weight", "fc.bias", "frozen", "(model)")
    ]
    assert seen["wte"] == pytest.approx(outputs[0].abs().mean().item(), rel=1e-5)
    assert seen["fc"] == pytest.approx(torch.cat(outputs[1:3]).abs().mean().item(), rel=1e-5)
    assert seen["(model)"] == seen["frozen"] == pytest.approx(outputs[3].abs().mean().item(), rel=1e-5)
    for name, gradient in zip(("wte.weight", "fc.weight", "fc.bias"), parameters, strict=True):
        assert seen[name] == pytest.approx(gradient.abs().mean().item(), rel=1e-5)


def test_micro_batches_add_up_by_parameters_and_are_pooled_by_outputs():
    model, tokens = make()
    total = sum(loss_of(model(part)) for part in (tokens[:1], tokens[1:]))
    (gradient,) = torch.autograd.grad(total, (model.fc.weight,))
    records = recorded(model, [tokens[:1], tokens[1:]])
    assert l1(records)["fc.weight"] == pytest.approx(gradient.abs().mean().item(), rel=1e-5)
    assert records.set_index("module")["count"][["fc.weight", "frozen"]].tolist() == [64, 4 * 5 * 8]


def test_checkpointing_changes_nothing_and_a_selection_holds():
    model, tokens = make()
    plain = recorded(model, [tokens], steps=2)
    model, tokens = make(checkpointed=True)
    pd.testing.assert_frame_equal(
        recorded(model, [tokens], steps=2).sort_values(["step", "module"], ignore_index=True),
        plain.sort_values(["step", "module"], ignore_index=True),
    )
    assert set(recorded(model, [tokens], modules=["wte"]).module) == {"wte", "wte.weight"}
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_a_parameters_gradient_is_found_under_its_own_name(tmp_path):
    kinds = "kinds=[activation,effective_update,gradient]"
    check = check_config(tiny_config(f"runs={tmp_path}", "plots=null", "audit=false", "control=false", kinds))
    gradients = check.slopes[check.slopes.kind == "gradient"]
    assert set(gradients.step) == {0, 1, 2}
    assert not set(gradients.verdict) & {"explodes", "vanishes", "dead", "nonfinite"}
    hidden = gradients.query("role == 'hidden' and step == 2 and n_zero == 0")
    assert hidden["slope"].between(-1.4, -0.8).all()
    parameters = weights(check.records)
    assert parameters["blocks.0.attn.q"] == parameters["blocks.0.attn.q.weight"] == "blocks.0.attn.q.weight"
    check.save(tmp_path / "check")
