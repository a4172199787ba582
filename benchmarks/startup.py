"""How long until something happens, and which imports take that long?

    python benchmarks/startup.py    # 1 min

Each time is that of a new process, medians and ranges of five, the commands taking turns: by the clock, and of the
processor, which a crowded machine does not stretch as much. Imports are timed one after the other in one process, so
that each counts what those before it have not loaded yet.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from coordcheck.report.tables import markdown_table

REPETITIONS = 5
SCRIPTS = Path(sys.executable).parent
UNTIL_FIRST_STEP = """
import os, coordcheck.cli.check, coordcheck.run.train
coordcheck.run.train.run = lambda *_, **__: os._exit(0)
coordcheck.cli.check.main()
"""
BARE = """
import torch
model = torch.nn.Linear(8, 8)
optimizer = torch.optim.Adam(model.parameters())
model(torch.ones(2, 8)).sum().backward()
optimizer.step()
"""
COMMANDS = {
    "`coordcheck --help`": [str(SCRIPTS / "coordcheck"), "--help"],
    "`coordcheck-audit --help`": [str(SCRIPTS / "coordcheck-audit"), "--help"],
    "`coordcheck-report --help`": [str(SCRIPTS / "coordcheck-report"), "--help"],
    "torch alone: import, one layer, one step of Adam": [sys.executable, "-c", BARE],
    "`coordcheck` until its first training step, audit included": [
        sys.executable,
        "-c",
        UNTIL_FIRST_STEP,
        "plots=null",
        "workers=1",
    ],
}
IMPORTS = ["numpy", "hydra", "torch", "pandas", "mup", "pyarrow.parquet", "scipy.special", "matplotlib.figure"]
TIME_IMPORTS = """
import importlib, sys, time
for name in sys.argv[1:]:
    start = time.perf_counter(); importlib.import_module(name); print(time.perf_counter() - start)
"""


def spread(seconds: Sequence[float]) -> str:
    """Median, and the range."""
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


def seconds_of(command: list[str]) -> tuple[float, float]:
    """One run, in a directory of its own: by the clock, and of the processor."""
    with tempfile.TemporaryDirectory() as directory:
        start, before = time.perf_counter(), os.times()
        subprocess.run(command, cwd=directory, check=True, capture_output=True)
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        return time.perf_counter() - start, used


def seconds_of_imports() -> list[float]:
    """Of each import, in a new process."""
    command = [sys.executable, "-c", TIME_IMPORTS, *IMPORTS]
    return [float(line) for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]


def main() -> None:
    """Prints both tables."""
    turns = [[seconds_of(command) for command in COMMANDS.values()] for _ in range(REPETITIONS)]
    clock, processor = ([spread(each) for each in zip(*what, strict=True)] for what in _transposed(turns))
    print(markdown_table(pd.DataFrame({"command": list(COMMANDS), "seconds": clock, "of the processor": processor})))
    imports = zip(*[seconds_of_imports() for _ in range(REPETITIONS)], strict=True)
    print(markdown_table(pd.DataFrame({"import": IMPORTS, "seconds": [spread(each) for each in imports]})))


def _transposed(turns: list[list[tuple[float, float]]]) -> list[list[list[float]]]:
    """The times by the clock of all commands, turn by turn, and those of the processor."""
    return [[[times[i] for times in turn] for turn in turns] for i in range(2)]


if __name__ == "__main__":
    main()
