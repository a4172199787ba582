"""The workflow of the documentation is the example's, and its steps run, word for word, in a copy of the example."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from coordcheck import CoordCheck
from coordcheck.judge.baseline import Baseline

ROOT = Path(__file__).parents[1]
TEAM = ROOT / "examples/team"
PAGE = ROOT / "docs/ci.md"


@pytest.fixture
def repository(tmp_path):
    """A copy of the example, and commands that run this code."""
    shutil.copytree(TEAM, tmp_path / "team", ignore=shutil.ignore_patterns("__pycache__", "checks", "plots"))
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    (tmp_path / "bin").mkdir()
    for name, target in scripts.items():
        module, function = target.split(":")
        path = tmp_path / "bin" / name
        path.write_text(f"#!{sys.executable}\nfrom {module} import {function}\n{function}()\n")
        path.chmod(0o755)
    (tmp_path / "bin/python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "bin/python").chmod(0o755)
    return tmp_path / "team"


def sh(repository, command, **variables):
    """As a step of a GitHub workflow runs."""
    paths = [str(repository.parent / "bin"), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **variables}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    ran = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", command],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return ran.returncode, ran.stdout + ran.stderr


def steps():
    """What the workflow runs, all but the installation."""
    (job,) = yaml.safe_load((TEAM / "workflow.yml").read_text())["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands[0] == 'pip install "$COORDCHECK" pytest'
    return commands[1:]


def test_the_documented_workflow_is_the_examples_word_for_word():
    page = PAGE.read_text()
    (block,) = re.findall(r"```yaml\n(name: coordinate check\n.*?)```", page, re.DOTALL)
    assert block == (TEAM / "workflow.yml").read_text()
    assert "pip install coordcheck" not in page + block  # it is not on PyPI


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_workflows_steps_pass_and_turn_red_with_the_users_model(repository):
    (once,) = re.findall(r"^(coordcheck-gate .*--update) .*# once", (TEAM / "README.md").read_text(), re.MULTILINE)
    check, gate, test = steps()
    code, out = sh(repository, check)
    assert code == 0, out
    code, out = sh(repository, gate)
    assert code == 1 and "--update" in out  # says how to write the baseline
    assert sh(repository, once)[0] == 0
    for step in (gate, test):
        code, out = sh(repository, step)
        assert code == 0, out
    uploaded = [path for path in (repository / "checks").rglob("report.png") if path.parent.name != "runs"]
    assert {path.relative_to(repository / "checks").parts[0] for path in uploaded} == {"mine", "pytest"}

    model = repository / "lm/model.py"
    model.write_text(model.read_text().replace("1e-3 * model.multiplier", "1e-3"))
    assert sh(repository, check)[0] == 0  # the gate decides
    code, out = sh(repository, gate)
    assert code == 3 and "curves changed how they scale" in out
    assert (repository / "checks/junit.xml").is_file()
    code, out = sh(repository, test)
    assert code == 1 and "First at fault: blocks.0." in out

    model.write_text(model.read_text().replace("def build(", "def built("))
    code, out = sh(repository, check)
    assert code == 1 and "lm.model.build" in out  # an error is none of the verdicts that the gate decides on


FAST = "model.optimizer=lm.model.optimizer\nwidths=[64,128,256] seeds=2 steps=1 kinds=[activation] control=false "
FAST += "try_advice=false rerun=false device=cpu data.batch=2 data.context=16"


@pytest.mark.slow
def test_the_steps_of_the_action_and_of_gitlab_tell_the_file_and_the_line(repository):
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    model = repository / "lm/model.py"
    model.write_text(model.read_text().replace("std=parameter.shape[1] ** -0.5", "std=parameter.shape[1] ** -1.0"))
    (repository / "widths=6").touch()  # which [64,128,256] matches as a pattern of file names
    line = 1 + next(i for i, text in enumerate(model.read_text().splitlines()) if "** -1.0" in text)
    given = {name: value.get("default", "") for name, value in action["inputs"].items()} | {"overrides": FAST}
    given["build"] = "lm.model.build"
    files = {name: repository.parent / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}

    def step(name, **inputs):
        (found,) = (step for step in action["runs"]["steps"] if step["name"].startswith(name))
        values = {f"${{{{ inputs.{key} }}}}": value for key, value in {**given, **inputs}.items()}
        values["${{ github.action_path }}"] = str(ROOT)
        environment = {key: values[value] for key, value in found["env"].items()}
        environment |= {key: str(path) for key, path in files.items()}
        environment |= {"GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": str(repository)}
        assert found["shell"] == "bash"
        return sh(repository, found["run"], **environment)

    code, out = step("Install")
    assert code == 0 and out.strip() == str(repository.parent / "bin/coordcheck")
    code, out = step("Check")
    assert code == 0, out
    code, out = step("Gate")
    assert code == 3 and f"::error file=lm/model.py,line={line},title=coordcheck%3A init::" in out
    told = dict(line.split("=") for line in files["GITHUB_OUTPUT"].read_text().splitlines())
    assert told["verdict"] == "fail" and "coordcheck: FAIL" in (repository / told["comment"]).read_text()
    assert "coordcheck: FAIL" in files["GITHUB_STEP_SUMMARY"].read_text()
    assert {*action["outputs"]} == {*told}

    Baseline.of(CoordCheck.load(repository / "checks/coordcheck")).write(repository / "slopes.json")
    code, out = step("Gate", baseline="slopes.json")
    assert code == 0 and "::" not in out
    assert files["GITHUB_OUTPUT"].read_text().splitlines()[2] == "verdict=pass"
    job = yaml.safe_load((TEAM / "gitlab-ci.yml").read_text())["coordcheck"]
    check, gate = job["script"]
    assert check == steps()[0]  # which the test above runs
    shutil.copytree(repository / "checks/coordcheck", repository / "checks/mine")
    code, out = sh(repository, gate, CI_PROJECT_DIR=str(repository))
    assert code == 3, out
    reports = job["artifacts"]["reports"]
    first = json.loads((repository / reports["codequality"]).read_text())[0]
    assert first["location"] == {"path": "lm/model.py", "lines": {"begin": line}}
    assert (repository / reports["junit"]).is_file()

    hook = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())[0]
    (used,) = (yaml.safe_load(b) for b in re.findall(r"```yaml\n(repos:.*?)```", PAGE.read_text(), re.DOTALL))
    (with_it,) = used["repos"][0]["hooks"]
    assert with_it["id"] == hook["id"]
    code, out = sh(repository, " ".join([hook["entry"], *with_it["args"]]))
    assert code == 3 and "init: blocks.0.up.weight" in out


def test_what_the_documentation_shows_of_the_action_and_of_gitlab_is_there():
    page = PAGE.read_text()
    (used,) = re.findall(r"      - uses: us/coordcheck@.*?```", page, re.DOTALL)
    (step,) = yaml.safe_load(used.removesuffix("```"))
    assert {*step["with"]} <= {*yaml.safe_load((ROOT / "action.yml").read_text())["inputs"]}
    assert f"```yaml\n{(TEAM / 'gitlab-ci.yml').read_text()}```" in page
