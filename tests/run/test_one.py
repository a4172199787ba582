"""A run that is sent: its cell is made anew, its numbers are the same, and what cannot be sent is named."""

import pickle
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from conftest import plan_of, tiny_cell, tiny_config
from coordcheck.config.schema import Precision
from coordcheck.judge.cure import CureTable
from coordcheck.models.cured import Cured
from coordcheck.models.own import OwnCell
from coordcheck.records.store import RunStore
from coordcheck.run import one
from coordcheck.run.controls import Scaled
from coordcheck.run.one import pack, run_one, train_one
from coordcheck.run.source import source_hash
from coordcheck.run.train import RunPlan

CPU = torch.device("cpu")
PLAN = RunPlan(3, ("activation", "delta"), None, CPU, Precision.fp32)
XY = torch.randn(16, 8), torch.randint(0, 4, (16,))
CURE = {"version": 1, "base_width": 32, "entries": [{"parameters": ["lm_head.weight"], "role": "readout", "lr": -1}]}


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def own(build, batch=XY, optimizer=adam, loss=None):
    return OwnCell(build, batch, optimizer, loss, (16, 32, 64), name="mine")


def net(width):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 4))


CELLS = {
    "of this package": lambda: tiny_cell("widths=[16,32,64]", "model.head_size=8", "base_width=32"),
    "in SP": lambda: tiny_cell("widths=[16,32,64]", "model.head_size=8", "base_width=32").in_sp(),
    "scaled": lambda: Scaled(tiny_cell("widths=[16,32,64]", "model.head_size=8", "base_width=32"), 16, weights=0.5),
    "cured": lambda: Cured(
        tiny_cell("widths=[16,32,64]", "model.head_size=8", "base_width=32"), CureTable.from_dict(CURE)
    ),
    "of a user": lambda: own(net),
    "of a lambda": lambda: own(lambda width: net(width), lambda seed: tuple(t[seed:] for t in XY), lambda m: adam(m)),
    "with its optimizer": lambda: own(lambda width: (model := net(width), adam(model))),
}


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("batch_seed", [None, 3])
def test_the_numbers_are_the_same_bit_for_bit_where_the_cell_is_made_anew(kind, batch_seed):
    cell = CELLS[kind]()
    cell.learn_roles({"0.weight": "projection"} if "user" in kind else {})
    packed = pack(cell, PLAN, batch_seed, None)
    here = train_one(cell, PLAN, 32, 1, batch_seed).records
    sent = run_one(packed, 32, 1)
    assert sent.error == ""
    pd.testing.assert_frame_equal(here, sent.records, check_exact=True)
    assert here.attrs == sent.records.attrs


def test_what_is_sent_of_a_configured_cell_is_its_configuration_and_no_text():
    cell = tiny_cell()
    assert len(cell._corpus.tokens) > 100_000
    assert len(pack(cell, PLAN, None, None)) < 30_000


def test_a_run_meets_others_in_the_store_under_their_key(tmp_path):
    cell, store = CELLS["of this package"](), RunStore(tmp_path / "runs", {"a": 1})
    packed = pack(cell, PLAN, None, store)
    first = run_one(packed, 32, 0)
    pd.testing.assert_frame_equal(store.get(32, 0), first.records, check_exact=True)
    store.put(32, 1, first.records.assign(seed=1))
    assert (run_one(packed, 32, 1).records["l1"] == first.records["l1"]).all()  # found, and not done again


def test_the_stores_directory_is_that_of_the_process_that_asks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = RunStore(Path("runs"), {})
    assert pickle.loads(pickle.dumps(store)).directory == tmp_path / "runs"  # also where this directory is not
    packed = pack(CELLS["of this package"](), PLAN, None, store)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run_one(packed, 16, 0).error == ""
    assert len([*(tmp_path / "runs").glob("*.parquet")]) == 1
    assert Path.cwd() == tmp_path / "elsewhere"


def breaks(width):
    if width == 32 and torch.initial_seed() == 71:
        raise KeyError("no such size")
    return net(width)


