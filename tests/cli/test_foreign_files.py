"""Commands on files of others and on places that cannot be written: one sentence, exit 1, nothing replaced."""

import json
import os
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from conftest import NO_TORCH, TINY, power, run, synthetic
from coordcheck import CoordCheck
from coordcheck.config.load import file_name, register_schema

SMALL_FILES = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)); "
CHEAP = [*TINY, "model.depth=1", "widths=[16,32,64]", "base_width=16", "model.head_size=8", "seeds=2", "steps=2"]
CHEAP += ["control=false", "audit=false", "plots=null"]


@pytest.fixture
def check(tmp_path, gate):
    curves = {("fc", "activation", 0): power(0.0, 0.01), ("fc", "delta", 1): power(0.1, 0.05)}
    CoordCheck.from_records(synthetic(curves, widths=(64, 128, 256), seeds=3), gate).save(tmp_path / "check")
    return tmp_path


def refused(directory, *arguments, said, **how):
    code, out, err = run(directory, *arguments, **how)
    lines = err.splitlines()
    assert code == 1, (out, err)
    assert len(lines) == 1 and lines[0].startswith("coordcheck"), err
    assert said in lines[0]
    return lines[0]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("entry", ["report", "gate"])
@pytest.mark.parametrize("name", ["records.parquet", "verdict.json"])
@pytest.mark.parametrize("content", ["pipe", "directory", b"", b"\x00\xff" * 999])
def test_what_is_no_file_of_a_check_is_said_in_one_line(check, entry, name, content):
    path = check / "check" / name
    path.unlink()
    if content == "pipe":
        os.mkfifo(path)
    elif content == "directory":
        path.mkdir()
    else:
        path.write_bytes(content)
    refused(check, "check", entry=entry, prelude=NO_TORCH, said=f"check/{name} ")


@pytest.mark.parametrize("entry", ["report", "gate"])
def test_a_secret_of_the_environment_stays_there(check, monkeypatch, entry):
    monkeypatch.setenv("SECRET", "hunter2")
    path = check / "check" / "verdict.json"
    said = json.loads(path.read_text())
    said["config"]["gate"]["expect"] = "${oc.env:SECRET}"
    path.write_text(json.dumps(said))
    line = refused(check, "check", entry=entry, prelude=NO_TORCH, said="check/verdict.json: `gate` holds plain values")
    assert "hunter2" not in line and "expect: ${oc.env:SECRET}" in line
    said["config"]["gate"]["expect"] = "mup"
    said["skipped"] = said["versions"]["torch"] = "${oc.env:SECRET}"
    said["config"]["name"], said["skipped"] = "${oc.env:SECRET}", ["${oc.env:SECRET}"]
    path.write_text(json.dumps(said))
    code, out, err = run(check, "check", entry=entry, prelude=NO_TORCH)
    assert (code, err) == (0, "") and "hunter2" not in out
    assert "hunter2" not in (check / "check/report.md").read_text()


