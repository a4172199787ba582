"""The compare command: two checks, two baselines, two commits."""

import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from conftest import NO_TORCH, power, run, synthetic
from coordcheck import CoordCheck
from coordcheck.judge.baseline import Baseline
from coordcheck.judge.comparison import Comparison
from coordcheck.report.figures.comparison import comparison_figure
from coordcheck.report.page.html import comparison_page, cure_page

MODEL = """
import torch
from torch import nn

def build(width, std):
    model = nn.Sequential(nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 3))
    nn.init.normal_(model[1].weight, std=std(width))
    return model

def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator)

def made(width):
    return build(width, lambda width: EXPONENT)
"""


@pytest.fixture
def checks(tmp_path, gate):
    """Three directories: a check, a repetition of it, and one whose fc grows and whose head is another."""
    for name, exponent, last in (("before", 0.0, "head"), ("same", 0.0, "head"), ("grown", 0.4, "tail")):
        curves = {("fc", "activation", 0): power(exponent, 0.01), (last, "activation", 0): power(0.0, 0.01)}
        CoordCheck.from_records(synthetic(curves), gate, config={"seed_of": name}).save(tmp_path / name)
    return tmp_path


def compared(directory, *arguments):
    return run(directory, *arguments, entry="compare", prelude=NO_TORCH)


def test_two_checks_are_compared_and_what_changed_is_told_first(checks):
    code, out, err = compared(checks, "before", "same")
    assert (code, err) == (0, "")
    assert "SAME: all 2 curves scale in same as in before." in out
    code, out, _ = compared(checks, "before", "grown", "--output", "out")
    assert code == 3
    assert "CHANGED: of 3 curves 1 scale otherwise, 1 are in grown alone, 1 are in before alone. fc, activation" in out
    assert "changed by +0.400 [" in out
    assert "Differs: seed_of: 'before' before, 'grown' after" in out
    assert {path.name for path in (checks / "out").iterdir()} == {"changes.csv", "changes.html", "changes.png", ".lock"}
    assert pd.read_csv(checks / "out/changes.csv")["status"].tolist() == ["regressed", "vanished", "new"]
    assert compared(checks, "before", "grown", "--tolerance", "0.5")[0] == 4


def test_a_baseline_serves_as_well(checks, gate):
    Baseline.of(CoordCheck.load(checks / "before")).write(checks / "slopes.json")
    assert compared(checks, "slopes.json", "same")[0] == 0
    assert compared(checks, "slopes.json", "grown")[0] == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "takes two of what it compares; got []. For example coordcheck-compare checks/before checks/after."),
        (["before", "same", "grown"], "takes two"),
        (["before", "nowhere"], "nowhere"),
        (["before", "same", "--tolerance", "nan"], "`--tolerance` is a finite number, zero or more; got nan."),
        (["--rev", "main"], "`--rev` is two git revisions, A..B; got 'main'. For example coordcheck-compare --rev"),
        (["--rev", "a..b"], "git rev-parse"),
    ],
)
def test_bad_usage_is_one_line(checks, arguments, said):
    code, out, err = compared(checks, *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert said in err or (said == "git rev-parse" and "git worktree: " in err)


def comparison_of(gate, before, after):
    stored = [Baseline.of(CoordCheck.from_records(synthetic(curves), gate)) for curves in (before, after)]
    return Comparison.of(*stored, names=("a<b", "c$d$"))


def test_page_and_picture_show_names_of_others_as_text(gate):
    name, label = "<script>alert(1)</script>$x$", r"<script>alert(1)</script>\$x\$, activation, step 0"
    one, other = ({(name, "activation", 0): power(exponent, 0.01)} for exponent in (0.0, 0.3))
    comparison = comparison_of(gate, one, other)
    page = comparison_page(comparison, b"\x89PNG")
    assert 'src="data:image/png;base64,iVBORw=="' in page and "<a " not in page
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page and "a&lt;b" in page
    axes = comparison_figure(comparison).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [label]
    before, now = (line.get_xdata().tolist() for line in axes.get_lines()[:2])
    assert (before, now) == ([pytest.approx(0.0)], [pytest.approx(0.3)])


def test_a_cure_is_one_page_with_both_verdicts_and_links_to_both_reports(gate):
    name = "<script>alert(1)</script>"
    before, after = (
        CoordCheck.from_records(synthetic({(name, "activation", 0): power(exponent, 0.01)}), gate)
        for exponent in (0.3, 0.0)
    )
    page = cure_page(before, after, b"\x89PNG")
    assert '<span class="verdict pass">PASS</span>' in page and "<script>alert" not in page
    links = dict(re.findall('<a href="(.*?)">(.*?)</a>', page))
    assert links["before/report.html"].startswith("before: FAIL: 1 of 1 curves is at fault")
    assert links["after/report.html"].startswith("after: PASS")
    assert "<td>changed</td>" in page and "regressed" not in page


def test_a_picture_of_no_change_says_so(gate):
    curves = {("fc", "activation", 0): power(0.0, 0.01)}
    figure = comparison_figure(comparison_of(gate, curves, curves))
    assert "no curve has another slope" in [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.slow
def test_two_commits_are_compared(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    git("init", "-q", "-b", "main")
    (tmp_path / "sub").mkdir()
    for exponent, message in (("width**-0.5", "one"), ("width**-0.5 + 0", "same"), ("1.0", "other")):
        (tmp_path / "sub/mine.py").write_text(MODEL.replace("EXPONENT", exponent))
        git("add", "-A")
        git("commit", "-qm", message)
    settings = [
        "model=own",
        "model.build=mine.made",
        "model.batch=mine.batch",
        "widths=[16,32,64]",
        "seeds=3",
        "steps=2",
    ]
    settings += ["kinds=[activation]", "control=false", "audit=false", "device=cpu"]
    code, out, err = run(tmp_path / "sub", "--rev", "HEAD~1..HEAD", *settings, entry="compare")
    assert code == 3, err
    assert "CHANGED: of 10 curves" in out and "| 1 | activation | 0 | regressed | slope " in out
    assert run(tmp_path / "sub", "--rev", "HEAD~2..HEAD~1", *settings, entry="compare")[0] == 0
    trees = subprocess.run(["git", "worktree", "list"], cwd=tmp_path, capture_output=True, text=True).stdout
    assert trees.count("\n") == 1 and Path(tmp_path / "sub/comparison").is_dir()
