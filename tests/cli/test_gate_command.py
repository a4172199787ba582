"""The gate command as CI runs it, and what it writes for CI systems."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import NO_TORCH, power, run, synthetic

from coordcheck import CoordCheck


@pytest.fixture
def checks(tmp_path, gate):
    """Three directories: a check, a repetition of it, and one whose fc grows."""
    for name, exponent in (("before", 0.0), ("same", 0.0), ("grown", 0.4)):
        curves = {("fc", "activation", 0): power(exponent, 0.01), ("wte", "activation", 0): power(0.0, 0.01)}
        curves[("fc", "delta", 1)] = power(0.15, 0.1)
        CoordCheck.from_records(synthetic(curves), gate).save(tmp_path / name)
    return tmp_path


def gated(directory, *arguments):
    return run(directory, *arguments, entry="gate", prelude=NO_TORCH)


def test_a_baseline_is_written_compared_and_missed(checks):
    code, out, err = gated(checks, "before", "--baseline", "slopes.json", "--update")
    assert (code, err) == (0, "")
    assert "baseline of 3 curves written to slopes.json" in out
    code, out, _ = gated(checks, "same", "--baseline", "slopes.json")
    assert code == 0
    assert "PASS: all 3 curves scale as in the baseline." in out
    code, out, _ = gated(checks, "grown", "--baseline", "slopes.json")
    assert code == 3
    assert "FAIL: 1 of 3 curves changed how they scale. fc, activation, step 0: slope +0.000 before, +0.400 now" in out
    assert gated(checks, "grown", "--baseline", "slopes.json", "--tolerance", "0.5")[0] == 0


def test_without_a_baseline_theory_decides(checks):
    code, out, _ = gated(checks, "grown")
    assert code == 3
    assert "First at fault: fc.weight: its output grows like width^+0.40 at step 0 (expected +0.00)." in out
    assert gated(checks, "before")[0] == 4


def test_junit_markdown_and_the_step_summary(checks, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(checks / "step.md"))
    assert gated(checks, "grown", "--junit", "out/junit.xml", "--markdown", "out/gate.md")[0] == 3
    suite = ElementTree.parse(checks / "out/junit.xml").getroot()
    assert {key: suite.get(key) for key in ("tests", "failures", "skipped")} == {
        "tests": "3",
        "failures": "1",
        "skipped": "1",
    }
    (failure,) = suite.iter("failure")
    assert "width^+0.40" in failure.get("message")
    assert suite.find("testcase[failure]").get("name") == "fc, step 0"
    text = (checks / "out/gate.md").read_text()
    assert text.startswith("## coordcheck: FAIL")
    assert "| fc | activation | 0 |" in text
    assert (checks / "step.md").read_text() == text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 1, "nowhere holds no records.parquet"),
        (["before", "--update"], 1, "`--update` and `--tolerance` need `--baseline`"),
        (["before", "--baseline", "missing.json"], 1, "must be a file that coordcheck-gate wrote"),
        (["before", "--baseline", "missing.json", "--tolerance", "-1"], 1, "`--tolerance` is a finite number"),
        ([], 2, "directory"),
    ],
)
def test_bad_usage_is_a_message(checks, arguments, code, message):
    found, _, err = gated(checks, *arguments)
    assert found == code
    assert message in err
    assert "Traceback" not in err


def test_a_summary_that_cannot_be_written_is_a_message(checks, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "/dev/null/step.md")
    code, _, err = gated(checks, "before")
    assert code == 1
    assert "/dev/null/step.md" in err
    assert "Traceback" not in err


def test_frames_in_mups_format_are_gated_and_reported(checks):
    curves = {("fc", "activation", step): power(0.5) for step in (0, 1)}
    CoordCheck.from_records(synthetic(curves), CoordCheck.load(checks / "same").gate).to_mup().to_csv(
        checks / "coords.csv", index=False
    )
    code, out, err = gated(checks, "--format", "mup", "coords.csv")
    assert (code, err) == (3, "")
    code, out, _ = run(checks, "--format", "mup", "coords.csv", entry="report", prelude=NO_TORCH)
    assert code == 3
    assert "Files in coords: report.png" in out
    assert json.loads((checks / "coords/verdict.json").read_text())["verdict"] == "fail"
    assert Path(checks / "coords/report.png").stat().st_size > 10_000
