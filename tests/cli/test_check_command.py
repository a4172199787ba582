"""The commands as a user runs them, each in its own process and an empty directory."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import coordcheck
from conftest import NO_TORCH, command, run

TINY = ["experiment=tiny", "widths=[64,128,256]", "seeds=3", "data.context=16", "data.batch=2"]
GALLERY = [*TINY[1:], "steps=1", "seeds=2", "control=false", "audit=false"]


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    directory = tmp_path_factory.mktemp("check")
    return directory, *run(directory, *TINY, "parametrization=sp", "try_advice=false")


def test_a_failing_check_exits_3_and_leaves_its_files(checked):
    directory, code, out, err = checked
    assert (code, err) == (3, "")
    assert "FAIL: " in out
    assert "Control       the same model in standard parametrization: fails as it must.\n" in out
    home = directory / "checks/gpt-sp-untied-zero-adam"
    assert sorted(path.name for path in home.iterdir()) == [
        ".hydra",
        ".lock",
        "audit.csv",
        "audit.md",
        "audit.png",
        "records.parquet",
        "report.html",
        "report.md",
        "report.png",
        "slopes.csv",
        "verdict.json",
    ]
    assert (directory / "plots/gpt-sp-untied-zero-adam.png").read_bytes() == (home / "report.png").read_bytes()
    assert "Files         checks/gpt-sp-untied-zero-adam: report.html report.md slopes.csv" in out
    assert "Picture       plots/gpt-sp-untied-zero-adam.png" in out
    said = json.loads((home / "verdict.json").read_text())
    assert said["config"]["parametrization"]["name"] == "sp"
    assert said["audit"]["verdict"] == "fail"
    assert "learning_rate at blocks.0.attn.q.weight" in out and "├" not in out
    assert "mup.MuAdam" in (home / "report.md").read_text()
    assert len(said["corpus_sha256"]) == 64


def test_the_same_command_reuses_its_runs(checked):
    directory, *_ = checked
    runs = {path: path.stat().st_mtime_ns for path in (directory / "checks/runs").iterdir()}
    before = (directory / "checks/gpt-sp-untied-zero-adam/records.parquet").read_bytes()
    assert len(runs) == 9  # the control of a cell in standard parametrization is the cell itself
    assert run(directory, *TINY, "parametrization=sp", "try_advice=false")[0] == 3
    assert {path: path.stat().st_mtime_ns for path in (directory / "checks/runs").iterdir()} == runs
    assert (directory / "checks/gpt-sp-untied-zero-adam/records.parquet").read_bytes() == before


def test_report_rebuilds_everything_without_torch(checked, tmp_path):
    directory, *_ = checked
    home = directory / "checks/gpt-sp-untied-zero-adam"
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for name in ("records.parquet", "verdict.json", "audit.csv"):
        (copy / name).write_bytes((home / name).read_bytes())
    code, out, err = run(tmp_path, "elsewhere", entry="report", prelude=NO_TORCH)
    assert (code, err) == (3, "")
    assert "FAIL: " in out
    assert (copy / "slopes.csv").read_text() == (home / "slopes.csv").read_text()
    assert json.loads((copy / "verdict.json").read_text()) == json.loads((home / "verdict.json").read_text())
    assert (copy / "report.png").stat().st_size > 10_000


def test_report_of_nothing_is_a_clear_error(tmp_path):
    code, _, err = run(tmp_path, ".", entry="report", prelude=NO_TORCH)
    assert code == 1
    assert err.startswith("coordcheck-report: . holds no records.parquet")
    assert run(tmp_path, entry="report", prelude=NO_TORCH)[0] == 2


def test_report_names_broken_directories_and_reports_the_others(checked, tmp_path):
    home = checked[0] / "checks/gpt-sp-untied-zero-adam"
    records, verdict = pd.read_parquet(home / "records.parquet"), json.loads((home / "verdict.json").read_text())
    broken = {
        "a_kind": (records.assign(kind="slope"), verdict, "a_kind/records.parquet: the kind of a record is one of"),
        "columns": (records.drop(columns=["l1"]), verdict, "these lack ['l1']"),
        "gateless": (records, {**verdict, "config": {}}, "gateless/verdict.json does not fit at $"),
        "parquet": (None, verdict, "parquet/records.parquet is no parquet file"),
        "behind": (records.assign(cell="x"), verdict, "among or after them stand ['cell']"),
    }
    for name, (frame, said, _) in broken.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "verdict.json").write_text(json.dumps(said))
        (tmp_path / name / "audit.csv").write_bytes((home / "audit.csv").read_bytes())
        path = tmp_path / name / "records.parquet"
        path.write_bytes(b"no") if frame is None else frame.to_parquet(path)
    (tmp_path / "whole").mkdir()
    records.to_parquet(tmp_path / "whole/records.parquet")
    code, out, err = run(tmp_path, ".", "missing", entry="report", prelude=NO_TORCH)
    assert code == 1
    assert "FAIL: " in out
    assert "Files         whole: " in out
    assert "Traceback" not in err
    assert len(err.splitlines()) == len(broken) + 1
    for _, _, message in broken.values():
        assert message in err
    assert "missing holds no records.parquet" in err


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["-sc", "install=bash"], ["--hydra-help"]])
def test_help_needs_no_torch_and_no_pandas(tmp_path, arguments):
    heavy = "import sys; sys.modules.update(dict.fromkeys(['torch', 'pandas', 'matplotlib', 'mup'])); "
    code, out, err = run(tmp_path, *arguments, prelude=heavy)
    assert (code, err) == (0, "")
    assert out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["widths=[64,128]"], 1, "`widths` needs at least 3 distinct"),
        (["device=abacus"], 1, "`device` must be one that this machine"),
        (["data=file", "data.path=missing.txt"], 1, "`data.path` must be a file that exists; got missing.txt"),
        (["device=meta"], 1, "can train on; got 'meta'"),
        (["modules=[]", "control=false"], 1, "`modules` needs at least one name or pattern"),
        (["hydra.run.dir=/dev/null/x"], 1, "/dev/null/x cannot be made (Not a directory). Choose one"),
        (["modules=[head]", "control=false"], 1, "`modules` pattern 'head' matches no module"),
        (["runs=/dev/null/x"], 1, "`runs` is the path of a directory, and '/dev/null' is none; got '/dev/null/x'"),
        (["steps=0"], 1, "`steps` counts recorded forward passes"),
        (["model.deepth=3"], 1, "deepth"),
        (["embedding=knotted"], 1, "knotted"),
        (["--nonsense"], 2, "nonsense"),
    ],
)
def test_bad_configuration_is_a_message_and_not_a_traceback(tmp_path, arguments, code, message):
    found, _, err = run(tmp_path, *TINY, *arguments)
    assert found == code
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "checks/runs").exists()


def test_a_summary_that_cannot_be_written_is_a_message(tmp_path):
    code, _, err = run(tmp_path, "-m", *GALLERY, "readout=constant,zero", "plots=/dev/null/x")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("coordcheck: /dev/null/x/")


def test_a_directory_that_cannot_be_written_is_a_message(tmp_path):
    code, _, err = run(tmp_path, *TINY, "steps=1", "seeds=2", "control=false", "plots=/dev/null/x")
    assert code == 1
    assert err.startswith("coordcheck: /dev/null/x/")
    assert "cannot be written (Not a directory). Choose a directory" in err
    assert "Traceback" not in err


def test_names_longer_than_a_file_may_have_are_shortened(tmp_path):
    texts = [f"{letter * 240}.txt" for letter in "ab"]
    for text in texts:
        (tmp_path / text).write_text("some words " * 50)
    overrides = [*TINY, "steps=1", "seeds=2", "control=false", "data=file", "name=" + "n" * 300]
    assert run(tmp_path, *overrides, f"data.path={texts[0]}")[0] in (0, 3, 4)
    code, _, err = run(tmp_path, "-m", *overrides, f"data.path={','.join(texts)}")
    assert code in (0, 3, 4), err
    assert len(list((tmp_path / "checks").glob("*/*/records.parquet"))) == 2


def test_a_sweep_ends_with_one_summary_and_one_exit_code_and_survives_a_bad_cell(tmp_path):
    arguments = [
        *TINY,
        "readout=zero,constant",
        "embedding.name=untied,tied",
        "embedding.position_std=0",
        "control=false",
    ]
    code, out, err = run(tmp_path, "-m", *arguments)
    assert code == 1
    (sweep,) = [path for path in (tmp_path / "checks").iterdir() if path.name != "runs"]
    summary = pd.read_csv(sweep / "summary.csv")
    assert len(summary) == 3
    assert (sweep / "summary.png").stat().st_size > 10_000
    assert "makes the shared embedding zero" in err
    assert out.count("makes the shared embedding zero") == 1
    assert [path.name for path in (tmp_path / "plots").iterdir()] == [f"{sweep.name}.png"]
    assert (tmp_path / f"plots/{sweep.name}.png").read_bytes() == (sweep / "summary.png").read_bytes()
    cells = sorted(path.name for path in sweep.iterdir() if path.is_dir())
    code, out, _ = run(tmp_path, str(sweep), entry="report", prelude=NO_TORCH)
    assert code in (0, 4)
    assert "3 cells" in out
    assert len(cells) == 4


def test_a_job_that_breaks_leaves_the_summary_of_the_others(tmp_path):
    fault = "import coordcheck.cli.check, coordcheck.check as c; run = c.check_config; c.check_config = lambda config: "
    prelude = f"{fault}run(config) if config.readout.name == 'zero' else 1 / 0; "
    arguments = [*TINY, "readout=constant,zero", "control=false", "plots=null"]
    code, out, err = run(tmp_path, "-m", *arguments, prelude=prelude)
    assert code == 1
    assert "division by zero" in err and "Traceback" not in err
    assert "ZeroDivisionError: division by zero" in out
    assert "1 cell\n" in out


def test_an_experiment_of_many_cells_is_one_command_with_one_picture(tmp_path):
    code, out, err = run(tmp_path, "experiment=mup_shared_readout", *GALLERY)
    assert (code, err) == (3, "")
    summary = pd.read_csv(tmp_path / "checks/mup_shared_readout/summary.csv")
    assert summary["cell"].str.extract("embedding=([a-z_]*)")[0].tolist() == ["untied", "tied_rescaled", "tied"] * 2
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["mup_shared_readout.png"]
    assert "Picture: plots/mup_shared_readout.png" in out


def test_what_an_earlier_sweep_left_is_not_in_the_summary_of_the_next(tmp_path):
    arguments = ["-m", *GALLERY, "hydra.sweep.dir=checks/both", "plots=null"]
    run(tmp_path, *arguments, "readout=constant,zero")
    run(tmp_path, *arguments, "readout=zero,fan_in")
    assert len(list((tmp_path / "checks/both").glob("*/records.parquet"))) == 3
    cells = pd.read_csv(tmp_path / "checks/both/summary.csv")["cell"]
    assert cells.tolist() == ["readout=zero", "readout=fan_in"]
    assert not (tmp_path / "plots").exists()


def test_ctrl_c_keeps_finished_runs_and_the_command_goes_on(tmp_path):
    arguments = [*TINY, "widths=[64,128,256,512,1024]", "workers=1", "control=false"]
    for attempt in "abc":  # on a busy machine the command may end before this process sees its first run
        tmp_path /= attempt
        tmp_path.mkdir()
        process = command(tmp_path, *arguments)
        runs = tmp_path / "checks/runs"
        deadline = time.monotonic() + 120
        while not (runs.is_dir() and list(runs.glob("[!.]*.parquet"))) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
        if process.returncode not in (0, 3, 4):
            break
    assert process.returncode == 130
    assert "finished runs are kept" in err
    assert "Traceback" not in err
    kept = {path: path.stat().st_mtime_ns for path in runs.glob("[!.]*.parquet")}
    assert 1 <= len(kept) < 15
    assert run(tmp_path, *arguments)[0] in (0, 3, 4)
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in kept.items())
    assert len(list(runs.glob("[!.]*.parquet"))) == 15


def test_the_configuration_ships_with_the_package():
    from importlib.resources import files

    root = Path(str(files("coordcheck.configs")))
    groups = {path.parent.name for path in root.glob("*/*.yaml")}
    cell = {"model", "parametrization", "embedding", "readout", "optimizer", "data"}
    assert groups == {*cell, "gate", "executor", "experiment"}
    assert (root / "hydra/help/coordcheck.yaml").is_file()


def test_an_audit_alone_trains_nothing_and_exits_with_its_verdict(tmp_path):
    code, out, err = run(tmp_path, *TINY, "parametrization=sp", entry="audit")
    assert (code, err) == (3, "")
    # 12 hidden matrices, and the readout: nothing multiplies it, so under Adam its rate must shrink like theirs
    assert "Audit: FAIL: 13 of 20 parameters are at fault." in out
    home = tmp_path / "checks/gpt-sp-untied-zero-adam/audit"  # a check's own audit lies above it
    assert sorted(path.name for path in home.iterdir()) == [".lock", "audit.csv", "audit.md", "audit.png"]
    assert "wte.weight" not in out


def test_an_audit_shows_every_row_if_asked_and_writes_where_it_is_told(tmp_path):
    code, out, err = run(tmp_path, *TINY, "--all", "--output", "here", entry="audit")
    assert (code, err) == (0, "")
    assert "wte.weight" in out and (tmp_path / "here/audit.csv").is_file()


def test_an_audit_of_a_bad_configuration_exits_with_1(tmp_path):
    code, out, err = run(tmp_path, "widths=[64]", entry="audit")
    assert (code, out) == (1, "")
    assert err.startswith("coordcheck-audit: `widths` needs at least 3 distinct")


def test_the_audit_can_be_turned_off(tmp_path):
    code, out, _ = run(tmp_path, *TINY, "audit=false", "parametrization=sp", "steps=2", "seeds=2")
    assert code == 3 and "Audit" not in out
    assert not list(tmp_path.rglob("audit.*"))


def test_the_package_is_a_command():
    ran = subprocess.run([sys.executable, "-m", "coordcheck", "--version"], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"coordcheck {coordcheck.__version__}\n", "")
