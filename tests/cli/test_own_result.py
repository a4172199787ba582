"""A command answers for its own result: whatever others write, whenever they started, wherever its jobs run."""

import os

import pandas as pd
import pytest

from conftest import command, power, run, synthetic
from coordcheck import CoordCheck
from coordcheck.records.lock import locked

QUICK = ["experiment=tiny", "widths=[64,128,256]", "seeds=2", "data.context=16", "data.batch=2"]
BROKEN = ["embedding=tied_rescaled", "readout=constant"]
QUICK += ["steps=1", "control=false", "audit=false"]
# what another process could do at the worst moment: every saved verdict is replaced by another one's
FOREIGN = """
import coordcheck.check as c
from pathlib import Path
save = c.CoordCheck.save_text
def overwritten(self, directory):
    save(self, directory)
    (Path(directory) / "verdict.json").write_text('{"verdict": "pass"}')
c.CoordCheck.save_text = overwritten
"""
LAUNCHER = """
import os
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus

class ElsewhereLauncher(BasicLauncher):
    def launch(self, job_overrides, initial_job_idx):
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            child = os.fork()
            if child == 0:
                super().launch([overrides], number)
                os._exit(0)
            os.waitpid(child, 0)
        return [JobReturn(status=JobStatus.COMPLETED) for _ in job_overrides]

ConfigStore.instance().store(
    group="hydra/launcher", name="elsewhere", node={"_target_": "hydra_plugins.elsewhere.ElsewhereLauncher"}
)
"""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A launcher that runs each job in a process of its own."""
    (tmp_path / "plugins/hydra_plugins").mkdir(parents=True)
    (tmp_path / "plugins/hydra_plugins/elsewhere.py").write_text(LAUNCHER)
    paths = [str(tmp_path / "plugins"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    return ["-m", *QUICK, "hydra/launcher=elsewhere", "hydra.sweep.dir=checks/sweep", "plots=null"]


@pytest.mark.parametrize("mode", [["hydra.run.dir=checks/one"], ["-m", "hydra.sweep.dir=checks/one", "first_seed=0,1"]])
def test_the_exit_code_is_that_of_ones_own_result(tmp_path, mode):
    code, out, err = run(tmp_path, *mode, *QUICK, *BROKEN, prelude=FOREIGN)
    assert code == 3, out + err
    assert {path.read_text() for path in tmp_path.rglob("verdict.json")} == {'{"verdict": "pass"}'}


def test_two_sweeps_of_the_same_second_keep_their_directories_and_exit_codes(tmp_path):
    at_noon = """
import datetime, hydra.core.utils
class Noon(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 1, 12)
hydra.core.utils.datetime = Noon
"""
    arguments = ["-m", *QUICK, "plots=null"]
    fine, broken = (
        command(tmp_path, *arguments, *more, prelude=at_noon)
        for more in (["readout=zero,constant"], [*BROKEN, "first_seed=0,1"])
    )
    for process in (fine, broken):
        process.communicate(timeout=240)
    assert (fine.returncode in (0, 4), broken.returncode) == (True, 3)
    summaries = sorted((tmp_path / "checks").glob("2026-01-01_12-00-00-*/summary.csv"))
    assert sorted(len(pd.read_csv(path)) for path in summaries) == [2, 2]


@pytest.mark.parametrize(
    ("arguments", "entry"),
    [
        ([*QUICK, "hydra.run.dir=taken"], "check"),
        (["-m", *QUICK, "hydra.sweep.dir=taken", "readout=zero,constant"], "check"),
        ([*QUICK, "--output", "taken"], "audit"),
        (["taken"], "report"),
    ],
)
def test_a_directory_is_written_by_one_command_at_a_time(tmp_path, gate, arguments, entry):
    CoordCheck.from_records(synthetic({("fc", "activation", 0): power(0.0)}), gate).save(tmp_path / "taken")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "taken").iterdir()}
    with locked(tmp_path / "taken"):
        code, out, err = run(tmp_path, *arguments, entry=entry)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "another command is writing to taken. Wait until it has ended, or choose another directory" in err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "taken").iterdir()} == before
    assert not (tmp_path / "checks").exists()  # nothing was trained


def test_a_lock_ends_with_its_process_and_may_be_taken_twice_by_its_holder(tmp_path):
    with locked(tmp_path), locked(tmp_path):
        pass
    killed = command(
        tmp_path,
        prelude="import os\nfrom pathlib import Path\nfrom coordcheck.records.lock import locked\n"
        "with locked(Path('.')): os.kill(os.getpid(), 9)\n",
    )
    killed.communicate(timeout=60)
    assert killed.returncode == -9
    with locked(tmp_path):
        pass


def test_a_file_system_without_locks_still_takes_a_check(tmp_path, monkeypatch):
    def unsupported(self, *arguments, **keywords):
        raise NotImplementedError

    monkeypatch.setattr("coordcheck.records.lock.FileLock.acquire", unsupported)
    with locked(tmp_path / "here"):
        assert (tmp_path / "here").is_dir()


def test_hydras_other_settings_work_or_end_in_one_sentence(tmp_path):
    for mode in ([], ["-m", "first_seed=0,1"]):
        code, out, err = run(tmp_path, *mode, *QUICK, "hydra.job.chdir=true")
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("coordcheck: `hydra.job.chdir` must be false, for the paths of a check start where")
        assert not (tmp_path / "checks").exists()
    for mode in ([], ["-m", "first_seed=0,1"]):
        code, out, err = run(tmp_path, *mode, *QUICK, "hydra.output_subdir=null")
        assert (code in (0, 4), err) == (True, ""), out
    assert "2 cells" in out


def test_jobs_in_other_processes_are_those_of_this_sweep(tmp_path, elsewhere):
    stale = tmp_path / "checks/sweep/earlier"
    stale.mkdir(parents=True)
    (stale / "outcome.json").write_text('{"sweep": "another", "number": 0, "verdict": "fail", "reason": ""}')
    code, out, err = run(tmp_path, *elsewhere, "readout=zero,constant")
    assert (code in (0, 4), err) == (True, ""), out
    assert pd.read_csv(tmp_path / "checks/sweep/summary.csv")["cell"].tolist() == ["readout=zero", "readout=constant"]
    assert run(tmp_path, *elsewhere, BROKEN[0], "readout=zero,constant")[0] == 3


def test_a_job_in_another_process_that_dies_or_leaves_nonsense_is_an_error(tmp_path, elsewhere):
    dies = "import os, coordcheck.check as c; run = c.check_config; c.check_config = lambda config: "
    dies += "run(config) if config.readout.name == 'zero' else os._exit(0)\n"
    code, out, _ = run(tmp_path, *elsewhere, "readout=constant,zero", prelude=dies)
    assert code == 1
    assert "readout=constant" in out and "left no records" in out and "1 cell\n" in out
    (path,) = tmp_path.glob("checks/sweep/*readout=constant*/outcome.json")
    nonsense = path.parent.parent / "nonsense"
    nonsense.mkdir()
    (nonsense / "outcome.json").write_text("[")
    code, out, _ = run(tmp_path, *elsewhere, "readout=zero,fan_in")
    assert code == 1
    assert "nonsense: outcome.json cannot be read" in out
