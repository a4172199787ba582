"""A user's own model: from functions and from dotted names, with everything that ours have."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from conftest import run
from coordcheck import Recorder, coord_check
from coordcheck.check import prepare
from coordcheck.config.load import load
from coordcheck.config.schema import Precision
from coordcheck.models.families import make_cell
from coordcheck.models.own import OwnCell, import_dotted
from coordcheck.run import queue
from coordcheck.run.device import generator_states
from coordcheck.run.queue import RunQueue
from coordcheck.run.train import RunPlan

EXAMPLE = Path(__file__).parents[2] / "examples" / "team"
CPU = torch.device("cpu")
WIDTHS = (16, 32, 64)
INPUTS, TARGETS = torch.randn(32, 8, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 4
MODULE = """
import torch
from torch import nn

def build(width, depth=1, act="relu"):
    new_act = {"relu": nn.ReLU, "gelu": nn.GELU}[act]
    hidden = [layer for _ in range(depth) for layer in (nn.Linear(width, width), new_act())]
    return nn.Sequential(nn.Embedding(256, width), *hidden, nn.Linear(width, 256))

def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)

def batch(seed):
    tokens = torch.randint(256, (4, 9), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]

def loss(model, batch):
    return model(batch[0]).square().mean()

def both(width):
    model = build(width)
    return model, torch.optim.SGD(model.parameters(), lr=0.2)
