"""Every example of README and docs/ runs, or at least is understood, as it stands there."""

import re
import shlex
import tomllib
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import torch
from torch import nn

import coordcheck
from conftest import NO_TORCH, power, run, synthetic
from coordcheck.config.load import load

HIDDEN_OF_LLAMA = "model.layers.*.self_attn.q_proj.weight"
ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}


def blocks(language):
    """Every example in a language, with its page."""
    return [
        pytest.param(code, id=f"{page}-{number}")
        for page, text in PAGES.items()
        for number, code in enumerate(re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL))
    ]


def commands(text):
    """Every command of ours in shell code, without comments."""
    lines = [line.partition(" #")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line.startswith("coordcheck")]


def build(width):
    return nn.Sequential(nn.Embedding(256, width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 256))


def batch(seed):
    tokens = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code, tmp_path, monkeypatch, capsys, gate):
    monkeypatch.chdir(tmp_path)
    if "def test_" in code:  # what the fixture does is in test_pytest_plugin.py
        compile(code, "example", "exec")
        assert re.search(r"coord_check\(build, batch, widths=.*\)\.assert_passes\(\)", code)
        return
    if "coordcheck.jax" in code:
        pytest.importorskip("flax", reason="JAX is not installed: pip install 'coordcheck[jax]'")
    if "RecorderCallback" in code:  # what they record is in observe/test_callbacks.py
        library = re.findall(r"coordcheck\.callbacks\.(\w+)", code)[0]
        trainer = create_autospec(pytest.importorskip(library).Trainer)
        exec(code, {"Trainer": trainer, **dict.fromkeys(("model", "args", "data"))})
        assert trainer.call_args.kwargs["callbacks"][0].width == 256
        return
    small = code.replace("widths=(64, 128, 256, 512)", "widths=(64, 128, 256)").replace("(8, 65)", "(2, 17)")
    names = {"coordcheck": coordcheck, "torch": torch, "build": build, "batch": batch, "optimizer": adam, "nn": nn}
    if "LlamaConfig" in code:
        pytest.importorskip("transformers")
        table = {
            "version": 1,
            "base_width": 64,
            "entries": [{"parameters": [HIDDEN_OF_LLAMA], "role": "hidden", "lr": -1}],
        }
        coordcheck.Cure.from_dict(table).save("llama/cure.yaml")
        names["batches"] = [torch.randint(256, (2, 9))] * 2
        small = small.replace("width = 1024", "width = 128").replace("width // 16", "8, num_hidden_layers=2")
        exec(small, names)
        assert [group["lr"] for group in names["optimizer"].param_groups] == [3e-3, 1.5e-3]
        return
    if "coordcheck.loggers" in code:  # what is written is in test_loggers.py
        for logger in ("tensorboard", "wandb", "mlflow"):
            monkeypatch.setattr(coordcheck.loggers, logger, create_autospec(getattr(coordcheck.loggers, logger)))
        names["check"] = coordcheck.CoordCheck.from_records(synthetic({("fc", "activation", 0): power(0.0)}), gate)
        names["check"].save("checks/mine")
    if "Cure.load" in code:
        (path,) = re.findall(r'Cure.load\("(.*)"\)', code)
        table = {"version": 1, "base_width": 64, "entries": [{"parameters": ["1.weight"], "role": "hidden", "lr": -1}]}
        coordcheck.Cure.from_dict(table).save(path)
        names["model"] = build(1024 if "width=1024" in code else 256)
    if "Recorder" not in code:
        exec(small, names)
        if "BASE = 64" in code:
            assert names["check"].verdict in ("pass", "inconclusive"), names["check"]
        return
    for width in (16, 32, 64):
        model = build(width)
        optimizer = adam(model)

        def train_step(batch, model=model, optimizer=optimizer):
            model(batch).square().mean().backward()
            optimizer.step()

        loop = {**names, "model": model, "train_step": train_step, "batches": [batch(0)[0]] * 3}
        assert re.search("width=(4096|256),", code)
        exec(re.sub("4096|256", str(width), code), loop)
    code, out, err = run(tmp_path, "checks/mine", "--expect", "sp", entry="report", prelude=NO_TORCH)
    assert code == 4 and err == "", out  # one seed has no interval


def test_what_the_example_prints_is_what_stands_there():
    """README's first example, at its own widths."""
    readme = PAGES["README.md"]
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "print(check)" in code)
    (printed,) = re.findall(r"It prints\n\n```text\n(.*?)```", readme, re.DOTALL)
    names = {}
    exec(code.replace('check.plot("report.png")', "").replace("print(check)", ""), names)
    # torch's versions draw the same weights, but sums may differ in their last digits, and so may rounded slopes
    assert re.sub(r"\d\.\d\d", "x", f"{names['check']!r}\n") == re.sub(r"\d\.\d\d", "x", printed)


@pytest.mark.parametrize("code", [*blocks("bash"), *blocks("text")])
def test_commands_are_understood(code):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for line in commands(code):
        name, *arguments = shlex.split(line.partition("|")[0])
        assert name in scripts, line
        if name not in ("coordcheck", "coordcheck-audit") or {"--help", "-sc", "--cfg"} & {*arguments}:
            continue
        options = {"-m", "-v"}
        given = [argument for argument in arguments if argument not in options]
        if "--config-dir" in given:
            continue  # run by tests/models/test_own.py and test_workflow.py
        swept = [re.sub(r"=([^\[{,]+),.*", r"=\1", argument) if "-m" in arguments else argument for argument in given]
        assert load(swept).widths


def test_links_of_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGES["README.md"]):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert {page for page in PAGES if page != "README.md"} <= {*re.findall(r"[\w-]+\.md", navigation)}
