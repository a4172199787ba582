"""Shared by all tests: small cells, records made by hand, and skipping of what this machine cannot run."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from coordcheck.config.load import default_gate, load
from coordcheck.config.schema import CheckConfig
from coordcheck.models.configured import ConfiguredCell
from coordcheck.models.families import make_cell
from coordcheck.observe.recorder import Recorder
from coordcheck.records.schema import WEIGHTS
from coordcheck.run.train import RunPlan

NO_TORCH = "import sys; sys.modules['torch'] = None; "
LONG = re.compile(r"^(about \d+ (s|min) for \d+ runs on|preparing has taken \d+ s so far).*\n", re.MULTILINE)
TINY = ["model.depth=2", "data.batch=2", "data.context=16", "widths=[64,128,256]", "seeds=3"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The suite runs several processes; more threads than cores would slow all of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def advice_untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks that fail are many here; what is advised is tried where a test puts `trials_of` back."""
    monkeypatch.setattr("coordcheck.check.trials_of", lambda *_: [])
    if "jax" in sys.modules:
        monkeypatch.setattr("coordcheck.jax.check.trials_of", lambda *_: [])


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What JAX compiles, most of the time that its tests take, is kept for others that need the same."""
    if "jax" in sys.modules:
        import jax

        jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.getbasetemp() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def gate():
    return default_gate()


@pytest.fixture(scope="session")
def two():
    """Two processes that talk to each other, for the tests in `distributed`."""
    yield from _ranks(2)


@pytest.fixture(scope="session")
def four():
    yield from _ranks(4)


def _ranks(size):
    from harness import Ranks

    ranks = Ranks(size)
    yield ranks
    ranks.stop()


def tiny_config(*overrides: str) -> CheckConfig:
    return load([*TINY, *overrides])


def tiny_cell(*overrides: str) -> ConfiguredCell:
    return make_cell(tiny_config(*overrides))


def plan_of(config: CheckConfig, device: str = "cpu") -> RunPlan:
    return RunPlan(config.steps, config.kinds, config.modules, torch.device(device), config.precision)


def synthetic(
    size: Mapping[tuple[str, str, int], Callable[[int, int], float]],
    widths: tuple[int, ...] = (64, 128, 256, 512),
    seeds: int = 5,
    role: str = "hidden",
) -> pd.DataFrame:
    """Records with sizes given by a function of (width, seed) for each (module, kind, step)."""
    order = {module: i for i, module in enumerate(dict.fromkeys(module for module, _, _ in size))}
    rows = [
        {
            "width": width,
            "seed": seed,
            "step": step,
            "module": module,
            "order": order[module],
            "role": role,
            "kind": kind,
            "l1": of(width, seed),
            "rms": 1.25 * of(width, seed),
            "max": 4 * of(width, seed),
            "nonfinite": 0 if np.isfinite(of(width, seed)) else 1,
            "count": 8 * width,
        }
        for (module, kind, step), of in size.items()
        for width in widths
        for seed in range(seeds)
    ]
    records = pd.DataFrame(rows).astype({"role": "string"})
    if records["kind"].isin(WEIGHTS).any():
        records["spectral"] = records["l1"].where(records["kind"].isin(WEIGHTS))
    return records


def power(exponent: float, noise: float = 0.0) -> Callable[[int, int], float]:
    """width ** (exponent + noise of the seed), with a constant that differs between seeds."""

    def of(width: int, seed: int) -> float:
        own = exponent + noise * (seed - 2)
        return float((1 + seed) * width**own)

    return of


def recorded(model, inputs, steps=1, **kwargs):
    """Records of some forward passes."""
    with Recorder(model, width=8, **kwargs) as recorder:
        for _ in range(steps):
            model(inputs)
            recorder.step()
    return recorder.records()


def row(records, module, kind="activation", step=0):
    return records[(records.module == module) & (records.kind == kind) & (records.step == step)].iloc[0]


class Dispatched(TorchDispatchMode):
    """What is computed, by name; views, which launch nothing, are left out, and a copy from the CPU, which waits."""

    def __init__(self):
        super().__init__()
        self.launched = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        on_cpu = any(isinstance(a, torch.Tensor) and a.device.type == "cpu" for a in tree_leaves((args, kwargs)))
        if isinstance(result, torch.Tensor) and result.device.type != "cpu":
            assert not on_cpu, f"{func} copies to the device"
            if not func.is_view and func.overloadpacket is not torch.ops.aten.detach:
                self.launched.append(str(func.overloadpacket))
        return result


def command(directory, *arguments, entry="check", prelude=""):
    """A command as a user runs it, begun in its own process."""
    code = f"{prelude}import coordcheck.cli.{entry}; coordcheck.cli.{entry}.main()"
    return subprocess.Popen(
        [sys.executable, "-W", "error::DeprecationWarning:coordcheck", "-c", code, *arguments],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    )


def run(directory, *arguments, **kwargs):
    """A command's exit code and what it printed; what it says because this machine is busy is left out."""
    process = command(directory, *arguments, **kwargs)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, LONG.sub("", err)
