"""The workflow of the documentation is the example's, and its steps run, word for word, in a copy of the example."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TEAM = ROOT / "examples/team"


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


def sh(repository, command):
    """As a step of a GitHub workflow runs."""
    paths = [str(repository.parent / "bin"), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
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
    page = (ROOT / "docs/ci.md").read_text()
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
