"""What a recorder makes of wrapped models, of optimizers of all kinds and of what it does not know, in one process."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from conftest import row
from coordcheck import Recorder
from coordcheck.observe import gradients


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 2))


def trained(model, step, kinds=("activation", "gradient"), **kwargs):
    x = torch.ones(3, 4)
    with Recorder(model, width=8, kinds=kinds, **kwargs) as recorder:
        for _ in range(2):
            step(lambda: model(x).square().mean())
            recorder.step()
    return recorder.records()


def stepping(optimizer):
    def step(loss):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def test_wrappers_leave_neither_rows_nor_names():
    plain, wrapped = make(), make()
    expected = trained(plain, stepping(torch.optim.SGD(plain.parameters(), lr=0.1)))
    wrapped[1] = torch.compile(checkpoint_wrapper(wrapped[1]), backend="eager")
    model = torch.compile(wrapped, backend="eager")
    records = trained(model, stepping(torch.optim.SGD(model.parameters(), lr=0.1)), roles={"1.0.weight": "hidden"})
    assert records.drop(columns="role").equals(expected.drop(columns="role"))
    assert set(records[records["role"] == "hidden"].module) == {"1.0", "1.0.weight"}


def test_a_module_that_somebody_calls_module_keeps_its_name():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(4, 4)

        def forward(self, x):
            return self.module(x)

    records = trained(Model(), lambda loss: loss().backward(), kinds=["activation"])
    assert set(records.module) == {"module", "(model)"}


def test_the_gradient_that_a_closure_makes_is_that_of_its_step():
    def closing(optimizer):
        def step(loss):
            def closure():
                optimizer.zero_grad()
                value = loss()
                value.backward()
                return value

            optimizer.step(closure)

        return step

    plain, closed = make(), make()
    expected = trained(plain, stepping(torch.optim.SGD(plain.parameters(), lr=0.1)))
    assert trained(closed, closing(torch.optim.SGD(closed.parameters(), lr=0.1))).equals(expected)


def test_without_an_optimizer_of_torch_the_gradient_is_what_step_finds():
    def by_hand(loss):
        loss().backward()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter -= 0.1 * parameter.grad

    model, other = make(), make()
    expected = trained(model, stepping(torch.optim.SGD(model.parameters(), lr=0.1)))
    found = trained(other, by_hand)
    for name in ("0.weight", "2.bias"):
        assert row(found, name, "gradient")["l1"] == row(expected, name, "gradient")["l1"]


def test_the_gradient_is_what_the_optimizer_uses_after_clipping():
    model = make()

    def clipping(loss):
        loss().backward()
        nn.utils.clip_grad_value_(model.parameters(), 1e-6)
        torch.optim.SGD(model.parameters(), lr=0.1).step()

    assert row(trained(model, clipping), "0.weight", "gradient")["max"] == pytest.approx(1e-6)


def test_other_models_optimizers_are_not_listened_to():
    model, other = make(), make()
    theirs = torch.optim.SGD(other.parameters(), lr=0.1)

    def both(loss):
        for parameter in other.parameters():
            parameter.grad = torch.full_like(parameter, 1e6)
        theirs.step()
        stepping(torch.optim.SGD(model.parameters(), lr=0.1))(loss)

    records = trained(model, both)
    assert records["max"].max() < 1e5
    assert gradients._listeners == ()


class Engine(nn.Module):
    __module__ = "deepspeed.runtime.engine"


def taken_away():
    model = make()
    model[0].weight.ds_id = 0
    return model


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (nn.DataParallel(make()), "torch.nn.DataParallel"),
        (Engine(), "DeepSpeed's Engine"),
        (taken_away(), "ZeRO stage 3, which took away 0.weight"),
    ],
)
def test_what_cannot_be_recorded_is_refused_when_it_is_entered(model, what):
    recorder = Recorder(model, width=8)
    with pytest.raises(ValueError, match=rf"pipelines; it does not know .*{what}.*For example"):
        recorder.__enter__()
    assert not any(module._forward_hooks for module in model.modules())
