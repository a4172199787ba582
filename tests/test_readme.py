"""README's examples run, word for word."""

import re
from pathlib import Path

import mup
import pandas as pd
import torch
from torch import nn

import coordcheck
from conftest import NO_TORCH, run

README = (Path(__file__).parents[1] / "README.md").read_text()


def block(containing):
    """The one Python example that contains a text."""
    (found,) = (code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if containing in code)
    return found


def test_the_loop_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = block("recorder.save")
    assert "width=4096" in example
    for width in (16, 32, 64):
        model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

        def train_step(batch, model=model, optimizer=optimizer):
            model(batch).square().mean().backward()
            optimizer.step()

        names = {"coordcheck": coordcheck, "model": model, "train_step": train_step, "batches": torch.randn(3, 16, 8)}
        exec(example.replace("4096", str(width)), names)
    (command,) = re.findall(r"`coordcheck-report (checks/mine)`", README)
    code, out, err = run(tmp_path, command, "--expect", "sp", entry="report", prelude=NO_TORCH)
    assert code == 4 and err == "", out  # one seed has no interval
    assert pd.read_csv(tmp_path / command / "slopes.csv")["kind"].unique().tolist() == [
        "activation",
        "effective_update",
    ]


def test_ones_own_model():
    def build(width):
        def make(w):
            return nn.Sequential(nn.Embedding(16, w), nn.Linear(w, w), mup.MuReadout(w, 16))

        model = make(width)
        mup.set_base_shapes(model, make(32), delta=make(64))
        return model

    tokens = torch.arange(64).view(4, 16) % 16
    example = block("check.verdict  #").replace("widths=(64, 128, 256, 512)", "widths=(32, 64, 128)")
    example = re.sub(r"check\.(save|plot)\(.*|.*CoordCheck\.load.*", "", example)
    names = {"mup": mup, "build": build, "batch": (tokens, tokens.roll(-1, 1))}
    exec(example, names)
    assert names["check"].verdict in ("pass", "inconclusive"), names["check"]
