"""A check over time: entries are added, compared in their order, and shown."""

import re
import subprocess

import pandas as pd
import pytest

from conftest import NO_TORCH, power, run, synthetic
from coordcheck import CoordCheck
from coordcheck.cli.history import _revision
from coordcheck.judge.baseline import Baseline
from coordcheck.judge.history import History
from coordcheck.report.figures.history import SHOWN, history_figure
from coordcheck.report.tables import history_rows


def baseline(gate, exponent, more=0):
    curves = {("fc", "activation", 0): power(exponent, 0.01), ("$x$", "activation", 0): power(0.0, 0.01)}
    curves["fc", "delta", 1] = power(0.5 * exponent, 0.01)
    curves |= {(f"m{i}", "activation", 0): power(0.0, 0.01) for i in range(more)}
    return Baseline.of(CoordCheck.from_records(synthetic(curves), gate, config={"depth": 2}))


def test_each_entry_is_beside_the_one_before_and_the_last_one_decides(gate):
    entries = {"a": baseline(gate, 0.0), "b": baseline(gate, 0.3), "c": baseline(gate, 0.3)}
    history = History.of(entries)
    assert [step.verdict for step in history.steps] == ["fail", "pass"] and history.verdict == "pass"
    assert history.sentence() == "SAME: all 3 curves scale in c as in b."
    rows = history_rows(history)
    assert rows["entry"].tolist() == ["a", "b", "c"]
    assert rows.iloc[0, 1] == "" and rows.iloc[1, 1].startswith(
        "CHANGED: of 3 curves 2 scale otherwise. fc, activation"
    )
    drifted = History.of(entries, since="a")
    assert drifted.verdict == "fail" and "changed by +0.300" in drifted.sentence()
    assert History.of(entries, since="a", tolerance=0.5).verdict == "pass"
    assert History.of({"a": entries["a"]}).sentence() == "FIRST: 3 curves of a, and nothing to compare with."
    assert History.of({"a": entries["a"]}).verdict == "pass"


@pytest.mark.parametrize(
    ("names", "since", "said"),
    [
        ("", None, r"this history is empty\. For example coordcheck-history history --add"),
        ("a", "a", r"`--since` is an entry before the last; got 'a'\. This history has one entry"),
        ("ab", "b", r"got 'b'\. For example --since a\."),
    ],
)
def test_what_cannot_be_compared_is_said(gate, names, since, said):
    with pytest.raises(ValueError, match=said):
        History.of({name: baseline(gate, 0.0) for name in names}, since)


def test_entries_of_different_models_are_named(gate):
    other = Baseline.of(CoordCheck.from_records(synthetic({("x", "delta", 1): power(0.0, 0.01)}), gate))
    with pytest.raises(ValueError, match="a and b: the baseline has no curve in common"):
        History.of({"a": baseline(gate, 0.0), "b": other})


def test_the_picture_shows_the_curves_that_moved_most(gate):
    entries = {"a": baseline(gate, 0.0, 12), "b$c$": baseline(gate, 0.4, 12)}
    axes = history_figure(History.of(entries)).axes[0]
    assert len(axes.get_legend().get_texts()) == SHOWN
    assert axes.get_legend().get_texts()[1].get_text() != "fc, delta, step 1"  # a module is there once
    assert axes.get_legend().get_texts()[0].get_text() == "fc, activation, step 0"
    assert axes.get_title(loc="left") == "2 entries, 15 curves; of 10 modules the curve that moved most"
    line = axes.containers[0].lines[0]
    assert line.get_xdata().tolist() == [0, 1] and line.get_ydata().tolist() == pytest.approx([0.0, 0.4], abs=0.02)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["a", "b\\$c\\$"]


def test_measured_slopes_have_their_intervals_and_none_is_made_up(gate):
    curves = {("fc", "activation", 0): power(0.5, 0.01), ("dead", "activation", 0): lambda width, seed: 0.0}
    rows = Baseline.of(CoordCheck.from_records(synthetic(curves), gate)).measured().set_index("module")
    low, slope, high = rows.loc["fc", ["low", "slope", "high"]]
    assert low < slope < high and slope == pytest.approx(0.5)
    assert rows.loc["dead", ["slope", "low", "high"]].isna().all()


def test_the_revision_is_gits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _revision() == "unversioned"
    for arguments in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x", "--allow-empty"],
    ):
        subprocess.run(["git", *arguments], check=True)
    assert re.fullmatch("[0-9a-f]{7,}", _revision())


def test_a_check_is_added_and_what_changed_is_told(tmp_path, gate):
    CoordCheck.from_records(
        synthetic({("fc", "activation", 0): power(0.4, 0.01)}), gate, config={"depth": 2}
    ).save_text(tmp_path / "mine")
    baseline(gate, 0.0).write(tmp_path / "history/20200101T000000Z-0123abc.json")
    code, out, err = run(tmp_path, "history", "--add", "mine", entry="history", prelude=NO_TORCH)
    assert (code, err) == (3, "") and out.startswith("CHANGED: of 3 curves 1 scale otherwise, 2 are in 20200101T")
    names = sorted(path.name for path in (tmp_path / "history").iterdir() if path.name != ".lock")
    assert re.fullmatch(r"20\d{6}T\d{6}Z-unversioned\.json", names[1]) and names[2:] == ["history.csv", "history.png"]
    table = pd.read_csv(tmp_path / "history/history.csv")
    assert table["entry"].nunique() == 2 and len(table) == 4
    code, out, err = run(tmp_path, "history", "--tolerance", "nan", entry="history")
    assert (code, out, err.count("\n")) == (1, "", 1) and "`--tolerance` is a finite number" in err
