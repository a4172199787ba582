"""Exponents of what a step does, measured beside what each parametrization's row says of the limit.

    python benchmarks/theory.py mlp gpt

writes benchmarks/theory/. A small learning rate, one step: what a layer's own update makes of its output is then not
mixed with what arrives from the layers before it, and its whole change is the sum of both. Slopes over the narrow
widths and over the wide ones show the drift.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from coordcheck.config.load import default_optimizer_config, load
from coordcheck.config.schema import Optimizer, Parametrization, Precision
from coordcheck.judge.parametrizations import LAYERS, TABLES
from coordcheck.judge.slopes import fit
from coordcheck.models.families import make_cell
from coordcheck.models.optimizers import optimizer_by_row
from coordcheck.models.own import OwnCell
from coordcheck.run.cell import Cell
from coordcheck.run.queue import RunQueue
from coordcheck.run.train import RunPlan

SCHEMES = ("sp", "ntk", "mup", "mean_field")
OPTIMIZERS = ("sgd", "adam", "adafactor", "muon")
WIDTHS = {"mlp": (64, 128, 256, 512), "gpt": (64, 128, 256, 512)}
SEEDS = {"mlp": 12, "gpt": 4}
LR = {"sgd": 1e-2, "adam": 1e-4, "adafactor": 1e-3, "muon": 1e-4}
INPUTS, CLASSES, BATCH = 32, 64, 64
CLOSE = 0.05
HERE = Path(__file__).parent / "theory"


class MLP(nn.Module):
    """Four layers whose products are multiplied as a row says."""

    def __init__(self, width: int, scheme: str):
        super().__init__()
        row, width_mult = TABLES[scheme], width / WIDTHS["mlp"][0]
        self.first = nn.Linear(INPUTS, width, bias=False)
        self.second = nn.Linear(width, width, bias=False)
        self.third = nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, CLASSES, bias=False)
        self.act = nn.GELU()
        self.roles = dict(
            zip(("first", "second", "third", "head"), ("input", "hidden", "hidden", "readout"), strict=True)
        )
        self.factors = {name: width_mult ** row.multiplier(role) for name, role in self.roles.items()}
        for name, role in self.roles.items():
            layer = self.get_submodule(name)
            at_base = (INPUTS if role == "input" else WIDTHS["mlp"][0]) ** -0.5
            nn.init.normal_(layer.weight, std=at_base * width_mult ** row.std(role, row.multiplier(role)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits, (BATCH, CLASSES)."""
        for name in ("first", "second", "third"):
            x = self.act(self.get_submodule(name)(x * self.factors[name]))
        return self.head(x * self.factors["head"])


def mlp(scheme: str, optimizer: str) -> Cell:
    """The MLP as a cell; muP is written here as its row, without the mup package."""
    config = default_optimizer_config()
    config.name, config.lr, config.eps = Optimizer(optimizer), LR[optimizer], 1e-20

    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model, width_mult = MLP(width, scheme), width / WIDTHS["mlp"][0]
        roles = {model.get_submodule(name).weight: role for name, role in model.roles.items()}
        groups = [{"params": [*roles], "weight_decay": 0.0}]
        return model, optimizer_by_row(groups, config, Parametrization(scheme), roles, width_mult)

    def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(BATCH, INPUTS, generator=generator)
        return inputs, torch.randint(CLASSES, (BATCH,), generator=generator)

    return OwnCell(build, batch, lambda model: torch.optim.SGD(model.parameters(), lr=0.1), None, WIDTHS["mlp"])


def gpt(scheme: str, optimizer: str) -> Cell:
    """The default GPT with one block, and a readout as its row says."""
    readout = "fan_in" if scheme == "sp" else "constant"
    return make_cell(
        load(
            [
                *(f"parametrization={scheme}", f"optimizer={optimizer}", f"readout={readout}", "model.depth=1"),
                *(f"optimizer.lr={LR[optimizer]}", "optimizer.eps=1e-20", "data.batch=4", "data.context=32"),
                *("optimizer.momentum=0", f"widths={list(WIDTHS['gpt'])}"),
            ]
        )
    )


def measured(model: str, scheme: str, optimizer: str) -> pd.DataFrame:
    """Slopes of step 0's activations and step 1's changes, over narrow and over wide widths."""
    cell = {"mlp": mlp, "gpt": gpt}[model](scheme, optimizer)
    kinds = ("activation", "delta", "effective_update")
    plan = RunPlan(2, kinds, None, torch.device("cpu"), Precision.fp32)
    records = RunQueue(cell, plan, WIDTHS[model], range(SEEDS[model])).finish().records
    slopes = []
    for part, widths in (("narrow", WIDTHS[model][:3]), ("wide", WIDTHS[model][1:])):
        slopes.append(fit(records[records["width"].isin(widths)]).assign(part=part))
    table = pd.concat(slopes)
    table = table[(table["step"] == 1) | (table["kind"] == "activation") & (table["step"] == 0)]
    return table[
        table["role"].isin(("input", "hidden", "readout")) & ~((table["step"] == 1) & (table["kind"] == "activation"))
    ]


