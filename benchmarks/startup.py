"""How long until something happens, and which imports take that long?

    python benchmarks/startup.py    # 30 s

Each time is that of a new process, medians and ranges of five; imports are timed one after the other in one process,
so that each counts what those before it have not loaded yet.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

REPETITIONS = 5
SCRIPTS = Path(sys.executable).parent
UNTIL_FIRST_STEP = """
import os, coordcheck.cli, coordcheck.sweep
coordcheck.sweep.run = lambda *_, **__: os._exit(0)
coordcheck.cli.main()
"""
COMMANDS = {
    "`coordcheck --help`": [str(SCRIPTS / "coordcheck"), "--help"],
    "`coordcheck-audit --help`": [str(SCRIPTS / "coordcheck-audit"), "--help"],
    "`coordcheck-report --help`": [str(SCRIPTS / "coordcheck-report"), "--help"],
    "`coordcheck` until its first training step, audit included": [
        sys.executable,
        "-c",
        UNTIL_FIRST_STEP,
        "plots=null",
    ],
}
IMPORTS = ["numpy", "hydra", "torch", "pandas", "mup", "pyarrow.parquet", "scipy.special", "matplotlib.figure"]
TIME_IMPORTS = """
import importlib, sys, time
for name in sys.argv[1:]:
    start = time.perf_counter(); importlib.import_module(name); print(time.perf_counter() - start)
"""


def spread(seconds: list[float]) -> str:
    """Median, and the range."""
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


def seconds_of(command: list[str]) -> float:
    """One run, in a directory of its own."""
    with tempfile.TemporaryDirectory() as directory:
        start = time.perf_counter()
        subprocess.run(command, cwd=directory, check=True, capture_output=True)
        return time.perf_counter() - start


def seconds_of_imports() -> list[float]:
    """Of each import, in a new process."""
    command = [sys.executable, "-c", TIME_IMPORTS, *IMPORTS]
    return [float(line) for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]


def main() -> None:
    """Prints both tables."""
    from coordcheck.report.tables import markdown_table

    commands = {name: spread([seconds_of(command) for _ in range(REPETITIONS)]) for name, command in COMMANDS.items()}
    print(markdown_table(pd.DataFrame({"command": list(commands), "seconds": list(commands.values())})))
    imports = zip(*[seconds_of_imports() for _ in range(REPETITIONS)], strict=True)
    print(markdown_table(pd.DataFrame({"import": IMPORTS, "seconds": [spread([*each]) for each in imports]})))


if __name__ == "__main__":
    main()