"""


def build(width):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def check(**kwargs):
    options = {"widths": WIDTHS, "seeds": 3, "device": "cpu", "control": False, "audit": False, "optimizer": sgd}
    made = options.pop("build", None) or kwargs.pop("build", build)
    return coord_check(made, kwargs.pop("batch", (INPUTS, TARGETS)), **{**options, **kwargs})


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield "theirs"
    sys.modules.pop("theirs", None)


def own(*overrides):
    return make_cell(load(["model=own", "widths=[16,32,64]", *overrides]))


# dotted names


def test_a_model_is_built_from_a_dotted_name_with_its_arguments(module):
    cell = own("model.build=theirs.build", "model.args.depth=3", "model.args.act=gelu")
    assert sum(isinstance(layer, nn.GELU) for layer in cell.build(16, 0, CPU)) == 3
    assert cell.columns["model"] == "theirs.build depth=3 act=gelu"


def test_by_default_it_has_the_configured_optimizer_and_text(module):
    cell = own("model.build=theirs.build", "optimizer=sgd", "optimizer.lr=0.3", "data.batch=3")
    assert cell.columns["optimizer"] == "SGD lr=0.3"
    inputs, targets = cell.batch(0, CPU)
    assert inputs.shape == (3, 64) and torch.equal(inputs[:, 1:], targets[:, :-1])
    assert cell.corpus_sha256 is not None


def test_mups_optimizer_is_used_where_base_shapes_are_set(module):
    Path("theirs.py").write_text(
        MODULE
        + "\nimport mup\ndef in_mup(width):\n    model = build(width)\n"
        + "    mup.set_base_shapes(model, build(16), delta=build(32), do_assert=False)\n    return model\n"
    )
    cell = own("model.build=theirs.in_mup")
    optimizer = cell.optimizer(cell.build(64, 0, CPU), 64)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3, 1e-3 / 4}


def test_every_function_can_be_named(module):
    names = [f"model.{name}=theirs.{name}" for name in ("build", "optimizer", "batch", "loss")]
    cell = own(*names)
    model, batch = cell.build(16, 0, CPU), cell.batch(0, CPU)
    assert cell.columns["optimizer"] == "SGD lr=0.1" and not cell.cross_entropy
    assert batch[0].shape == (4, 8)
    assert cell.loss(model, batch) == model(batch[0]).square().mean()


def test_build_may_return_the_optimizer_too(module):
    cell = own("model.build=theirs.both")
    model = cell.build(16, 0, CPU)
    assert cell.optimizer(model, 16).param_groups[0]["params"][0] is next(model.parameters())
    assert cell.columns["optimizer"] == "SGD lr=0.2"
    with pytest.raises(ValueError, match=r"a tuple of 3\. For example return model, torch"):
        OwnCell(lambda width: (build(width), 1, 2), None, sgd, None, WIDTHS)


@pytest.mark.parametrize(("names", "shifted"), [(["x", "targets"], True), (["input_ids", "labels"], False)])
def test_a_batch_goes_to_a_model_by_name(module, names, shifted):
    batch = own("model.build=theirs.build", f"model.inputs=[{','.join(names)}]").batch(0, CPU)
    inputs, targets = batch[names[0]], batch[names[1]]
    assert torch.equal(targets[:, :-1], inputs[:, 1:]) == shifted and torch.equal(targets, inputs) != shifted


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.build=theirs.missing"], r"`model.build` is a dotted name that Python can import.*'theirs.missing'"),
        (["model.build=nowhere.build"], r"`model.build`.*No module named 'nowhere'.*my_package.my_module.build"),
        (
            ["model.build=theirs.build", "model.args.dept=3"],
            r"`model.args` are keyword arguments.*'dept'.*args.depth=4",
        ),
        (["model.build=theirs.build", "model.loss=theirs.los"], r"`model.loss` is a dotted name"),
    ],
)
def test_a_name_that_stands_for_nothing_is_told(module, overrides, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        own(*overrides)


def test_the_current_directory_is_on_the_path(tmp_path, monkeypatch):
    (tmp_path / "somewhere.py").write_text("answer = 42\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert import_dotted("build", "somewhere.answer") == 42


# functions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"build": build(16)},
            r"`build` is a function from width to a new model; got an object of Sequential.*lambda w",
        ),
        ({"build": 3}, r"`build` is a function.*an object of int"),
        ({"optimizer": torch.optim.Adam}, r"got the class Adam.*lambda model: torch.optim.Adam\(model.parameters\(\)"),
        (
            {"optimizer": sgd(build(16))},
            r"`optimizer` is a function from model.*got an object of SGD.*torch.optim.SGD\(",
        ),
        (
            {"loss": nn.CrossEntropyLoss()},
            r"`loss` is a function of model and batch; got an object of CrossEntropyLoss",
        ),
        ({"loss": nn.functional.mse_loss}, r"`loss` is a function of model and batch; got the function mse_loss"),
    ],
)
def test_what_is_no_function_is_told_what_to_write(arguments, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        check(**arguments)


def test_defaults_agree_with_those_of_the_command():
    default = coord_check.__defaults__
    assert ("activation", "delta", "effective_update") in default
    assert tuple(load().kinds) == ("activation", "delta", "effective_update")
    assert check(optimizer=None).records["optimizer"].unique().tolist() == [f"Adam lr={load().optimizer.lr:g}"]
    assert Recorder(build(16), width=16).kinds == ("activation", "effective_update")


def test_it_has_the_name_that_it_is_given():
    made = check(name="two layers")
    assert made.records["model"].unique().tolist() == ["two layers"] and made.config["name"] == "two layers"
    assert made.cell().startswith("two layers · SGD lr=0.1 · widths 16–64 (3)")


# workers and stored runs


def noisy(width):
    return nn.Sequential(nn.Linear(8, width), nn.Dropout(0.5), nn.Linear(width, width), nn.Linear(width, 4))


class Checkpointed(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = build(width)

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.layers, x, use_reentrant=False)


@pytest.mark.parametrize("made", [build, noisy, Checkpointed])
def test_the_numbers_are_the_same_whatever_the_workers(made):
    one, two = (check(build=made, workers=workers).records for workers in (1, 2))
    pd.testing.assert_frame_equal(one, two, check_exact=True)


@pytest.mark.parametrize(("made", "alone"), [(build, False), (noisy, True), (Checkpointed, True)])
def test_training_that_draws_random_numbers_goes_on_one_run_at_a_time(made, alone):
    cell = OwnCell(made, (INPUTS, TARGETS), sgd, None, WIDTHS)
    plan = RunPlan(3, ["activation"], None, CPU, Precision.fp32)
    queue = RunQueue(cell, plan, WIDTHS, [0, 1], workers=2)
    prepare(queue, None, reuse=True)
    assert (queue.workers == 1) == alone


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_dropout_on_a_gpu_draws_from_the_gpus_generator():
    """Which the CPU's does not show; were it overlooked, each step would have a mask of its own."""
    cell = OwnCell(noisy, (INPUTS, TARGETS), sgd, None, WIDTHS)
    device = torch.device("cuda")
    model, batch = cell.build(WIDTHS[0], 0, device), cell.batch(0, device)
    first = cell.loss(model, batch)
    cell.tried_out(False)
    assert cell.draws
    assert torch.equal(first, cell.loss(model, batch))


@pytest.mark.parametrize("draws", [True, False])
def test_what_a_gpus_generator_draws_is_seen_beside_the_cpus(monkeypatch, draws):
    """A stand-in for CUDA's generator, which advances while the loss is computed."""
    state, cuda = [0], torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.tensor([state[0], device.index]))
    monkeypatch.setattr("coordcheck.models.own.generator_states", lambda devices: generator_states({*devices, cuda}))

    def loss(model, batch):
        state[0] += draws
        return model(batch[0]).sum()

    cell = OwnCell(build, (INPUTS, TARGETS), sgd, loss, WIDTHS)
    cell.loss(cell.build(WIDTHS[0], 0, CPU), cell.batch(0, CPU))
    assert cell.drew == draws


