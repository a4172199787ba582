"""Runs in other processes: the same numbers, a worker that dies costs its own run, Ctrl-C keeps what is done."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from conftest import plan_of, tiny_cell
from coordcheck import coord_check
from coordcheck.check import prepare
from coordcheck.config.call import executor_of
from coordcheck.config.schema import Precision
from coordcheck.judge.trial import trials_of
from coordcheck.models.own import OwnCell
from coordcheck.records.store import RunStore
from coordcheck.run import executors
from coordcheck.run import queue as queues
from coordcheck.run.executors import Engine, Processes, devices_of, engine_of
from coordcheck.run.queue import RunQueue, announce
from coordcheck.run.train import RunPlan

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLAN = RunPlan(2, ("activation", "delta"), None, CPU, Precision.fp32)
WIDTHS, SEEDS = (16, 32, 64), (0, 1)
XY = torch.randn(16, 8), torch.randint(0, 4, (16,))
SMALL = ["widths=[16,32,64]", "model.head_size=8", "base_width=16", "steps=2"]


def engine(name, folder=None, workers=2, device=CPU, **args):
    return engine_of(executor_of({"name": name, **args}), device, folder, workers)


def own(build=None):
    def net(width):
        return nn.Sequential(nn.Linear(8, width), nn.Dropout(0.1), nn.Linear(width, 4))

    return OwnCell(build or net, XY, lambda m: torch.optim.Adam(m.parameters(), lr=1e-2), None, WIDTHS, name="mine")


def queue(cell, engine=None, **options):
    # threads would share the generator of dropout's masks
    return RunQueue(cell, PLAN, WIDTHS, SEEDS, workers=1 if engine is None else 2, engine=engine, **options)


def test_a_worker_that_dies_costs_its_own_run_which_is_tried_once_more(tmp_path):
    main = os.getpid()

    def build(width):
        if os.getpid() != main and width == 64 and torch.initial_seed() == 1:
            (tmp_path / f"killed-{len([*tmp_path.glob('killed*')])}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return nn.Sequential(nn.Linear(8, width), nn.Dropout(0.1), nn.Linear(width, 4))

    store = RunStore(tmp_path / "runs", {})
    with engine("processes") as processes:
        done = queue(own(build), processes, store=store).finish()
    (sentence,) = done.skipped
    assert sentence.startswith("run of width 64, seed 1 lost: its worker died 2 times (TerminatedWorkerError: ")
    assert "SIGKILL" in sentence
    assert len([*tmp_path.glob("killed*")]) == 2
    here = queue(own()).finish().records
    expected = here[~((here["width"] == 64) & (here["seed"] == 1))].reset_index(drop=True)
    pd.testing.assert_frame_equal(done.records, expected, check_exact=True)
    assert [run for run in queue(own()).runs() if run not in store] == [(64, 1)]


def test_ctrl_c_ends_the_processes_keeps_what_is_done_and_goes_on_from_there(tmp_path, monkeypatch):
    main, store = os.getpid(), RunStore(tmp_path / "runs", {})

    def build(width):
        if os.getpid() != main and width < 64 and not (tmp_path / "go on").exists():
            (tmp_path / f"pid-{os.getpid()}").touch()
            time.sleep(60)
        return nn.Sequential(nn.Linear(8, width), nn.Dropout(0.1), nn.Linear(width, 4))

    def interrupt(progress, bar, runs):
        if len([*tmp_path.glob("pid-*")]) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, engine("processes") as processes:
        patch.setattr(queues, "_tell", interrupt)
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            queue(own(build), processes, store=store).finish()
        assert time.monotonic() - start < 50
    for path in tmp_path.glob("pid-*"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name[4:]), 0)
    assert [run for run in queue(own()).runs() if run in store] == [(64, 0), (64, 1)]
    (tmp_path / "go on").touch()
    resumed = queue(own(build), store=store).finish().records
    pd.testing.assert_frame_equal(resumed, queue(own()).finish().records, check_exact=True)


def test_each_process_sees_one_device_and_leaves_ctrl_c_to_who_began_it():
    def visible():  # sent by value, so that its process imports next to nothing
        time.sleep(0.3)
        return os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid(), signal.getsignal(signal.SIGINT) == signal.SIG_IGN

    with Processes([{"CUDA_VISIBLE_DEVICES": name} for name in ("3", "GPU-7")]) as pool:
        futures = [pool.submit(visible) for _ in range(6)]
        seen = {future.result() for future in futures}
    assert {device for device, _, _ in seen} == {"3", "GPU-7"}
    assert len({pid for _, pid, _ in seen}) == 2
    assert all(ignored for _, _, ignored in seen)


def test_a_process_that_holds_much_memory_goes_on():
    def hold():
        sys.kept = b"x" * 400_000_000
        time.sleep(1.1)  # loky looks once a second
        return os.getpid()

    with Processes([{}]) as pool:
        pids = [pool.submit(call).result() for call in (os.getpid, hold, hold, os.getpid)]
    assert len({*pids}) == 1


def test_a_process_does_not_outlive_the_one_that_began_it():
    code = (
        "import os, time; from coordcheck.run.executors import Processes; p = Processes([{}])\n"
        "print(p.submit(os.getpid).result(), flush=True); p.submit(time.sleep, 200)\n"
        "time.sleep(1); os.kill(os.getpid(), 9)"
    )
    out = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    pid = int(out.stdout.readline())
    assert out.wait(60) == -signal.SIGKILL
    out.stdout.close()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
        time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("device", "environment", "expected"),
    [
        ("cpu", None, []),
        ("cuda", None, ["0", "1", "2"]),
        ("cuda:1", None, ["1"]),
        ("cuda", "4,6,7", ["4", "6", "7"]),
        ("cuda:2", "4,6,7", ["7"]),
        ("cuda", "GPU-8932f937,MIG-1,2", ["GPU-8932f937", "MIG-1", "2"]),
    ],
)
def test_the_devices_are_those_that_this_process_may_use(monkeypatch, device, environment, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if environment:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", environment)
    assert devices_of(torch.device(device)) == expected


def test_auto_is_processes_where_there_are_several_gpus_and_else_threads(monkeypatch):
    with engine("auto") as here, engine("threads") as threads:
        assert here is None and threads is None
    monkeypatch.setattr(executors, "devices_of", lambda device: ["0", "1", "2"])
    with engine("auto", device=CUDA) as several:
        assert several.devices == 3 and several.automatic and not several.remote
    monkeypatch.setattr(executors, "devices_of", lambda device: ["0"])
    with engine("auto", device=CUDA) as one:
        assert one is None


def test_what_cannot_be_sent_stays_here_where_nobody_asked_for_processes(monkeypatch, capsys):
    lock = threading.Lock()

    def build(width):
        with lock:
            return nn.Linear(8, width)

    monkeypatch.setattr(executors, "devices_of", lambda device: ["0", "1"])
    with engine("auto") as several:
        records = queue(own(build), several).finish().records
    assert capsys.readouterr().err.startswith("runs go on one by one on one GPU, since `build` cannot be sent")
    assert len(records.groupby(["width", "seed"])) == 6
    with engine("processes") as asked, pytest.raises(ValueError, match="`build` cannot be sent to another process"):
        queue(own(build), asked).finish()


@pytest.mark.parametrize(
    ("asked", "room", "workers"),
    [(6, 100, 6), (6, 6, 2), (6, 11, 4), (6, 0.1, 2), (None, 100, 8), (None, 16, 6), (None, 6, 2), (None, 0, 8)],
)
def test_as_many_runs_go_on_at_each_device_as_its_memory_has_room_for(monkeypatch, asked, room, workers):
    """A run takes 3 GiB and its process 1; of 8 cores each of two devices gets four, unless `workers` says less."""
    cell = tiny_cell(*SMALL)
    runs = RunQueue(cell, plan_of(cell.config, "cuda"), WIDTHS, (0, 1, 2), workers=asked or 2)
    monkeypatch.setattr(executors, "devices_of", lambda device: ["0", "1"])
    monkeypatch.setattr(executors, "cores", lambda: 8)
    monkeypatch.setattr(runs, "measure", lambda: {16: 1.0, 32: 1.0})
    monkeypatch.setattr(runs, "estimate", lambda measured: ([1.0] * 9, 3 * 2**30))
    monkeypatch.setattr(queues, "available_memory", lambda device: room * 2**30)
    with engine_of(executor_of("processes"), runs.plan.device, None, asked) as several:
        runs.engine = several
        announce([runs])
    assert runs.workers == workers


def test_processes_are_begun_once_for_all_stages_of_a_check(monkeypatch):
    """The runs and their control, the trial of what is advised: a process that has torch in it serves all."""

    def build(width):
        layers = nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
        return nn.Sequential(*layers)

    def adam(model):
        return torch.optim.Adam(model.parameters(), lr=1e-2)

    monkeypatch.setattr("coordcheck.check.trials_of", trials_of)
    begun, made = [], []
    start, spread = executors._processes, queues.spread
    monkeypatch.setattr(executors, "_processes", lambda *given: begun.append(given) or start(*given))
    monkeypatch.setattr(queues, "spread", lambda *given: made.append(given) or spread(*given))
    options = {"widths": (16, 64, 256), "seeds": 2, "device": "cpu", "steps": 2, "expect": "mup", "workers": 2}
    check = coord_check(build, XY, executor="processes", optimizer=adam, **options)
    assert check.verdict == "fail" and check.findings[0].tried
    assert (len(begun), len(made) > 2) == (1, True)


def test_the_key_of_a_run_knows_the_type_of_its_device_and_not_its_index(tmp_path):
    def key(device):
        cell = tiny_cell(*SMALL)
        runs = RunQueue(cell, plan_of(cell.config, device), WIDTHS, SEEDS)
        prepare(runs, tmp_path, reuse=True)
        return runs.store._path(16, 0)

    assert key("cuda") == key("cuda:0") == key("cuda:3") != key("cpu")


def test_a_run_that_raises_in_another_process_ends_the_check_in_its_words():
    def build(width):
        if width == 64 and torch.initial_seed() == 1:
            raise KeyError("no such size")
        return nn.Linear(8, width)

    said = r"`build` raises KeyError: 'no such size'.*smallest width"
    caught = pytest.raises(ValueError, match=said)
    with ThreadPoolExecutor(2) as mine, engine_of(mine, CPU, None, None) as foreign, caught as info:
        queue(own(build), foreign).finish()
    assert "Traceback" in info.value.__notes__[0]


def test_any_executor_of_concurrent_futures_will_do_and_is_left_open(tmp_path):
    with ThreadPoolExecutor(2) as anybodys:
        options = {"widths": WIDTHS, "seeds": 2, "device": "cpu", "control": False, "audit": False}
        build, batch = own()._function, XY
        there = coord_check(build, batch, executor=anybodys, **options)
        assert anybodys.submit(int).result() == 0
    pd.testing.assert_frame_equal(there.records, coord_check(build, batch, **options).records, check_exact=True)


def test_where_no_run_comes_back_the_reason_is_told():
    class Dying(ThreadPoolExecutor):
        def submit(self, call, /, *args):
            return super().submit(self.die)

        def die(self):
            raise BrokenExecutor("node lost")

    said = r"no run came back: .*BrokenExecutor: node lost.*executor=threads"
    with Dying(1) as mine, engine_of(mine, CPU, None, None) as foreign, pytest.raises(ValueError, match=said):
        queue(own(), foreign).finish()


# locally, submitit begins a process for each of the many runs of auto
@pytest.mark.parametrize(("name", "seeds"), [("submitit", 2), ("ray", "auto"), ("dask", "auto")])
@pytest.mark.slow
def test_engines_make_the_same_numbers_and_meet_in_the_store(name, seeds, tmp_path):
    pytest.importorskip(name)
    args = {"submitit": {"cluster": "local"}, "ray": {"num_cpus": 2}, "dask": {"dashboard_address": ":0"}}[name]
    options = {"widths": WIDTHS, "seeds": seeds, "device": "cpu", "control": False, "audit": False, "steps": 2}
    options |= {"budget": 1.0, "workers": 2}
    build, batch = own()._function, XY
    there = coord_check(build, batch, executor={"name": name, **args}, store=tmp_path / "there", **options)
    here = coord_check(build, batch, store=tmp_path / "here", **options)
    pd.testing.assert_frame_equal(there.records, here.records, check_exact=True)
    stored = [{path.name for path in (tmp_path / place).glob("*.parquet")} for place in ("there", "here")]
    assert stored[0] == stored[1] and stored[0]


@pytest.mark.parametrize("name", ["submitit", "ray", "dask"])
@pytest.mark.slow
def test_a_worker_of_an_engine_that_dies_costs_its_own_run(name, tmp_path):
    pytest.importorskip(name)
    args = {"submitit": {"cluster": "local"}, "ray": {"num_cpus": 2}, "dask": {"dashboard_address": ":0"}}[name]
    main = os.getpid()

    def build(width):
        if os.getpid() != main and width == 32 and torch.initial_seed() == 0:
            (tmp_path / f"killed-{len([*tmp_path.glob('killed*')])}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return nn.Sequential(nn.Linear(8, width), nn.Linear(width, 4))

    with engine(name, tmp_path, **args) as there:
        done = RunQueue(own(build), PLAN, WIDTHS, [0], workers=2, engine=there).finish()
    (sentence,) = done.skipped
    assert sentence.startswith("run of width 32, seed 0 lost: its worker died 2 times (")
    assert len([*tmp_path.glob("killed*")]) == 2
    assert sorted(done.records["width"].unique()) == [16, 64]


@pytest.mark.parametrize("name", ["submitit", "ray", "dask"])
def test_an_engine_that_is_not_installed_is_one_sentence(name, monkeypatch, tmp_path):
    for module in ("submitit", "ray", "dask"):
        monkeypatch.setitem(sys.modules, module, None)
    with (
        engine(name, tmp_path) as there,
        pytest.raises(ValueError, match=rf"executor={name} needs {name}.*coordcheck\[{name}\]"),
    ):
        queue(own(), there).finish()


def test_submitit_needs_a_directory_that_all_machines_see_and_slurm():
    said = r"executor='submitit' needs a directory.*For example store="
    with pytest.raises(ValueError, match=said), engine("submitit"):
        pass


def test_without_slurm_submitit_says_how_to_try_it(tmp_path):
    pytest.importorskip("submitit")
    with engine("submitit", tmp_path) as there, pytest.raises(ValueError, match=r"cannot start.*cluster=local"):
        queue(own(), there).finish()


def test_a_cluster_may_have_the_gpu_that_this_machine_lacks(tmp_path):
    """Audited and planned here, nothing is trained here."""
    given = []

    class Cluster(ThreadPoolExecutor):
        def submit(self, call, /, *args):
            given.append(args)
            return super().submit(executors.Outcome, None, error="there is no GPU in this test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executors, "Ray", lambda on_gpu: Cluster(1) if on_gpu else None)
        with pytest.raises(ValueError, match="there is no GPU in this test"):
            coord_check(own()._function, XY, widths=WIDTHS, seeds=2, device="cuda", executor="ray", store=tmp_path)
    assert given


def test_the_progress_bar_shows_what_all_workers_are_at():
    shown = []

    class Bar:
        def update(self, bar, run):
            shown.append(run)

    for runs in ([(64, 1), (32, 0)], [(64, 1), (64, 2), (128, 0), (32, 7), (256, 3)], []):
        queues._tell(Bar(), 0, runs)
    assert shown == ["width 64 seed 1, width 32 seed 0", "5 runs of widths 32 to 256", ""]


def test_each_look_is_one_array(tmp_path):
    class Array(ThreadPoolExecutor):
        def submit_all(self, call, runs):
            arrays.append([*runs])
            return [self.submit(call, *run) for run in runs]

    arrays, options = [], {"widths": (8, 16, 32, 64), "seeds": "auto", "device": "cpu", "audit": False, "steps": 1}
    options |= {"kinds": ("activation",), "control": False, "budget": 1.0}
    with Array(1) as cluster:
        there = coord_check(own()._function, XY, executor=cluster, **options)
    pd.testing.assert_frame_equal(there.records, coord_check(own()._function, XY, **options).records, check_exact=True)
    narrow, *wider = arrays
    assert {width for width, _ in narrow} == {8, 16, 32}
    assert narrow == sorted(narrow, key=lambda run: (-run[0], run[1]))
    assert [{width for width, _ in array} for array in wider] == [{64}]


def test_what_is_tried_out_elsewhere_is_known_here(tmp_path):
    """Whether training draws random numbers, and what the two narrowest models do."""
    made = []
    for remote in (True, False):
        with ThreadPoolExecutor(1) as pool:
            there = Engine(lambda _, pool=pool: pool, remote=True, queues=True, foreign=True) if remote else None
            runs = queue(own(), there)
            prepare(runs, tmp_path / f"{remote}", reuse=True)
            if remote:
                announce([runs])
                assert not [*tmp_path.rglob("*.parquet")]  # nothing was timed here
            made.append((runs.finish().records, {path.name for path in (tmp_path / f"{remote}").iterdir()}))
            assert runs.cell.draws
    (there, stored_there), (here, stored_here) = made
    pd.testing.assert_frame_equal(there, here, check_exact=True)
    assert stored_there == stored_here


@pytest.mark.parametrize(
    ("executor", "said"),
    [
        ("thread", r"`executor` is one of \['auto', 'threads', .*got 'thread'"),
        (3, r"`executor` is a name, a dict with a name, or an executor of concurrent.futures; got 3"),
        ({"partition": "gpu"}, r"`executor` is a name, a dict with a name"),
        ({"name": "processes", "partition": "gpu"}, r"`executor` processes takes no arguments; got"),
    ],
)
def test_what_is_no_executor_is_one_sentence(executor, said):
    with pytest.raises(ValueError, match=said):
        coord_check(own()._function, XY, widths=WIDTHS, executor=executor)
