"""Learning rates and decays, derived by hand from Tensor Programs V, table 3 and 8, at width_mult 4."""

import numpy as np
import pytest
import torch
from torch import nn, optim

from conftest import tiny_cell
from coordcheck.observe.optimizer import Step, check_optimizer, try_steps

CPU = torch.device("cpu")


def groups_of(*overrides):
    cell = tiny_cell("model.bias=true", "optimizer.lr=0.8", *overrides)
    model = cell.build(256, 0, CPU)
    optimizer = cell.optimizer(model, 256)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert len(found) == len(names)
    return optimizer, found


@pytest.mark.parametrize(
    ("parametrization", "optimizer", "hidden", "others"),
    [
        ("sp", "adam", 0.8, 0.8),
        ("mup", "adam", 0.8 / 4, 0.8),  # Adam: hidden 1/width, the others constant
        ("mup", "adamw", 0.8 / 4, 0.8),
        ("mup", "sgd", 0.8, 0.8 * 4),  # SGD: hidden constant, the others proportional to width
        ("sp", "sgd", 0.8, 0.8),
    ],
)
def test_learning_rates(parametrization, optimizer, hidden, others):
    _, groups = groups_of(f"parametrization={parametrization}", f"optimizer={optimizer}")
    for name in ("blocks.0.attn.q.weight", "blocks.1.mlp.fc.weight", "blocks.1.mlp.proj.weight"):
        assert groups[name]["lr"] == pytest.approx(hidden)
    for name in ("wte.weight", "wpe.weight", "lm_head.weight", "ln_f.weight", "blocks.0.mlp.fc.bias"):
        assert groups[name]["lr"] == pytest.approx(others)


def test_the_tied_weight_is_an_input_to_the_optimizer():
    _, groups = groups_of("embedding=tied", "readout=constant")
    assert groups["wte.weight"]["lr"] == pytest.approx(0.8)


def test_adamw_decays_matrices_and_lr_times_decay_keeps_its_size():
    _, groups = groups_of("optimizer=adamw", "optimizer.weight_decay=0.1")
    for name in ("blocks.0.attn.q.weight", "wte.weight", "lm_head.weight"):
        assert groups[name]["lr"] * groups[name]["weight_decay"] == pytest.approx(0.08)
    assert groups["ln_f.weight"]["weight_decay"] == groups["blocks.0.mlp.fc.bias"]["weight_decay"] == 0.0


def test_the_optimizers_own_values_arrive():
    adam, _ = groups_of("optimizer.betas=[0.8,0.99]", "optimizer.eps=1e-6")
    assert adam.defaults["betas"] == (0.8, 0.99)
    assert adam.defaults["eps"] == 1e-6
    sgd, _ = groups_of("optimizer=sgd", "optimizer.momentum=0.5")
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.defaults["momentum"] == 0.5


class Lamb(optim.Optimizer):
    """Steps of one size times the size of the weight: You et al. (arXiv 1904.00962), simplified."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self):
        for p in (p for group in self.param_groups for p in group["params"]):
            p.sub_(self.param_groups[0]["lr"] * p.norm() * p.grad.sign())


class Lion(optim.Optimizer):
    """The sign of a mean of gradients: Chen et al. (arXiv 2302.06675), without momentum."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad.sign())


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (optim.Adam, "adam"),
        (optim.AdamW, "adam"),
        (optim.NAdam, "adam"),
        (optim.RAdam, "adam"),  # its first five steps are SGD's
        (optim.RMSprop, "adam"),
        (optim.Adagrad, "adam"),
        (lambda p: optim.Adam(p, lr=1e-12), "adam"),
        (lambda p: optim.Adam(p, lr=0.0), "adam"),
        (lambda p: optim.Adam(p, lr=torch.tensor(0.1)), "adam"),
        (lambda p: optim.Adam(p, foreach=True), "adam"),
        (lambda p: optim.Adam(p, fused=True), "adam"),
        (lambda p: optim.SGD(p, weight_decay=0.1), "sgd"),
        (lambda p: optim.SGD(p, momentum=0.9, nesterov=True), "sgd"),
        (Lion, "adam"),
        (Lamb, "adafactor"),
        (optim.Adafactor, "adafactor"),
        (optim.LBFGS, None),  # needs a closure
        (optim.SparseAdam, None),  # refuses dense gradients
        (lambda p: optim.Adam(p, eps=1.0), None),  # between the two
    ],
)
def test_how_a_step_depends_on_the_gradient_is_found_out(make, rule):
    assert {step.rule for step in try_steps(make(nn.Linear(8, 8).parameters())).values()} == {rule or ""}


def test_finding_out_changes_no_weight():
    layer = nn.Linear(8, 8)
    before = layer.weight.clone()
    try_steps(optim.Adam(layer.parameters()))
    assert torch.equal(layer.weight, before) and layer.weight.grad is None


def test_groups_are_told_apart():
    trained, frozen = nn.Linear(8, 8), nn.Linear(8, 8).requires_grad_(False)
    empty = nn.Parameter(torch.empty(0))
    groups = [{"params": trained.parameters()}, {"params": frozen.parameters()}, {"params": [empty]}]
    assert [step.rule for step in try_steps(optim.SGD(groups)).values()] == ["sgd", "sgd", ""]


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(ValueError, match=r"`optimizer` must return a torch.optim.Optimizer, or .*; got list"):
        check_optimizer([])


@pytest.mark.parametrize(("adjust", "exponent"), [("original", 0.0), ("match_rms_adamw", 0.5)])
@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (1, 2)])
def test_muons_steps_have_an_operator_norm_that_may_grow_with_the_shape(adjust, exponent, shape):
    sizes = []
    for width in (16, 64):
        matrix = nn.Parameter(torch.randn(shape[0] * width, shape[1] * width))
        (step,) = try_steps(optim.Muon([matrix], lr=0.01, adjust_lr_fn=adjust)).values()
        assert step.rule == "muon"
        sizes.append(step.size)
    assert np.log2(sizes[1] / sizes[0]) / 2 == pytest.approx(exponent, abs=0.1)


def test_a_random_sign_is_not_muon():
    (step,) = try_steps(optim.Adam([nn.Parameter(torch.randn(64, 16))])).values()
    assert step == Step("adam", pytest.approx(1.0, rel=1e-3))


def test_several_optimizers_are_taken_together():
    matrix, vector = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8))
    parts = [optim.Muon([matrix], lr=0.1), optim.SGD([vector], lr=0.2)]
    both = check_optimizer(parts)
    assert [group["lr"] for group in both.param_groups] == [0.1, 0.2]
    both.param_groups[1]["lr"] = 1.0
    before, vector.grad, matrix.grad = vector.detach().clone(), torch.ones(8), torch.eye(8)
    both.step()
    assert torch.allclose(vector, before - 1.0)
    both.zero_grad()
    assert vector.grad is None and matrix.grad is None
    rules = try_steps(both)
    assert (rules[matrix].rule, rules[vector].rule) == ("muon", "sgd")