@pytest.fixture
def trained(monkeypatch):
    """Width and seed of every run that is trained, not found."""
    runs = []
    train = queue.train_one

    def counted(cell, plan, width, seed, *rest):
        runs.append((width, seed))
        return train(cell, plan, width, seed, *rest)

    monkeypatch.setattr(queue, "train_one", counted)
    return runs


def wider_only(width):
    """The same model at the narrowest width."""
    model = build(width)
    with torch.no_grad():
        model[2].weight.mul_((16 / width) ** 0.5)
    return model


def slower(model):
    return torch.optim.SGD(model.parameters(), lr=0.1 * 16 / model[0].out_features)


def squashed(width):
    return nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))


def other_loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1]) * 2


def test_stored_runs_are_reused_but_for_the_two_that_are_tried_out(tmp_path, trained):
    first = check(store=tmp_path, workers=1)
    assert len(trained) == 9
    trained.clear()
    again = check(store=tmp_path, workers=1, name=None, seeds=4)
    assert sorted(trained) == [(16, 0), (16, 3), (32, 0), (32, 3), (64, 3)]
    both = again.records[again.records["seed"] < 3].reset_index(drop=True)
    pd.testing.assert_frame_equal(first.records, both, check_exact=True)


@pytest.mark.parametrize(
    "change",
    [
        {"build": wider_only},
        {"build": squashed},
        {"optimizer": slower},
        {"loss": other_loss},
        {"batch": (INPUTS + 1, TARGETS)},
        {"steps": 3},
        {"kinds": ("activation",)},
        {"modules": ["0", "2"]},
        {"precision": "bf16"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_nothing_stale_is_reused_when_functions_change(tmp_path, trained, change):
    # the functions have other names, so the same ones are given other names too
    check(store=tmp_path, name="mine", workers=1)
    trained.clear()
    check(store=tmp_path, name="mine", workers=1, **change)
    assert len(trained) == 9


PROJECT = (
    MODULE
    + """
class Scaled(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = build(width)
    def forward(self, x):
        return 1.0 * self.layers(x)
    def initialize(self):
        nn.init.normal_(self.layers[1].weight, std=0.1)

def scaled(width):
    model = Scaled(width)
    model.initialize()
    return model
"""
)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1.0 * self", "1.5 * self"),
        ("std=0.1)", "std=0.2)"),
        ("lr=0.1)", "lr=0.05)"),
        ("return 1.0 * self.layers(x)", "return (2.0 if len(self.layers[1].weight) == 64 else 1.0) * self.layers(x)"),
    ],
    ids=["forward", "init", "optimizer", "the widest alone"],
)
def test_nothing_stale_is_reused_when_a_file_of_the_model_is_edited(module, tmp_path, old, new):
    def key():
        sys.modules.pop("theirs", None)
        importlib.invalidate_caches()
        cell = own("model.build=theirs.scaled", "model.optimizer=theirs.optimizer", "data.batch=1", "data.context=8")
        queue = RunQueue(cell, RunPlan(2, ["activation"], None, CPU, Precision.fp32), WIDTHS, [0])
        prepare(queue, tmp_path, reuse=True)
        return queue.store._path(64, 0)

    def write(text):
        Path("theirs.py").write_text(text)
        shutil.rmtree("__pycache__", ignore_errors=True)  # which goes by the second in which a file was written

    write(PROJECT)
    before = key()
    assert key() == before
    assert old in PROJECT
    write(PROJECT.replace(old, new))
    assert key() != before
    write(PROJECT)
    assert key() == before


# the command


def test_the_example_repository_works_as_it_is_written(tmp_path):
    team = shutil.copytree(EXAMPLE, tmp_path / "team")
    commands = [line for line in (team / "README.md").read_text().splitlines() if line.startswith("coordcheck")]
    assert len(commands) == 4
    for command in commands:
        name, *arguments = command.partition("#")[0].split()
        code, out, err = run(
            team, *arguments, entry={"coordcheck": "check"}.get(name, name.removeprefix("coordcheck-"))
        )
        assert (code, err) == (0, ""), (command, out, err)
    test = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_scaling.py"]
    ran = subprocess.run(test, cwd=team, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0 and "1 passed" in ran.stdout, ran.stdout