def test_what_a_run_raises_comes_back_in_words_with_its_place():
    outcome = run_one(pack(own(breaks), PLAN, None, None), 32, 71)
    assert outcome.records is None
    assert outcome.error.startswith("`build` raises KeyError: 'no such size' (test_one.py:")
    assert "Traceback" in outcome.trace
    assert pickle.loads(pickle.dumps(outcome)).error == outcome.error


def test_a_run_without_memory_is_data_there_too():
    def build(width):
        if torch.initial_seed() == 72:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return net(width)

    outcome = run_one(pack(own(build), PLAN, None, None), 32, 72)
    assert (outcome.records, outcome.error) == (None, "")


LOCK = threading.Lock()


@pytest.mark.parametrize("part", ["build", "optimizer", "batch", "loss"])
def test_what_cannot_be_sent_is_named(part):
    lock = LOCK

    def holds(function):
        def held(*args):
            with lock:
                return function(*args)

        return held

    parts = {"build": net, "optimizer": adam, "batch": lambda seed: XY, "loss": lambda m, b: m(b[0]).square().mean()}
    cell = own(**{**parts, part: holds(parts[part])})
    for each in (cell, Scaled(cell, 16, rates=1.0)):
        with pytest.raises(
            ValueError, match=rf"^`{part}` cannot be sent to another process .*lock.*executor='threads'"
        ):
            pack(each, PLAN, None, None)


def test_other_software_and_another_text_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(one, "software", lambda: {"torch": "2.6.0", "code": "a"})
    packed = pack(CELLS["of this package"](), PLAN, None, None)
    monkeypatch.setattr(one, "software", lambda: {"torch": "2.13.0", "code": "a"})
    assert "has torch 2.13.0 for 2.6.0, so its records would not be the same" in run_one(packed, 16, 0).error
    (text := tmp_path / "book.txt").write_text("to be or not to be " * 999)
    cell = tiny_cell("data=file", f"data.path={text}")
    packed = pack(cell, plan_of(tiny_config()), None, None)
    text.write_text("whether it is nobler " * 999)
    assert "has another text than the process that asks" in run_one(packed, 64, 0).error


def test_arithmetic_goes_along():
    torch.set_float32_matmul_precision("high")
    torch.set_default_dtype(torch.float64)
    try:
        cell = own(net, lambda seed: (torch.ones(16, 8), XY[1]))
        packed, here = pack(cell, PLAN, None, None), train_one(cell, PLAN, 32, 0, None).records
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.set_default_dtype(torch.float32)
    try:
        pd.testing.assert_frame_equal(run_one(packed, 32, 0).records, here, check_exact=True)
        assert (torch.get_default_dtype(), torch.get_float32_matmul_precision()) == (torch.float64, "high")
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.set_default_dtype(torch.float32)


def test_a_module_that_lies_nowhere_else_is_named(tmp_path, monkeypatch):
    (tmp_path / "my_own_net.py").write_text("from torch import nn\ndef build(w): return nn.Linear(8, w)\n")
    monkeypatch.syspath_prepend(tmp_path)
    import my_own_net

    packed = pack(own(my_own_net.build), PLAN, None, None)
    code = "import sys; from coordcheck.run.one import run_one; print(run_one(sys.stdin.buffer.read(), 16, 0).error)"
    (tmp_path / "my_own_net.py").unlink()
    done = subprocess.run([sys.executable, "-c", code], input=packed, capture_output=True, timeout=120, check=True)
    assert "cannot import what the model is made of (ModuleNotFoundError: No module named 'my_own_net'" in str(
        done.stdout
    )


def test_what_was_installed_for_a_user_is_none_of_the_users_source(tmp_path, monkeypatch):
    for place in ("home/lib/site-packages", "home/mine"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / f"{place[5:8]}_module.py").write_text("")
        monkeypatch.syspath_prepend(tmp_path / place)
    before = source_hash()
    import_module("lib_module")
    assert source_hash() == before
    import_module("min_module")
    assert source_hash() != before
