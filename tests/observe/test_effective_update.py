"""Effective updates against (W_t - W_0) x_t written out."""

import mup
import pandas as pd
import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from transformers.pytorch_utils import Conv1D

from conftest import plan_of, tiny_cell
from coordcheck.config.load import load
from coordcheck.judge.slopes import fit
from coordcheck.models.families import make_cell
from coordcheck.observe.effective_update import some_features
from coordcheck.observe.recorder import Recorder
from coordcheck.run.train import run

CPU = torch.device("cpu")


def trained(model, x, *, steps=3, **kwargs):
    """Records of a few steps of Adam, the inputs that each leaf got, and its parameters at step 0 and now."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters(remove_duplicate=False)}
    inputs = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, args, out, name=name: inputs.__setitem__(name, args))
    with Recorder(model, width=8, kinds=("effective_update",), **kwargs) as recorder:
        for step in range(steps):
            loss = model(x).square().mean()
            if step < steps - 1:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            recorder.step()
    now = dict(model.named_parameters(remove_duplicate=False))
    change = {name: (now[name].detach() - start[name]).double() for name in start}
    return recorder.records(), {name: args[0].detach() for name, args in inputs.items()}, change


def last(records, module):
    return records[(records.module == module) & (records.step == records.step.max())].iloc[0]


class Scaled(nn.Linear):
    """A readout that multiplies its output, where mup's multiplies its input."""

    def forward(self, x):
        return super().forward(x) / 8


@pytest.mark.parametrize(
    ("make", "factor"),
    [
        (lambda: nn.Linear(16, 7, bias=False), 1.0),
        (lambda: Scaled(16, 7, bias=False), 1 / 8),
    ],
    ids=["linear", "scaled"],
)
def test_a_layers_own_update_times_its_input_at_every_second_position_of_32(make, factor):
    torch.manual_seed(0)
    records, inputs, change = trained(nn.Sequential(nn.Linear(5, 16), make()), torch.randn(16, 32, 5))
    expected = factor * inputs["1"][:, 1::2].double() @ change["1.weight"].T
    seen = last(records, "1")
    assert seen["count"] == expected.numel() == 16 * 16 * 7
    assert seen["l1"] == pytest.approx(expected.abs().mean().item(), rel=1e-5)
    assert seen["rms"] == pytest.approx(expected.square().mean().sqrt().item(), rel=1e-5)
    assert set(records.step) == {1, 2}
    assert set(records.kind) == {"effective_update"}


@pytest.mark.parametrize("shared", [False, True])
def test_the_multiplier_of_mups_readouts_is_in_their_effective_update(shared):
    def build(width):
        embedding = nn.Embedding(7, width)
        kwargs = {"bias": False, "output_mult": 3.0}
        readout = mup.MuSharedReadout(embedding.weight, **kwargs) if shared else mup.MuReadout(width, 7, **kwargs)
        return nn.Sequential(embedding, readout)

    torch.manual_seed(0)
    model = build(16)
    mup.set_base_shapes(model, build(4), delta=build(8), rescale_params=False)
    tokens = torch.randint(0, 7, (2, 12))
    records, inputs, change = trained(model, tokens)
    readout = 3 / 4 * inputs["1"].double() @ change["1.weight"].T
    assert last(records, "1")["l1"] == pytest.approx(readout.abs().mean().item(), rel=1e-5)
    lookup = change["0.weight"][tokens]
    assert last(records, "0")["l1"] == pytest.approx(lookup.abs().mean().item(), rel=1e-5)
    assert last(records, "0")["count"] == 2 * 12 * 16


def test_the_bias_and_hugging_faces_conv1d():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), Conv1D(8, 6))
    records, inputs, change = trained(model, torch.randn(2, 4, 5))
    expected = inputs["1"].double() @ change["1.weight"] + change["1.bias"]
    assert last(records, "1")["count"] == 2 * 4 * 8
    assert last(records, "1")["l1"] == pytest.approx(expected.abs().mean().item(), rel=1e-5)
    first = inputs["0"].double() @ change["0.weight"].T + change["0.bias"]
    assert last(records, "0")["l1"] == pytest.approx(first.abs().mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "features"),
    [(lambda: nn.Linear(16, 600), 64), (lambda: Scaled(16, 600), 600), (lambda: nn.Linear(16, 127), 127)],
    ids=["some", "own_forward", "all"],
)
def test_of_many_output_features_some_are_used_and_only_where_a_forward_takes_any_number(make, features):
    torch.manual_seed(0)
    module = make()
    records, inputs, change = trained(nn.Sequential(module), torch.randn(2, 5, 16))
    chosen = some_features(600, CPU) if features == 64 else torch.arange(features)
    scale = 1 / 8 if isinstance(module, Scaled) else 1.0
    expected = scale * (inputs["0"].double() @ change["0.weight"][chosen].T + change["0.bias"][chosen])
    assert last(records, "0")["count"] == 2 * 5 * features
    assert last(records, "0")["l1"] == pytest.approx(expected.abs().mean().item(), rel=1e-5)


