"""Where the best learning rate goes with width. Writes pictures to plots/gallery and tables to benchmarks/transfer/.

python benchmarks/transfer.py gpt        # our GPT in muP and in standard parametrization: coordcheck-transfer
python benchmarks/transfer.py llama      # transformers' Llama with its cure, and as it was
python benchmarks/transfer.py faults     # faults that a check of a few steps may pass
python benchmarks/transfer.py coverage   # do intervals cover? on noisy bowls, without training
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from coordcheck.auditing import audit_cell, in_training
from coordcheck.config.load import load
from coordcheck.curing import Cure
from coordcheck.judge.cure import cure_of
from coordcheck.judge.transfer import TransferCurves, missing_runs, seeds_for
from coordcheck.models.families import make_cell
from coordcheck.transferring import OPTIMA, PICTURE, TABLE, Transfer, transfer_config

HERE = Path(__file__).parent
GALLERY = HERE.parent / "plots" / "gallery"
LLAMA = [
    *("model=hf", "model.config=llama", "widths=[32,64,128]", "base_width=32"),
    *("seeds=3", "steps=60", "data.context=32"),
]
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
    """The cure is the one that ``coordcheck-cure`` finds from an audit."""
    config = load([*LLAMA, "gate.expect=mup"], "transfer")
    with in_training():
        cell = make_cell(config)
        audit = audit_cell(cell, config.widths, config.gate)
    cure = Cure(config.base_width).plus(cure_of(audit, config.base_width)).generalized(audit.parameters["parameter"])
    print(cure.describe(), flush=True)
    keep(transfer_config(config, cure), "llama")


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
        {"gpt": gpt, "llama": llama, "coverage": coverage}[name]()
