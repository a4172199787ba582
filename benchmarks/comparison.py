"""What do other tools show of a correct model and of three planted faults, and what do they cost?

    pip install torch-module-monitor "unit-scaling[analysis]"
    pip install --no-deps cellarium-ml         # it wants numpy 1, so that its one function is loaded from its file
    python benchmarks/comparison.py            # docs/comparison.md holds its output; a tool that is missing is left out

Every tool gets the same small GPT in muP, written in plain torch, with the optimizer that belongs to it, the same
widths, batches, steps and seeds. Each runs in a process of its own; seconds are of the processor, with imports. What
a user has to write is the function that stands here for it. Where a tool gives numbers and no verdict, the steepest of
its lines is told, as somebody with a ruler would find it: nothing says where a fault begins to be one.
"""

import importlib.util
import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from types import ModuleType

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

BASE, WIDTHS, STEPS, SEEDS, VOCABULARY = 32, (32, 64, 128, 256), 4, 3, 64
FAULTS = {
    "none": "a correct model",
    "rate": "`blocks.0.fc`: its learning rate does not shrink with width",
    "init": "`blocks.1.fc`: its init std does not shrink with width",
    "output": "`blocks.1`: what its attention adds is divided by sqrt(width)",
}


class Attention(nn.Module):
    """Causal, with heads of 16."""

    def __init__(self, width: int, divisor: float):
        super().__init__()
        self.qkv, self.out = (nn.Linear(width, n * width, bias=False) for n in (3, 1))
        self.divisor = divisor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shapes (batch, tokens, width)."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, -1, 16).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
        return self.out(mixed) / self.divisor


class Block(nn.Module):
    """Attention, then a layer, each after a norm."""

    def __init__(self, width: int, divisor: float):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, divisor)
        self.fc, self.proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shapes (batch, tokens, width)."""
        x = x + self.attention(self.norm_1(x))
        return x + self.proj(F.gelu(self.fc(self.norm_2(x))))


class Model(nn.Module):
    """A GPT of two blocks with a readout that starts at zero."""

    def __init__(self, width: int, fault: str):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        divisors = (1.0, (width / BASE) ** 0.5 if fault == "output" else 1.0)
        self.blocks = nn.Sequential(*(Block(width, divisor) for divisor in divisors))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of shape (batch, tokens, vocabulary)."""
        return self.head(self.norm(self.blocks(self.embedding(tokens))))


def build(width: int, fault: str) -> nn.Module:
    """The model, initialized as muP wants it but for the fault."""
    model = Model(width, fault)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            wide = BASE if fault == "init" and name == "blocks.1.fc" else width
            nn.init.normal_(module.weight, std=0.0 if name == "head" else wide**-0.5)
    return model