def test_of_an_embeddings_many_features_some_are_used():
    torch.manual_seed(0)
    tokens = torch.randint(0, 7, (2, 5))
    records, _, change = trained(nn.Sequential(nn.Embedding(7, 512)), tokens)
    expected = change["0.weight"][tokens][..., some_features(512, CPU)]
    assert last(records, "0")["count"] == expected.numel() == 2 * 5 * 64
    assert last(records, "0")["l1"] == pytest.approx(expected.abs().mean().item(), rel=1e-5)


@pytest.mark.parametrize("count", [128, 512, 2048, 50257])
def test_the_features_used_are_distinct_and_no_one_place_in_every_head(count):
    chosen = some_features(count, CPU)
    assert len(chosen.unique()) == 64
    assert chosen.max() < count
    assert (chosen % 32).bincount(minlength=32).max() <= 64 / 32 + 4


def test_under_autocast_a_change_below_the_precision_of_bfloat16_is_exact():
    torch.manual_seed(0)
    model, x = nn.Linear(64, 64, bias=False), torch.randn(2, 16, 64)
    change = 1e-5 * torch.randn(64, 64)
    with Recorder(model, width=64, kinds=("effective_update",)) as recorder, torch.autocast("cpu", torch.bfloat16):
        model(x)
        recorder.step()
        with torch.no_grad():
            model.weight += change
        model(x)
    expected = (x @ change.T).abs().mean().item()
    assert recorder.records()["l1"].item() == pytest.approx(expected, rel=1e-3)


class Often(nn.Module):
    """Calls one layer twice, is checkpointed if asked, and has layers that no effective update is due to."""

    def __init__(self, checkpointed=False):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.dropout = nn.Dropout(0.5)
        self.checkpointed = checkpointed

    def body(self, x):
        return self.dropout(self.frozen(self.norm(self.fc(self.fc(input=x)))))

    def forward(self, x):
        if self.checkpointed:
            return torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False)
        return self.body(x)


def recorded_twice(x, **kwargs):
    torch.manual_seed(0)
    model = Often(**kwargs)
    return trained(model, x)[0], model


def test_calls_are_pooled_and_only_layers_that_train_have_one():
    x = torch.randn(20, 4, requires_grad=True)
    records, _ = recorded_twice(x)
    assert set(records.module) == {"fc"}
    assert (records["count"] == 2 * 20 * 4).all()
    pd.testing.assert_frame_equal(recorded_twice(x, checkpointed=True)[0], records)


def test_training_with_a_recorder_is_training_without():
    def weights(kinds):
        torch.manual_seed(0)
        model, x = Often(), torch.randn(20, 4)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        with Recorder(model, width=4, kinds=kinds) as recorder:
            for _ in range(3):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
                recorder.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(weights(("activation",)), weights(("activation", "effective_update")))


def test_a_selection_of_modules_holds_for_it():
    cell = tiny_cell("kinds=[effective_update]", "modules=[lm_head]", "readout=constant")
    model = cell.build(64, 0, CPU)
    plan = plan_of(cell.config)
    records = run(
        model, cell.optimizer(model, 64), cell.batch(0, CPU), cell.loss, plan, width=64, seed=0, roles=cell.roles
    )
    assert records.groupby("module")["step"].agg(list).to_dict() == {"lm_head": [1, 2, 3]}
    assert set(records.role) == {"readout"}


def test_it_shows_the_one_layer_whose_learning_rate_forgot_the_width():
    """Activations and deltas do not tell: what the layers before it sent hides the layer's own update."""
    config = load(["widths=[64,128,256]", "seeds=2", "data.batch=4", "kinds=[activation,delta,effective_update]"])
    cell = make_cell(config)
    records = []
    for width in config.widths:
        for seed in range(config.seeds):
            model = cell.build(width, seed, CPU)
            optimizer = cell.optimizer(model, width)
            faulty = model.blocks[1].mlp.fc.weight
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if p is not faulty]
            optimizer.add_param_group({"params": [faulty], "lr": config.optimizer.lr})
            records.append(
                run(
                    *(model, optimizer, cell.batch(seed, CPU), cell.loss, plan_of(config)),
                    width=width,
                    seed=seed,
                    roles=cell.roles,
                )
            )
    slopes = fit(pd.concat(records)).query("step == 3").set_index(["kind", "module"])["slope"]
    assert abs(slopes["activation", "blocks.1.mlp.fc"]) < 0.10
    assert abs(slopes["delta", "blocks.1.mlp.fc"]) < 0.20
    own = slopes["effective_update"]
    assert own.idxmax() == "blocks.1.mlp.fc"
    assert own.max() > 0.75
    assert own.drop("blocks.1.mlp.fc").between(-0.43, 0.25).all()
