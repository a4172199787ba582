"""Where findings are shown in a review: the line is that of the user's code, and names of others end nothing."""

import json

import pandas as pd
import pytest

from conftest import power, synthetic
from coordcheck.judge.judgement import Judgement
from coordcheck.judge.ruling import Ruling, rule_by_theory
from coordcheck.report.annotations import Annotation, code_quality, functions_of, github, of_ruling
from coordcheck.report.places import Place, place_of

SOURCE = """
class Block:
    def __init__(self):
        weight = 1

    def reset(self):
        def inner(x):
            return x
        inner(2)

def build(width):
    return [fill(x) for x in range(3)]

def optimizer(model):
    return None
"""
FUNCTIONS = {"build": "lm.model.build", "optimizer": "lm.model.optimizer"}


@pytest.fixture(autouse=True)
def sources(tmp_path, monkeypatch):
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm/model.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_WORKSPACE", "CI_PROJECT_DIR", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def placed(rules, quantity="init", functions=FUNCTIONS):
    return place_of(quantity, "fc.weight", pd.DataFrame([{"parameter": "fc.weight", "rules": rules}]), functions)


@pytest.mark.parametrize(
    ("rules", "line"),
    [
        ("Block.reset model.py:9 (std 0.1)", 9),
        ("Linear.reset_parameters linear.py:124 (std 0.02) -> Block.__init__ model.py:4 (std 0.1)", 4),
        ("Block.reset model.py:9 (std 1) -> Linear.reset_parameters linear.py:124 (in part, std 0.02)", 9),
        ("Block.reset.<locals>.inner model.py:8 (std 0.1)", 8),
        ("Block.__init__ model.py:4 (std 1) -> Block.reset model.py:9 (std 0.1)", 9),
        ("<module> model.py:2 (std 0.1)", 2),
        ("build.<locals>.<listcomp> model.py:12 (std 0.1)", 12),
        ("Block.reset model.py:4 (std 0.1)", 11),  # of another model.py: the line is not in that function
        ("its initializer", 11),
        ("", 11),
    ],
)
def test_the_line_is_that_of_the_users_last_rule_or_of_the_function_that_builds(rules, line):
    assert placed(rules) == Place("lm/model.py", line)


def test_what_the_optimizer_decides_is_shown_where_it_is_made():
    assert placed("Block.reset model.py:9 (std 0.1)", "learning_rate") == Place("lm/model.py", 14)
    assert placed("", "learning_rate", {"build": "lm.model.build"}) == Place("lm/model.py", 11)
    assert placed("", "learning_rate", {"build": "elsewhere.build"}) is None
    assert place_of("init", None, None, {}) is None


def test_of_two_files_that_could_be_meant_none_is_chosen_and_environments_are_left_out(sources):
    for folder in (".hidden", "venv", "node_modules"):
        (sources / folder).mkdir()
        (sources / folder / "model.py").write_text(SOURCE)
    (sources / "venv/pyvenv.cfg").touch()
    assert placed("Block.reset model.py:9 (std 0.1)").line == 9
    (sources / "other").mkdir()
    (sources / "other/model.py").write_text(SOURCE)
    from coordcheck.report.places import _sources

    _sources.cache_clear()
    assert placed("Block.reset model.py:9 (std 0.1)").line == 11


@pytest.mark.parametrize("name", ["GITHUB_WORKSPACE", "CI_PROJECT_DIR"])
def test_paths_begin_at_the_repositorys_root(sources, monkeypatch, name):
    monkeypatch.setenv(name, str(sources))
    monkeypatch.chdir(sources / "lm")
    assert place_of("", None, None, {"build": "model.build"}) == Place("lm/model.py", 11)


HOSTILE = Annotation(Place("a,b:c.py", 3), True, "init", "fc", "50%\n::error::owned")


def test_an_annotation_of_github_is_one_line_whatever_it_says():
    line = github([HOSTILE])
    assert line == "::error file=a%2Cb%3Ac.py,line=3,title=coordcheck%3A init::50%25 ::error::owned\n"
    assert github([HOSTILE._replace(place=None, fails=False)]).startswith("::warning title=coordcheck%3A init::50%25")
    assert github([HOSTILE] * 30).count("\n") == 10


def test_a_report_of_gitlab_has_its_fields_and_a_fingerprint_that_other_lines_do_not_change():
    moved = HOSTILE._replace(place=Place("a,b:c.py", 9))
    first, second, other = json.loads(code_quality([HOSTILE, moved, HOSTILE._replace(about="out")]))
    assert first["location"] == {"path": "a,b:c.py", "lines": {"begin": 3}} and first["severity"] == "major"
    assert first["check_name"] == "coordcheck-init" and first["description"] == "50% ::error::owned"
    assert first["fingerprint"] == second["fingerprint"] != other["fingerprint"]
    (nowhere,) = json.loads(code_quality([HOSTILE._replace(place=None, fails=False)]))
    assert nowhere["location"]["path"] == "." and nowhere["severity"] == "minor"


def test_a_gate_that_passes_says_nothing_and_one_that_fails_names_each_finding(gate):
    config = {"model": {"build": "lm.model.build"}}
    flat = Judgement.from_records(synthetic({("fc", "delta", 1): power(0.0, 0.01)}), gate, config=config)
    assert of_ruling(Ruling("pass", "", [], flat)) == []
    grown = Judgement.from_records(synthetic({("fc", "delta", 1): power(1.0, 0.01)}), gate, config=config)
    (found,) = of_ruling(rule_by_theory(grown))
    assert found.fails and found.about == "fc.weight" and found.place == Place("lm/model.py", 11)
    assert found.text.startswith("fc.weight: its output's change grows like width^+1.00")
    (changed,) = of_ruling(Ruling("fail", "FAIL: 1 of 1 curves changed", [], flat, pd.DataFrame()))
    assert (changed.rule, changed.text) == ("changed", "FAIL: 1 of 1 curves changed")
    both = of_ruling(Ruling("fail", "FAIL: 1 of 1 curves changed", [], grown, pd.DataFrame()))
    assert [each.rule for each in both] == ["changed", found.rule]  # what decided comes first
    noisy = Judgement.from_records(synthetic({("fc", "delta", 1): power(0.0, 0.5)}), gate)
    (undecided,) = of_ruling(rule_by_theory(noisy))
    assert undecided.text.startswith("INCONCLUSIVE: 1 of 1 curves") and not undecided.fails
    assert functions_of({"model": "built-in"}) == functions_of({}) == {}