def optimizer(model: nn.Module, fault: str) -> torch.optim.Optimizer:
    """Adam with the rates that muP wants but for the fault."""
    groups = []
    for name, module in model.named_modules():
        scaled = isinstance(module, nn.Linear) and not (fault == "rate" and name == "blocks.0.fc")
        rate = 2e-3 * (BASE / module.in_features if scaled else 1.0)
        groups += [{"params": [p], "lr": rate} for p in module.parameters(recurse=False)]
    return torch.optim.Adam(groups, eps=1e-12)


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and the next ones."""
    tokens = torch.randint(VOCABULARY, (8, 33), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


# What a user of each tool writes: a function of (build, optimizer, batch), with what it shows.


def with_coordcheck(build: Callable, optimizer: Callable, batch: Callable) -> str:
    """A verdict and findings."""
    import coordcheck

    check = coordcheck.coord_check(build, batch, widths=WIDTHS, steps=STEPS, optimizer=optimizer)
    if check.verdict != "fail":
        return check.verdict
    first = check.findings[0]
    return f"fails: {first.fault} at `{first.parameter or first.module}`"


def with_mup(build: Callable, optimizer: Callable, batch: Callable) -> str:
    """A frame and a picture."""
    frame = mup_frame(build, optimizer, batch)
    from mup.coord_check import plot_coord_data

    plot_coord_data(frame, save_to="coords.png", legend="full")
    return f"a picture; steepest: {steepest(frame, ['module', 't'])}"


def mup_frame(build: Callable, optimizer: Callable, batch: Callable) -> pd.DataFrame:
    """What mup records; its public function makes the optimizer itself, so that this is the private one below it."""
    from mup.coord_check import _get_coord_data

    inputs, targets = batch(0)
    models = {width: (lambda width=width: build(width)) for width in WIDTHS}
    batches = [(inputs, targets.flatten())] * STEPS
    return _get_coord_data(
        models, batches, optimizer, nsteps=STEPS, flatten_output=True, cuda=False, nseeds=SEEDS, show_progress=False
    )


def with_assert_slope_equals(build: Callable, optimizer: Callable, batch: Callable) -> str:
    """An exception at the first series whose slope is another one, for a tolerance that its user chooses."""
    assert_slope_equals = from_file("cellarium-ml", "cellarium/ml/utilities/testing.py").assert_slope_equals
    frame = mup_frame(build, optimizer, batch)
    for (step, module), rows in frame.groupby(["t", "module"], sort=False):
        sizes = rows.groupby("width")["l1"].mean()
        if (sizes > 0).all():
            try:
                assert_slope_equals(sizes, 0.0, loglog=True, atol=0.1)
            except ValueError:
                return f"raises at {where(step, module)}"
    return "passes"


def with_torch_module_monitor(build: Callable, optimizer: Callable, batch: Callable) -> str:
    """The refined coordinate check at each width; the widths are put side by side here."""
    from torch_module_monitor import ModuleMonitor, RefinedCoordinateCheck

    rows = []
    for seed in range(SEEDS):
        for width in WIDTHS:
            torch.manual_seed(seed)
            model, reference = build(width), build(width)
            reference.load_state_dict(model.state_dict())
            adam = optimizer(model)
            monitor = ModuleMonitor(monitor_step_fn=lambda step: True)
            monitor.set_module(model)
            monitor.set_reference_module(reference)
            monitor.add_activation_metric("l1", lambda x: x.abs().mean())
            check = RefinedCoordinateCheck(monitor)
            inputs, targets = batch(0)
            for step in range(STEPS):
                monitor.begin_step(step)
                with torch.no_grad():
                    reference(inputs)
                loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
                loss.backward()
                check.refined_coordinate_check()
                adam.step()
                adam.zero_grad()
                monitor.end_step()
                for name, value in monitor.get_step_metrics().items():
                    if name.startswith("RCC (W_t-W_0)x_t/") and name.count("/") == 2:
                        # an l2 norm over the last dimension: what is typical of an entry is its share
                        share = float(value) / np.sqrt(VOCABULARY if "head" in name else width)
                        rows.append({"width": width, "t": step, "module": name.split("/")[1], "l1": share})
    frame = pd.DataFrame(rows)
    return f"numbers; steepest: {steepest(frame, ['module', 't'])}"


def with_unit_scaling(build: Callable, optimizer: Callable, batch: Callable) -> str:
    """The scale of every tensor in one pass at each width; side by side here. Nothing is trained."""
    from unit_scaling.analysis import graph_to_dataframe
    from unit_scaling.transforms import prune_non_float_tensors, track_scales

    rows = []
    for width in WIDTHS:
        torch.manual_seed(0)
        embedded = build(width)
        tokens, targets = batch(0)
        model = track_scales(nn.Sequential(embedded.blocks, embedded.norm, embedded.head))
        F.cross_entropy(model(embedded.embedding(tokens)).flatten(0, 1), targets.flatten()).backward()
        frame = graph_to_dataframe(prune_non_float_tensors(model.scales_graph()))
        values = frame[(frame["direction"] == "fwd") & (frame["weight tensor"] == False)]  # noqa: E712
        rows += [
            {"width": width, "module": row["layer"], "t": 0, "l1": row["standard deviation"]}
            for _, row in values.iterrows()
        ]
    return f"a picture of each width; steepest: {steepest(pd.DataFrame(rows), ['module', 't'])}"


def steepest(frame: pd.DataFrame, keys: list[str]) -> str:
    """The line whose slope is farthest from zero, as a reader with a ruler finds it."""
    sizes = frame.groupby([*keys, "width"])["l1"].mean().unstack()
    sizes = sizes[(sizes > 0).all(axis=1)]
    slopes = pd.Series(np.polyfit(np.log(sizes.columns.astype(float)), np.log(sizes.to_numpy()).T, 1)[0], sizes.index)
    module, step = slopes.abs().idxmax()
    return f"{where(step, module)}, {slopes[module, step]:+.2f}"


def where(step: int, module: str) -> str:
    """A module and a step, which mup counts from 1."""
    return f"`{module or '(model)'}`, t = {step}"


def from_file(package: str, path: str) -> ModuleType:
    """A module of a package, without what else the package imports."""
    spec = importlib.util.spec_from_file_location("loaded", str(distribution(package).locate_file(path)))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOLS: dict[str, tuple[str, Callable[[Callable, Callable, Callable], str]]] = {
    "coordcheck": ("coordcheck", with_coordcheck),
    "mup.coord_check": ("mup", with_mup),
    "torch-module-monitor": ("torch-module-monitor", with_torch_module_monitor),
    "cellarium-ml's assert_slope_equals": ("cellarium-ml", with_assert_slope_equals),
    "unit-scaling's analysis": ("unit-scaling[analysis]", with_unit_scaling),
}


def one(tool: str, fault: str) -> None:
    """Prints what a tool shows of a fault, in a directory of its own."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        shown = TOOLS[tool][1](lambda w: build(w, fault), lambda m: optimizer(m, fault), batch)
    used = os.times()
    print(json.dumps({"shown": shown, "seconds": used.user + used.system + used.children_user}))


