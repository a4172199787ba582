"""Hydra's launchers run cells in other processes: exit code, a job that raises, a worker that is killed."""

from importlib.util import find_spec

import pandas as pd
import pytest

from conftest import run

CELLS = """
import glob, json, os, signal, time, torch
from torch import nn

XY = torch.randn(16, 8), torch.randint(0, 4, (16,))

def batch(seed):
    return XY

def build(width, kind):
    if kind == "raises":
        raise KeyError("no such kind")
    if kind == "killed":
        deadline = time.monotonic() + 150  # the others first, for some launchers lose all that are at work
        while time.monotonic() < deadline and len(ended()) < 3:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
    model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))
    with torch.no_grad():
        model[0].weight.mul_(width if kind == "explodes" else 1)
    return model

def ended():
    said = [open(path).read() for path in glob.glob("checks/sweep/**/outcome.json", recursive=True)]
    return [text for text in said if "left no records" not in text]
"""
SWEEP = ["-m", "model=own", "model.build=cells.build", "model.batch=cells.batch", "widths=[8,16,32]", "seeds=3"]
SWEEP += ["steps=1", "kinds=[activation]", "control=false", "audit=false", "hydra.sweep.dir=checks/sweep", "plots=null"]
LAUNCHERS = {
    "joblib": ["hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra.launcher.timeout_min=5"],
    "ray": ["+hydra.launcher.ray.init.num_cpus=2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_four_cells_of_a_launcher_of_which_one_raises_and_one_is_killed(launcher, tmp_path):
    package = f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher"
    if find_spec("hydra_plugins") is None or find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    (tmp_path / "cells.py").write_text(CELLS)
    kinds = "model.args.kind=fine,explodes,raises,killed"
    code, out, err = run(tmp_path, *SWEEP, f"hydra/launcher={launcher}", *LAUNCHERS[launcher], kinds)
    assert code == 1, out + err
    summary = pd.read_csv(tmp_path / "checks/sweep/summary.csv")
    assert [cell.rpartition("=")[2] for cell in summary["cell"]] == ["fine", "explodes"]
    assert summary["verdict"][1] == "fail"
    *_, raised, killed = [line for line in out.splitlines() if line]
    assert "kind=raises" in raised and "`build` raises KeyError: 'no such kind' (cells.py:" in raised
    assert killed.endswith(": left no records") and "kind=killed" in killed
