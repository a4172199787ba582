"""Stored runs: verified when they are read; what is damaged is said and done again."""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

from conftest import plan_of, power, synthetic, tiny_cell
from coordcheck.records.store import RunStore
from coordcheck.run.queue import RunQueue


def run_of(width, seed=0, exponent=0.1):
    frame = synthetic({("fc", "activation", 0): power(exponent)}, widths=(width,), seeds=1)
    return frame.assign(seed=seed)


@pytest.fixture
def store(tmp_path):
    store = RunStore(tmp_path, {})
    for width in (64, 128):
        store.put(width, 0, run_of(width))
    return store


def again(store):
    return RunStore(store.directory, {})


def test_what_holds_is_read_as_it_was(store, capsys):
    frame = run_of(64)
    frame.attrs["classes"] = 4
    store.put(64, 0, frame)
    found = again(store).get(64, 0)
    pd.testing.assert_frame_equal(found, frame, check_exact=True)
    assert found.attrs == {"classes": 4} and frame.attrs == {"classes": 4}
    assert capsys.readouterr().err == ""


def overwrite(store, **columns):
    """A frame with a right footer and the checksum of before, as an edit would leave it."""
    path = store._path(64, 0)
    frame = pd.read_parquet(path)
    frame.assign(**columns).to_parquet(path)


DAMAGE = {
    "another run": (lambda s: shutil.copy(s._path(128, 0), s._path(64, 0)), "holds another run"),
    "another value": (lambda s: overwrite(s, l1=1.0), "values of its checksum"),
    "another seed": (lambda s: overwrite(s, seed=5), "values of its checksum"),
    "another type": (lambda s: overwrite(s, count=1.5), "values of its checksum"),
    "a column more": (lambda s: overwrite(s, more=1), "stand"),
    "no checksum": (lambda s: run_of(64).to_parquet(s._path(64, 0)), "values of its checksum"),
    "negative": (lambda s: overwrite(s, l1=-1.0), "not negative"),
    "half": (lambda s: os.truncate(s._path(64, 0), 900), "no parquet file"),
    "empty": (lambda s: os.truncate(s._path(64, 0), 0), "no parquet file"),
    "garbage": (lambda s: s._path(64, 0).write_bytes(b"PAR1" * 99), "no parquet file"),
    "directory": (lambda s: (s._path(64, 0).unlink(), s._path(64, 0).mkdir()), "it is a directory"),
    "pipe": (lambda s: (s._path(64, 0).unlink(), os.mkfifo(s._path(64, 0))), "it is a pipe"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("damage", DAMAGE)
def test_what_does_not_hold_is_said_once_and_counts_as_not_there(store, capsys, damage):
    harm, rule = DAMAGE[damage]
    harm(store)
    reader = again(store)
    assert (64, 0) not in reader
    assert reader.get(64, 0) is None
    assert (128, 0) in reader
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("coordcheck: stored run of width 64, seed 0 is damaged and will be done again: ")
    assert rule in line and str(store._path(64, 0)) in line


@pytest.mark.timeout(20)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_done_again_and_kept_where_it_can_be(store, capsys, damage):
    DAMAGE[damage][0](store)
    again(store).put(64, 0, run_of(64))
    capsys.readouterr()
    found = again(store).get(64, 0)
    if damage in ("directory", "pipe"):
        assert found is None
    else:
        pd.testing.assert_frame_equal(found, run_of(64), check_exact=True)


def test_a_check_goes_on_over_damaged_runs_with_the_same_numbers(tmp_path, capsys):
    def queue(store):
        cell = tiny_cell("steps=2")
        return RunQueue(cell, plan_of(cell.config), [64, 128, 256], [0], store=store)

    first = queue(RunStore(tmp_path, {})).finish().records
    store = RunStore(tmp_path, {})
    os.truncate(store._path(64, 0), 1000)
    shutil.copy(store._path(128, 0), store._path(256, 0))
    second = queue(store).finish().records
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert [width for width in (64, 128, 256) if (width, 0) in RunStore(tmp_path, {})] == [64, 128, 256]


def test_those_who_write_a_run_at_a_time_leave_it_whole_for_whoever_reads(tmp_path, capsys):
    """Without a lock: the last one wins, and no reader sees half of it."""
    run, end = run_of(64), threading.Event()
    RunStore(tmp_path, {}).put(64, 0, run)

    def write():
        while not end.is_set():
            RunStore(tmp_path, {}).put(64, 0, run)

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write) for _ in range(2)]
        for _ in range(30):
            pd.testing.assert_frame_equal(RunStore(tmp_path, {}).get(64, 0), run, check_exact=True)
        end.set()
        assert [writer.result() for writer in writers] == [None, None]
    assert capsys.readouterr().err == ""
    assert len([*tmp_path.iterdir()]) == 1