def lines(tool: str) -> int:
    """Lines of code that a user writes, without the signature, docstring, blank lines and comments."""
    functions = [TOOLS[tool][1]]
    if tool in ("mup.coord_check", "cellarium-ml's assert_slope_equals"):
        functions.append(mup_frame)
    written = [line.strip() for f in functions for line in inspect.getsource(f).splitlines()[2:]]
    return sum(bool(line) and not line.startswith("#") for line in written)


def megabytes(package: str) -> str:
    """Installed size of a package and of what it needs, without torch and what torch needs."""
    ours, missing = needs(package)
    given, _ = needs("torch")
    files = [file.locate() for name in ours - given for file in distribution(name).files or []]
    size = sum(file.stat().st_size for file in files if file.exists())
    left_out = ", ".join(sorted(missing)) if len(missing) < 3 else f"{len(missing)} packages"
    return f"{size / 1e6:.0f}" + (f" ({left_out} not installed, not counted)" if missing else "")


def needs(package: str) -> tuple[set[str], set[str]]:
    """Names of a package and of all that it needs without extras: those that are installed, and those that are not."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    package, _, extra = package.rstrip("]").partition("[")
    extras = {canonicalize_name(package): extra}
    found, missing, todo = set(), set(), [canonicalize_name(package)]
    while todo:
        name = todo.pop()
        if name in found | missing:
            continue
        try:
            required = distribution(name).requires or []
        except PackageNotFoundError:
            missing.add(name)
            continue
        found.add(name)
        for line in required:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extras.get(name, "")}):
                todo.append(canonicalize_name(requirement.name))
    return found, missing


def main() -> None:
    """Prints the tables of docs/comparison.md."""
    from coordcheck.report.tables import markdown_table

    shown, costs = [], []
    for tool, (package, _) in TOOLS.items():
        try:
            version = distribution(package.partition("[")[0]).version
        except PackageNotFoundError:
            print(f"{tool}: not installed, left out", file=sys.stderr)
            continue
        results = []
        for fault in FAULTS:
            run = subprocess.run([sys.executable, __file__, tool, fault], capture_output=True, text=True)
            said = run.stderr.strip().splitlines()[-1:] or [""]
            broke = {"shown": f"broke: {said[0]}", "seconds": np.nan}
            results.append(broke if run.returncode else json.loads(run.stdout.splitlines()[-1]))
            print(tool, fault, results[-1], file=sys.stderr, flush=True)
        shown.append({"tool": tool, **{FAULTS[fault]: r["shown"] for fault, r in zip(FAULTS, results, strict=True)}})
        seconds = [r["seconds"] for r in results]
        costs.append(
            {
                "tool": f"{tool} {version}",
                "lines": str(lines(tool)),
                "seconds": f"{min(seconds):.0f} to {max(seconds):.0f}",
                "MB": megabytes(package),
            }
        )
    print(markdown_table(pd.DataFrame(shown)).replace("\\`", "`"))
    print()
    print(markdown_table(pd.DataFrame(costs)))


if __name__ == "__main__":
    one(*sys.argv[1:]) if len(sys.argv) == 3 else main()
