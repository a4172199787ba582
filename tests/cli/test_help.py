"""Help of every command is a manual page, and it comes at once."""

import importlib
import re
import resource
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import coordcheck

SCRIPTS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
HEAVY = "import sys; sys.modules.update(dict.fromkeys(['torch', 'pandas', 'matplotlib', 'mup'])); "


def ask(name, argument):
    """What a command prints, and how many seconds of the processor it took."""
    module, function = SCRIPTS[name].split(":")
    code = f"{HEAVY}sys.argv[0] = {name!r}; import importlib; importlib.import_module({module!r}).{function}()"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_command_has_a_manual_page_at_once(name, monkeypatch):
    page, seconds = ask(name, "--help")
    assert seconds < 0.5  # of the processor: the clock on the wall also counts what else the machine does
    for section in ("usage|Synopsis", "options|Options", "exit codes|Exit codes", "examples|Examples"):
        assert re.search(f"^({section})", page, re.MULTILINE), section
    assert all(re.search(rf"^ +{code} +\w+", page, re.MULTILINE) for code in (0, 1, 2, 3, 4))
    assert max(map(len, page.splitlines())) < 135
    options = re.findall(r"^  (?:-\w, )?(--[\w-]+)", page, re.MULTILINE)
    assert {"--help", "--version"} <= {*options}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_command_says_its_version(name):
    assert ask(name, "--version")[0] == f"{name} {coordcheck.__version__}\n"


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "coordcheck"])
def test_the_examples_of_a_manual_page_are_understood(name, monkeypatch):
    module = importlib.import_module(SCRIPTS[name].partition(":")[0])
    parsers = []
    monkeypatch.setattr(module, "end", lambda command, parser: parsers.append(parser))
    module.main()
    examples = re.findall(rf"^  ({name} .*)$", parsers[0].format_help(), re.MULTILINE)
    assert len(examples) >= 2
    for example in examples:
        parsers[0].parse_args(shlex.split(example)[1:])


def test_the_manual_of_coordcheck_tells_all_groups_and_keys():
    from dataclasses import fields

    from coordcheck.cli.manual import manual
    from coordcheck.config.load import load
    from coordcheck.config.schema import CheckConfig

    page = manual()
    groups = {"model", "parametrization", "embedding", "readout", "optimizer", "data", "gate", "executor"}
    for field in fields(CheckConfig):
        assert re.search(rf"^  {field.name}{' ' if field.name in groups else ':'}", page, re.MULTILINE), field.name
    examples = re.findall(r"^  coordcheck +((?!-m)\S+=.*?)(?:   .*)?$", page.partition("Examples")[2], re.MULTILINE)
    assert len(examples) >= 4
    for example in examples:
        assert load(shlex.split(example)).widths