def test_an_audit_that_is_cut_or_missing_is_not_believed(check, gate):
    from torch import nn, optim

    from coordcheck import audit

    report = audit(
        lambda w: nn.Sequential(nn.Linear(8, w), nn.Linear(w, w)), (64, 128, 256), lambda m: optim.SGD(m.parameters())
    )
    CoordCheck.from_records(CoordCheck.load(check / "check").records, gate, audit=report).save(check / "check")
    table = check / "check" / "audit.csv"
    whole = table.read_bytes()
    assert CoordCheck.load(check / "check").audit.facts() == report.facts()
    CoordCheck.load(check / "check").save(check / "again")
    assert (check / "again" / "audit.csv").read_bytes() == whole
    for cut in (
        whole[: len(whole) // 2],
        whole[:-1],
        whole.replace(b"hidden", b"vector"),
        b"\n".join(whole.splitlines()[:3]),
    ):
        table.write_bytes(cut)
        refused(
            check, "check", entry="gate", prelude=NO_TORCH, said="check/audit.csv is not the file that verdict.json"
        )
    table.unlink()
    code, out, _ = run(check, "check", entry="report", prelude=NO_TORCH)
    assert (
        code in (0, 3, 4)
        and "Note          Audit: none could be made (audit.csv, which verdict.json tells of, is missing)" in out
    )


def test_an_audit_alone_leaves_that_of_a_check_as_it_was(tmp_path):
    arguments = ["model.depth=1", "model.head_size=8", "widths=[16,32,64]", "base_width=16", "name=mine"]
    (tmp_path / "checks/mine").mkdir(parents=True)
    (tmp_path / "checks/mine/audit.md").write_text("the check's own")
    code, out, err = run(tmp_path, *arguments, entry="audit")
    assert (code, err) == (0, "")
    assert "Files in checks/mine/audit: audit.md" in out
    assert (tmp_path / "checks/mine/audit.md").read_text() == "the check's own"
    assert (tmp_path / "checks/mine/audit/audit.md").is_file()


def test_devices_are_written_to_and_not_replaced(check):
    """By links of our own: were one replaced, as root may do, the machine would keep its devices."""
    for name in ("null", "full", "stdout"):
        (check / name).symlink_to(f"/dev/{name}")
    code, out, err = run(check, "check", "--junit", "null", "--markdown", "stdout", entry="gate", prelude=NO_TORCH)
    assert (code, err) == (0, "")
    assert (check / "null").is_symlink() and (check / "null").is_char_device()
    assert out.count("## coordcheck: PASS") == 2
    said = "full cannot be written (No space"
    refused(check, "check", "--junit", "full", entry="gate", prelude=NO_TORCH, said=said)


@pytest.mark.parametrize(
    ("name", "directory"),
    [("../../x", "checks/.._.._x-9cdf6a50"), ("/etc/x", "checks/_etc_x-"), ("..", "checks/..-5ec1f7e7")],
)
def test_a_name_stays_inside_checks(name, directory):
    register_schema()
    with initialize_config_module("coordcheck.configs", version_base="1.3"):
        config = compose("check", overrides=[f"name={name}"], return_hydra_config=True)
        assert str(config.hydra.run.dir).startswith(directory)
    assert Path(file_name(name)).name == file_name(name) != ".."


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("runs=/proc/none", "/proc/none"),
        ("hydra.run.dir=/proc/none", "/proc/none cannot be made"),
        ("hydra.run.dir=file", "file cannot be made (File exists)"),
        ("hydra.run.dir=taken", "taken/report.md cannot be written (a directory has that name)"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path, override, said):
    (tmp_path / "file").write_text("")
    (tmp_path / "taken" / "report.md").mkdir(parents=True)
    refused(tmp_path, *CHEAP, override, said=said)


TINY_FILES = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); "


def test_what_hydra_itself_cannot_write_is_one_sentence_with_its_place(tmp_path):
    refused(tmp_path, *CHEAP, "hydra.run.dir=mine", prelude=TINY_FILES, said="mine cannot be written (File too large)")
    said = "sweep cannot be written (File too large). The jobs of the sweep after it were not run. Choose"
    sweep = ("-m", *CHEAP, "steps=2,3", "hydra.sweep.dir=sweep")
    refused(tmp_path, *sweep, prelude=TINY_FILES, said=said)


def test_a_file_in_the_place_of_a_jobs_directory_is_one_sentence(tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "1").write_text("mine")
    sweep = ("-m", *CHEAP, "steps=2,3", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${hydra.job.num}")
    line = refused(tmp_path, *sweep, said="sweep/1 cannot be written (File exists). The jobs of the sweep after it")
    assert "hydra.sweep.dir=checks/mine" in line
    assert (tmp_path / "sweep" / "0" / "verdict.json").exists()
    assert (tmp_path / "sweep" / "1").read_text() == "mine"


def test_a_full_disk_is_one_sentence_and_in_a_sweep_one_for_each_job(tmp_path):
    refused(tmp_path, *CHEAP, prelude=SMALL_FILES, said="cannot be written (")
    code, out, err = run(tmp_path, "-m", *CHEAP, "readout=zero,constant", prelude=SMALL_FILES)
    assert code == 1
    lines = err.splitlines()
    assert len(lines) == 2 and all("cannot be written (" in line for line in lines)
    assert "Traceback" not in out + err
    assert not [path for path in tmp_path.rglob(".coordcheck-*")]
