"""Runs: the same numbers whatever the workers, nothing lost to a fault, finished ones reused."""

import os
import re

import pandas as pd
import pytest
import torch

from conftest import plan_of, power, synthetic, tiny_cell
from coordcheck import check as checks
from coordcheck.records.files import write_atomically
from coordcheck.records.store import RunStore, code_hash
from coordcheck.run import queue as sweep
from coordcheck.run.controls import Scaled
from coordcheck.run.queue import RunQueue, announce, share_cores
from coordcheck.run.theirs import is_out_of_memory

CPU = torch.device("cpu")
WIDTHS, SEEDS = (64, 128, 256), (0, 1)


def queue(cell, **kwargs):
    return RunQueue(cell, plan_of(cell.config), kwargs.pop("widths", WIDTHS), kwargs.pop("seeds", SEEDS), **kwargs)


def breaking(cell, width, error):
    """The cell, failing at one width."""
    build = cell.build

    def broken(at, seed, device):
        if at == width:
            raise error
        return build(at, seed, device)

    cell.build = broken
    return cell


@pytest.mark.parametrize("overrides", [[], ["embedding=tied", "readout=constant", "precision=bf16"]])
def test_same_numbers_bit_for_bit_whatever_the_workers_and_the_order(overrides):
    one = queue(tiny_cell(*overrides), workers=1).finish().records
    four = queue(tiny_cell(*overrides), workers=4).finish().records
    reordered = queue(tiny_cell(*overrides), workers=2, widths=WIDTHS[::-1], seeds=SEEDS[::-1]).finish().records
    pd.testing.assert_frame_equal(one, four, check_exact=True)
    pd.testing.assert_frame_equal(one, reordered, check_exact=True)


def test_seeds_differ_in_weights_and_batch_and_widths_share_their_seeds_batch():
    cell, seen = tiny_cell(), []
    loss = cell.loss

    def watched(model, batch):
        seen.append((model.wte.weight.shape[1], batch[0].numpy().tobytes()))
        return loss(model, batch)

    cell.loss = watched
    records = queue(cell).finish().records
    by_width = {width: {batch for at, batch in seen if at == width} for width in WIDTHS}
    assert len(by_width[64]) == len(SEEDS)
    assert by_width[64] == by_width[128] == by_width[256]
    embedded = records[(records.module == "wpe") & (records.step == 0) & (records.width == 64)]
    assert embedded.l1.nunique() == len(SEEDS)


def test_the_cells_columns_come_first():
    records = queue(tiny_cell(), seeds=(0,)).finish().records
    assert list(records.columns[:6]) == ["model", "parametrization", "embedding", "readout", "optimizer", "width"]
    assert records["optimizer"].unique().tolist() == ["adam lr=0.001"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.90 GB, other allocations: 1.02 MB)"),
        MemoryError(),
    ],
)
def test_a_run_without_memory_is_named_and_loses_nothing_else(error):
    done = queue(breaking(tiny_cell(), 256, error), workers=2).finish()
    assert done.skipped == ["width 256 skipped: out of memory"]
    assert sorted(done.records.width.unique()) == [64, 128]


def test_no_memory_at_all_is_an_error():
    cell = tiny_cell()
    cell.build = lambda *_: (_ for _ in ()).throw(MemoryError())
    with pytest.raises(ValueError, match=r"no run of widths \[64, 128, 256\] fits into the memory of cpu"):
        queue(cell).finish()


def test_another_error_is_not_swallowed():
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        queue(breaking(tiny_cell(), 128, RuntimeError("shapes cannot be multiplied"))).finish()


def test_a_diverged_run_is_data():
    done = queue(tiny_cell("optimizer.lr=1e30", "readout=constant")).finish()
    assert done.skipped == []
    assert (done.records[done.records.step == 0].nonfinite == 0).all()
    assert (done.records[(done.records.step == 3) & (done.records.module == "lm_head")].nonfinite > 0).all()


