"""The gate command as CI runs it, and what it writes for CI systems."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from conftest import NO_TORCH, power, run, synthetic
from coordcheck import CoordCheck
from coordcheck.judge.baseline import Baseline
from coordcheck.judge.ruling import Case, Ruling, rule_by_baseline, rule_by_theory
from coordcheck.records.schema import KINDS
from coordcheck.report.junit import write_junit


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


def test_an_update_says_what_it_stored_and_refuses_a_failing_check_unless_told(checks):
    code, out, err = gated(checks, "grown", "--baseline", "slopes.json", "--update")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "the baseline was not written" in err and "First at fault: fc.weight" in err and "`--accept-failing`" in err
    assert not (checks / "slopes.json").exists()
    code, out, err = gated(checks, "grown", "--baseline", "slopes.json", "--update", "--accept-failing")
    assert (code, err) == (0, "")
    assert "baseline of 3 curves written to slopes.json. FAIL: 1 of 3 curves is at fault." in out
    assert "written to slopes.json. INCONCLUSIVE" in gated(checks, "before", "--baseline", "slopes.json", "--update")[1]


def test_a_gate_with_a_baseline_says_what_theory_says(checks):
    gated(checks, "grown", "--baseline", "slopes.json", "--update", "--accept-failing")
    code, out, _ = gated(checks, "grown", "--baseline", "slopes.json", "--junit", "junit.xml", "--markdown", "gate.md")
    assert code == 0
    said = "Theory, without the baseline: FAIL: 1 of 3 curves is at fault. First at fault: fc.weight"
    assert "PASS: all 3 curves scale as in the baseline." in out and said in out
    assert said in (checks / "gate.md").read_text()
    properties = {p.get("name"): p.get("value") for p in ElementTree.parse(checks / "junit.xml").iter("property")}
    assert properties["verdict"] == "pass" and properties["theory"].startswith(said)
    assert "without the baseline" not in gated(checks, "grown")[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("baseline", [True, False])
def test_every_kind_of_curve_is_a_case_of_its_own(gate, kind, baseline):
    """A fault of one kind alone fails that case and the gate."""
    kinds = {("fc", k, 1): power({"gradient": -1.0}.get(k, 0.0), 0.001) for k in KINDS}
    before = CoordCheck.from_records(synthetic(kinds), gate)
    now = CoordCheck.from_records(synthetic({**kinds, ("fc", kind, 1): power(0.9, 0.001)}), gate)
    ruling = rule_by_baseline(now, Baseline.of(before), 0.05) if baseline else rule_by_theory(now)
    assert ruling.verdict == "fail"
    assert {(case.name, case.kind): case.outcome for case in ruling.cases} == {
        ("fc, step 1", k): "fail" if k == kind else "pass" for k in KINDS
    }


def test_junit_holds_names_that_xml_does_not(gate, tmp_path):
    name = 'a\x00b\x1b[31m<&>"\ud800\uffff'
    check = CoordCheck.from_records(synthetic({("fc", "activation", 0): power(0.9)}), gate)
    write_junit(Ruling("fail", name, [Case(name, "activation", "fail", name)], check), tmp_path / "junit.xml")
    (case,) = ElementTree.parse(tmp_path / "junit.xml").iter("testcase")
    assert case.get("name") == case.find("failure").get("message") == 'a\\x00b\\x1b[31m<&>"\\ud800\\uffff'


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
        (["before", "--baseline", "b.json", "--accept-failing"], 1, "so it needs `--update`"),
        (["before", "--baseline", "missing.json"], 1, "missing.json cannot be read (No such file or directory)"),
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
    assert "Files         coords: report.html report.md" in out
    assert json.loads((checks / "coords/verdict.json").read_text())["verdict"] == "fail"
    assert Path(checks / "coords/report.png").stat().st_size > 10_000
