"""Words and tables, and the labels of many cells."""

from pathlib import Path

import pytest
from conftest import power, synthetic
from rich.console import Console

from coordcheck import CoordCheck
from coordcheck.report import (
    arrange,
    exit_code,
    find_checks,
    label_checks,
    markdown,
    print_check,
    summarize,
)


def check_of(gate, exponent, **config):
    return CoordCheck.from_records(
        synthetic({("attn[logits]", "activation", 1): power(exponent)}),
        gate,
        config=config,
        skipped=["width 9 skipped"],
    )


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([], 1),
        (["pass"], 0),
        (["pass", "inconclusive"], 4),
        (["inconclusive", "fail", "pass"], 3),
        (["fail", "error"], 1),
    ],
)
def test_one_exit_code_for_many_verdicts(outcomes, code):
    assert exit_code(outcomes) == code


def test_the_terminal_shows_slope_verdict_control_and_files(gate, tmp_path):
    console = Console(record=True, width=130, file=(tmp_path / "out").open("w"))
    print_check(check_of(gate, 0.5), console, Path("a"), Path("b.png"))
    console.file.close()
    text = console.export_text()
    for part in (
        "attn[logits]",
        "+0.500 [+0.500, +0.500]",
        "explodes",
        "FAIL: 1 of 1",
        "Control: none",
        "Files in a: report.png",
        "Picture: b.png",
    ):
        assert part in text
    assert "width 9 skipped" in text


def test_the_markdown_report_holds_the_finding(gate):
    text = markdown(check_of(gate, -0.9))
    assert text.startswith("# FAIL: widths 64–512 (4) · 5 seeds")
    assert "| attn[logits] | activation | 1 | -0.900 [-0.900, -0.900] | +0.00 | vanishes |" in text
    assert "width 9 skipped" in text
    assert "![curves and slopes](report.png)" in text


def test_labels_are_what_differs(gate):
    checks = {
        Path("1"): check_of(gate, 0, embedding={"name": "tied", "std": 1}, name="x", steps=4),
        Path("2"): check_of(gate, 0, embedding={"name": "untied", "std": 1}, name="y", steps=4),
    }
    assert label_checks(checks) == {Path("1"): {"embedding": "tied"}, Path("2"): {"embedding": "untied"}}


def test_checks_without_a_telling_configuration_are_named_by_directory(gate):
    checks = {Path("1"): check_of(gate, 0), Path("2"): check_of(gate, 0)}
    assert label_checks(checks) == {Path("1"): {"": "1"}, Path("2"): {"": "2"}}


def test_a_grid_is_a_little_wider_than_high():
    labels = [{"a": a, "b": b, "c": c} for a in "12" for b in "123" for c in "12"]
    grid = arrange(labels)
    assert (len(grid), {len(row) for row in grid}) == (3, {4})
    assert sorted(label for row in grid for label in row) == sorted(f"a={x['a']} b={x['b']} c={x['c']}" for x in labels)


def test_a_summary_of_two_cells(gate, tmp_path):
    checks = {Path("1"): check_of(gate, 0.0, steps=1), Path("2"): check_of(gate, 0.5, steps=2)}
    files = summarize(checks, tmp_path, Console(quiet=True))
    assert [path.name for path in files] == ["summary.png", "summary.csv", "summary.md"]
    assert "| steps=2 | fail | 1 of 1 | attn[logits], activation, step 1 |" in (tmp_path / "summary.md").read_text()


def test_checks_are_found_below_a_directory(tmp_path, gate):
    for name in ("a", "b/c"):
        check_of(gate, 0.0).save(tmp_path / name)
    assert find_checks([tmp_path, tmp_path / "a"]) == [tmp_path / "a", tmp_path / "b/c"]
    assert find_checks([tmp_path / "b/d"]) == [tmp_path / "b/d"]
