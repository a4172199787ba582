"""Where the best learning rate goes with width. Writes pictures to plots/gallery and tables to benchmarks/transfer/.

python benchmarks/transfer.py gpt        # our GPT in muP and in standard parametrization: coordcheck-transfer
python benchmarks/transfer.py llama      # transformers' Llama with its cure, and as it was
python benchmarks/transfer.py faults     # faults that a check of a few steps may pass
python benchmarks/transfer.py coverage   # do intervals cover? on noisy bowls, without training
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

import coordcheck
from coordcheck.config.load import load
from coordcheck.curing import Cure
from coordcheck.judge.transfer import TransferCurves, missing_runs, seeds_for
from coordcheck.models.text import load_corpus
from coordcheck.transferring import OPTIMA, PICTURE, TABLE, Transfer, transfer_config

HERE = Path(__file__).parent
GALLERY = HERE.parent / "plots" / "gallery"
LLAMA = [
    *("model=hf", "model.config=llama", "widths=[32,64,128]", "base_width=32"),
    *("seeds=3", "steps=60", "data.context=32"),
]
STEPS = 60
REPLICATES = 300
SCATTER = 0.15  # octaves, of a seed's optimum about that of its width, as GPTs have it


def keep(result: Transfer, name: str) -> None:
    """Prints a result, and keeps its tables and its picture."""
    directory = HERE / "transfer" / name
    result.save(directory)
    (directory / PICTURE).replace(GALLERY / f"transfer-{name}.png")
    print(f"{name}\n{result!r}\nin {directory}: {TABLE} {OPTIMA}", flush=True)


def gpt() -> None:
    """What the command makes of its defaults."""
    keep(transfer_config(load([], "transfer")), "gpt")


def llama() -> None:
    """With the cure that ``coordcheck-cure model=hf model.config=llama base_width=32 widths=[32,64,128]`` writes."""
    keep(transfer_config(load(LLAMA, "transfer"), Cure.load(HERE / "transfer" / "llama.yaml")), "llama")


CONTEXT, BATCH, BASE = 4, 32, 64
TEXT = load_corpus(load().data)
WIDTHS = (64, 128, 256)


class NGram(nn.Module):
    """Bytes from the four before them: embeddings, two hidden layers, a readout; in muP from width 64 on."""

    def __init__(self, width: int):
        super().__init__()
        self.width_mult = width / BASE
        self.embedding = nn.Embedding(256 * CONTEXT, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(2))
        self.head = nn.Linear(width, 256, bias=False)
        nn.init.zeros_(self.head.weight)
        nn.init.normal_(self.embedding.weight, std=0.5)
        for layer in self.hidden:
            nn.init.normal_(layer.weight, std=2 * width**-0.5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits, (BATCH, 256), of tokens (BATCH, CONTEXT)."""
        x = self.embedding(tokens + 256 * torch.arange(CONTEXT)).sum(1)
        for layer in self.hidden:
            x = torch.nn.functional.gelu(layer(x))
        return self.head(x / self.width_mult)


def ngram_batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Contexts and the bytes that follow."""
    tokens, _ = TEXT.batch(seed, BATCH, CONTEXT + 1)
    return tokens[:, :CONTEXT], tokens[:, CONTEXT]


def adamw(eps: float = 1e-12, decay: float = 0.0, hidden: float = -1.0, coupled: bool = False) -> Any:
    """AdamW with muP's learning rates, and what may be wrong with it.

    Args:
        eps: Epsilon, the same at every width.
        decay: Weight decay at the base width.
        hidden: Exponent of width of the hidden learning rate; -1 is right.
        coupled: Whether the decay is the same number everywhere, so that hidden weights decay by lr / width.
    """

    def make(model: NGram) -> torch.optim.Optimizer:
        factor = model.width_mult**hidden
        hidden_decay = decay if coupled else decay / factor
        groups = [
            {"params": [*model.hidden.parameters()], "lr": 3e-3 * factor, "weight_decay": hidden_decay},
            {"params": [model.embedding.weight, model.head.weight]},
        ]
        return torch.optim.AdamW(groups, lr=3e-3, eps=eps, weight_decay=decay)

    return make


FAULTS = {
    "correct": adamw(),
    "epsilon 1e-6": adamw(eps=1e-6),
    "epsilon 1e-5": adamw(eps=1e-5),
    "decay 1, coupled to the scaled rate": adamw(decay=1.0, coupled=True),
    "decay 10, coupled to the scaled rate": adamw(decay=10.0, coupled=True),
    "hidden rate width^-0.8": adamw(hidden=-0.8),
}


def faults() -> None:
    """Each fault checked and transferred; the check with its audit, and without."""
    lines = []
    for name, optimizer in FAULTS.items():
        check = coordcheck.coord_check(NGram, ngram_batch, WIDTHS, optimizer=optimizer, device="cpu", workers=1)
        curves = coordcheck.CoordCheck.from_records(check.records, check.gate, control=check.control).verdict
        result = coordcheck.transfer(
            NGram, ngram_batch, WIDTHS, optimizer, steps=STEPS, seeds=5, device="cpu", workers=1
        ).curves
        interval = f"{result.exponent:+.2f} [{result.ci_low:+.2f}, {result.ci_high:+.2f}]"
        lines.append(f"| {name} | {check.verdict} | {curves} | {interval} | {result.verdict} |")
        print(lines[-1], result.wider_sentence(), flush=True)
    head = "| fault | check | its curves alone | exponent of the best rate | transfer |\n|---|---|---|---|---|\n"
    (HERE / "transfer" / "faults.md").write_text(head + "\n".join(lines) + "\n")


def coverage() -> None:
    """How often an interval holds the exponent that a bowl has, whose lowest point scatters by seed."""
    generator = np.random.default_rng(0)
    widths = (64, 128, 256)
    for count in (None, 2, 3, 5):
        held, half = 0, []
        for _ in range(REPLICATES):
            seeds = seeds_for(widths, count)
            scatter = {seed: SCATTER * generator.normal() for of in seeds.values() for seed in of}
            rows: dict[tuple[float, int, int], float] = {}
            for width in widths:
                best = 3.3 - 0.3 * np.log2(width / 64)
                while True:
                    table = pd.DataFrame([[*run, loss] for run, loss in rows.items()], columns=COLUMNS)
                    octaves, wanted = missing_runs(table, width, seeds[width], 3.0)
                    if not octaves:
                        break
                    for octave in octaves:
                        rows |= {(octave, width, s): 3 + 0.08 * (octave - best - scatter[s]) ** 2 for s in wanted}
            losses = pd.DataFrame([[*run, loss] for run, loss in rows.items()], columns=COLUMNS)
            found = TransferCurves.of("bowl", losses, 1.0)
            held += found.ci_low <= -0.3 <= found.ci_high
            half.append((found.ci_high - found.ci_low) / 2)
        runs = "auto" if count is None else count
        print(f"| {runs} | {held / REPLICATES:.1%} | {np.median(half):.2f} |", flush=True)


COLUMNS = ["octave", "width", "seed", "loss"]

if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        {"gpt": gpt, "llama": llama, "faults": faults, "coverage": coverage}[name]()