def limit(scheme: str, optimizer: str, role: str, kind: str) -> float:
    """What the row says.

    A change is a layer's own update, or what arrives from the layers before it. A hidden layer hands that on as large
    as it is; the readout sums it over the width, aligned with its own weights, through which the gradient came.
    """
    row = TABLES[scheme]
    if kind == "delta":
        own = [limit(scheme, optimizer, layer, "effective_update") for layer in LAYERS[: LAYERS.index(role) + 1]]
        summed = row.gradient() + 1.0 if role == "readout" else 0.0
        return max(own[-1], *(moved + summed for moved in own[:-1])) if len(own) > 1 else own[0]
    if kind == "activation":
        return row.multipliers[2] + row.stds[2] + 0.5 if role == "readout" else 0.0
    update = "muon" if optimizer == "muon" and role == "hidden" else {"muon": "adam"}.get(optimizer, optimizer)
    found = row.effective_update(role, update)
    # at one learning rate torch.optim.Muon's steps, made as large as AdamW's, grow like width^1/2
    return found + (0.5 if update == "muon" and scheme == "sp" else 0.0)


def rows(model: str) -> Iterator[dict[str, object]]:
    """One for each parametrization, optimizer, kind and role."""
    for scheme in SCHEMES:
        for optimizer in OPTIMIZERS:
            table = measured(model, scheme, optimizer)
            for (kind, role), of in table.groupby(["kind", "role"], sort=False):
                wide, narrow = (of[of["part"] == part] for part in ("wide", "narrow"))
                expected = limit(scheme, optimizer, role, kind)
                furthest = wide.iloc[int(np.argmax(np.abs(wide["slope"] - expected)))]
                yield {
                    "model": model,
                    "parametrization": scheme,
                    "optimizer": optimizer,
                    "kind": kind,
                    "role": role,
                    "limit": expected,
                    "narrow": float(narrow["slope"].median()),
                    "wide": float(wide["slope"].median()),
                    "furthest": furthest["slope"],
                    "half_width": (furthest["ci_high"] - furthest["ci_low"]) / 2,
                    "module": furthest["module"],
                }
            print(model, scheme, optimizer, flush=True)


def judgement(row: dict[str, float]) -> str:
    """What is to be said of a module that is not within 0.05 of the limit."""
    off = abs(row["furthest"] - row["limit"])
    if off <= CLOSE:
        return ""
    if off - row["half_width"] <= CLOSE:
        return "within its interval"
    nearer = abs(row["wide"] - row["limit"]) < abs(row["narrow"] - row["limit"])
    return "drifts towards it" if nearer else "off"


def markdown(table: pd.DataFrame) -> str:
    """A table for people: slopes of the median module, narrow and wide, and of the module furthest from the limit."""
    lines = [
        "| model | parametrization | optimizer | kind | role | limit | narrow | wide | furthest | module | |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in table.to_dict("records"):
        numbers = " | ".join(f"{row[name]:+.2f}" for name in ("limit", "narrow", "wide"))
        names = " | ".join(str(row[name]) for name in ("model", "parametrization", "optimizer", "kind", "role"))
        furthest = f"{row['furthest']:+.2f} ± {row['half_width']:.2f} | {row['module']}"
        lines.append(f"| {names} | {numbers} | {furthest} | {judgement(row)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, and writes the table of all that was measured."""
    torch.set_num_threads(1)
    HERE.mkdir(exist_ok=True)
    for model in sys.argv[1:]:
        pd.DataFrame(rows(model)).to_csv(HERE / f"{model}.csv", index=False, float_format="%.3f")
    table = pd.concat([pd.read_csv(HERE / f"{model}.csv") for model in WIDTHS if (HERE / f"{model}.csv").exists()])
    said = pd.Series([judgement(row) for row in table.to_dict("records")])
    counts = ", ".join(f"{number} {words or f'within {CLOSE}'}" for words, number in said.value_counts().items())
    widths = "; ".join(f"{model}: widths {list(of)}, {SEEDS[model]} seeds" for model, of in WIDTHS.items())
    text = f"# What a step does, by parametrization and optimizer\n\n`python benchmarks/theory.py mlp gpt` ({widths}). "
    text += f"Of {len(table)} rows: {counts}. Narrow is the three narrowest widths, wide all but the narrowest.\n\n"
    (HERE / "README.md").write_text(text + markdown(table))
    print(text)


if __name__ == "__main__":
    main()