def test_an_interrupted_check_keeps_its_finished_runs_and_goes_on_from_there(tmp_path):
    store = RunStore(tmp_path, {"a": 1})
    with pytest.raises(KeyboardInterrupt):
        queue(breaking(tiny_cell(), 64, KeyboardInterrupt()), store=store).finish()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(kept) == 4  # widths 256 and 128, two seeds each: the longest run first
    resumed = queue(tiny_cell(), store=store).finish().records
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    pd.testing.assert_frame_equal(resumed, queue(tiny_cell()).finish().records, check_exact=True)


def test_stored_runs_are_keyed_by_what_determines_their_numbers(tmp_path):
    frame = synthetic({("fc", "activation", 0): power(0.0)}, widths=(64,), seeds=1)
    RunStore(tmp_path, {"lr": 0.1}).put(64, 0, frame)
    assert RunStore(tmp_path, {"lr": 0.1}).get(64, 0) is not None
    assert RunStore(tmp_path, {"lr": 0.2}).get(64, 0) is None
    assert RunStore(tmp_path, {"lr": 0.1}).get(128, 0) is None
    assert RunStore(tmp_path, {"lr": 0.1}).get(64, 1) is None
    assert RunStore(tmp_path, {"lr": 0.1}, reuse=False).get(64, 0) is None


def stored(cell, directory):
    """Where the narrowest run of a cell is kept."""
    config = cell.cell.config if isinstance(cell, Scaled) else cell.config
    runs = RunQueue(cell, plan_of(config), WIDTHS, SEEDS)
    checks.prepare(runs, directory, reuse=True)
    return runs.store._path(64, 0)


def test_what_does_not_change_the_numbers_does_not_change_the_key(tmp_path):
    def key(*overrides):
        return stored(tiny_cell(*overrides), tmp_path)

    assert key() == key("seeds=9", "widths=[64,128,512]", "workers=3", "name=mine", "gate.confidence=0.9")
    assert len({key(), key("optimizer.lr=0.1"), key("model.depth=3"), key("steps=2"), key("precision=bf16")}) == 5


def test_a_control_is_stored_apart_from_its_cell(tmp_path):
    cell = tiny_cell()
    cells = [cell, cell.in_sp(), Scaled(cell, 64, weights=0.5), Scaled(cell, 128, weights=0.5)]
    assert len({stored(each, tmp_path) for each in cells}) == 4


def test_a_width_that_ran_out_of_memory_at_one_seed_is_left_out_as_a_whole(tmp_path):
    cell, store = tiny_cell(), RunStore(tmp_path, {})
    build = cell.build

    def broken(width, seed, device):
        if (width, seed) == (128, 1):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return build(width, seed, device)

    cell.build = broken
    done = queue(cell, store=store).finish()
    assert done.skipped == ["width 128 skipped: out of memory"]
    assert sorted(done.records.width.unique()) == [64, 256]
    assert store.get(128, 0) is not None


def test_the_code_is_part_of_the_key(monkeypatch, tmp_path):
    before = RunStore(tmp_path, {})._path(64, 0)
    monkeypatch.setattr("coordcheck.records.store.code_hash", lambda rooms: "other")
    assert RunStore(tmp_path, {})._path(64, 0) != before
    assert len(code_hash()) == 64


