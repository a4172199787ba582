"""What an audit costs: seconds of one, and how much longer a model takes to build while its writes are traced.

Traced and plain constructions alternate, so that whatever else the machine does meets both::

    python benchmarks/audit.py
"""

import argparse
import gc
import subprocess
import sys
import tempfile
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from coordcheck.auditing import audit_cell
from coordcheck.config.load import load
from coordcheck.models.configured import ConfiguredCell
from coordcheck.observe.writes import WriteTracer

WIDTHS = [64, 128, 256, 512]


def ours() -> nn.Module:
    """A deep one of ours, built as a check builds it."""
    cell = ConfiguredCell(load(["model.depth=12"]))
    return cell.build(832, 0, torch.device("cpu"))


def hugging_face() -> nn.Module:
    """GPT-2 small."""
    return GPT2LMHeadModel(GPT2Config())


def plain_torch() -> nn.Module:
    """Twice the default depth."""
    return nn.Transformer(768, 12, 6, 6, 3072, batch_first=True)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "coordcheck GPT, width 832, 12 blocks": ours,
    "transformers GPT-2, default sizes": hugging_face,
    "torch nn.Transformer, width 768, 6 + 6 layers": plain_torch,
}


def seconds(action: Callable[[], object]) -> float:
    """How long a call takes."""
    gc.collect()
    start = perf_counter()
    action()
    return perf_counter() - start


def traced(build: Callable[[], nn.Module]) -> nn.Module:
    """Builds while every write is recorded."""
    with WriteTracer():
        return build()


def spread(values: list[float]) -> str:
    """Median, smallest and largest."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def construction(repetitions: int) -> None:
    """Prints a row per model."""
    print("| model | parameters | plain, s | traced, s | ratio of neighbours |\n| --- | --- | --- | --- | --- |")
    for name, build in MODELS.items():
        size = sum(parameter.numel() for parameter in build().parameters())
        pairs = [(seconds(build), seconds(lambda build=build: traced(build))) for _ in range(repetitions)]
        plain, watched = map(list, zip(*pairs, strict=True))
        ratios = [after / before for before, after in pairs]
        print(f"| {name} | {size / 1e6:.0f} M | {spread(plain)} | {spread(watched)} | {spread(ratios)} |", flush=True)


def audits(repetitions: int) -> None:
    """Prints the seconds of the audit alone, and of the command with its imports, files and picture."""
    config = load([f"widths={WIDTHS}"])
    cell = ConfiguredCell(config)
    alone = [seconds(lambda: audit_cell(cell, WIDTHS, config.gate)) for _ in range(repetitions)]
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-c", "from coordcheck.cli.audit import main; main()"]
        command += [f"widths={WIDTHS}".replace(" ", ""), "--output", directory]
        whole = [
            seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)) for _ in range(repetitions)
        ]
    print("| audit of the default GPT, widths 64 to 512 | seconds |\n| --- | --- |")
    print(f"| `audit_cell` alone | {spread(alone)} |\n| `coordcheck-audit`, the whole command | {spread(whole)} |")


def main() -> None:
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)  # as an audit does
    audits(options.repetitions)
    construction(options.repetitions)


if __name__ == "__main__":
    main()