def test_a_file_that_is_being_written_is_hidden(tmp_path):
    names = []
    write_atomically(tmp_path / "run.parquet", lambda temporary: names.append(temporary.name))
    assert [(name[0], name[-8:]) for name in names] == [(".", ".parquet")]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "verdict.json"
    write_atomically(path, lambda temporary: temporary.write_text("old"))

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(ValueError, match=r"verdict.json cannot be written \(disk full\). Choose a directory"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["verdict.json"]


@pytest.mark.parametrize(
    ("cores", "seeds", "shared"),
    [(2, 5, (2, 1)), (2, 1, (1, 2)), (4, 3, (4, 1)), (16, 5, (5, 3)), (1, 3, (1, 1)), (8, 3, (4, 2))],
)
def test_the_runs_of_a_width_share_the_cores(monkeypatch, cores, seeds, shared):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert share_cores(CPU, seeds) == shared
    assert share_cores(torch.device("cuda"), seeds)[0] == 1


def test_the_first_runs_are_measured_and_count_as_runs(tmp_path):
    store = RunStore(tmp_path, {})
    one = queue(tiny_cell(), store=store)
    assert len(one.left()) == 6
    assert set(one.measure()) == {64, 128}
    assert one.left() == [(256, 0), (256, 1), (128, 0)]
    pd.testing.assert_frame_equal(one.finish().records, queue(tiny_cell()).finish().records, check_exact=True)
    assert queue(tiny_cell(), store=store).measure() == {}  # nothing is left


def test_a_long_sweep_says_before_it_starts_what_it_will_cost_and_a_short_one_nothing(capsys, monkeypatch):
    announce([queue(tiny_cell()), queue(tiny_cell().in_sp(), seeds=(0,))])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sweep, "LONG", 0.0)
    monkeypatch.setattr(sweep, "available_memory", lambda _: 3 * 2**30)
    monkeypatch.setattr(sweep, "useful_workers", lambda seconds, narrowest: 8)
    queues = [queue(tiny_cell(), workers=2), queue(tiny_cell().in_sp(), seeds=(0,), workers=2)]
    announce(queues)
    said = capsys.readouterr().err
    assert re.fullmatch(r"about \d+ s for 6 runs on cpu, 2 at a time; the widest needs about 0\.0 of 3 GiB\n", said), (
        said
    )
    assert [q.workers for q in queues] == [2, 2]


def test_runs_that_would_wait_for_the_interpreter_go_on_one_by_one(monkeypatch):
    asked = []
    monkeypatch.setattr(sweep, "useful_workers", lambda seconds, narrowest: asked.append((seconds, narrowest)) or 1)
    waiting = queue(tiny_cell(), workers=8)
    monkeypatch.setattr(waiting, "measure", lambda: {64: 0.25, 128: 0.5})
    announce([waiting])
    assert waiting.workers == 1
    ((seconds, narrowest),) = asked
    assert narrowest == 0.25
    assert len(seconds) == 6
    assert min(seconds) == 0.25


def test_no_more_runs_go_on_at_a_time_than_memory_has_room_for(monkeypatch):
    cell = tiny_cell()
    widest = sum(p.nbytes for p in cell.on_meta(256).parameters())
    monkeypatch.setattr(sweep, "available_memory", lambda _: 10 * widest)
    monkeypatch.setattr(sweep, "useful_workers", lambda seconds, narrowest: 8)
    crowded = queue(cell, workers=8)
    announce([crowded])
    # weights, Adam's two, gradients or activations: at least four times the weights, of which 8 have room
    assert crowded.workers <= 2
    assert sorted(crowded.finish().records.width.unique()) == [64, 128, 256]


def test_a_user_model_whose_constructor_needs_memory_is_estimated_too(capsys, monkeypatch):
    def build(width):
        hidden = torch.nn.Linear(width, width)
        hidden.bias.data.fill_(float(hidden.weight.detach().sum().item()) * 0)
        return torch.nn.Sequential(torch.nn.Linear(8, width), hidden, torch.nn.Linear(width, 4))

    monkeypatch.setattr(sweep, "LONG", 0.0)
    batch = torch.randn(16, 8), torch.randint(0, 4, (16,))
    checks.coord_check(build, batch, widths=(16, 32, 64), seeds=2, device="cpu")
    # of 12 four were tried out and two measured
    assert re.match(r"about \d+ s for 6 runs on cpu(, 2 at a time)?;", said := capsys.readouterr().err), said
