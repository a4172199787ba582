"""The console commands. Only here is Hydra's merged configuration seen; torch is imported inside a job.

A job never raises once training began, and in a sweep never ends the others: what came of it is in its
directory, and the exit code is made from those directories after Hydra has returned.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from coordcheck.config import from_hydra, register_schema

ERROR = "error.txt"
INTERRUPTED = 130
_finished: list[Path] = []
_sweep: list[Path] = []


class SweepDirectory(Callback):
    """Remembers where a sweep writes, also when its jobs run in other processes; set in configs/check.yaml."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before the first job."""
        _sweep.append(Path(config.hydra.sweep.dir))


@hydra.main(version_base="1.3", config_path="pkg://coordcheck.configs", config_name="check")
def _job(merged: DictConfig) -> None:
    """One check, in the directory that Hydra gives it."""
    directory = Path(os.path.relpath(HydraConfig.get().runtime.output_dir))
    try:
        _check(merged, directory)
    except ValueError as error:
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            print(f"coordcheck: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        print(f"coordcheck: {directory.name}: {error}", file=sys.stderr)
        (directory / ERROR).write_text(f"{error}\n")
    _finished.append(directory)


def _check(merged: DictConfig, directory: Path) -> None:
    config = from_hydra(merged)
    from coordcheck.check import PICTURE, check_config
    from coordcheck.report import make_console, print_check
    from coordcheck.storage import copy_atomically

    check = check_config(config)
    name = directory.name if HydraConfig.get().mode == RunMode.MULTIRUN else config.name
    picture = None if config.plots is None else Path(config.plots) / f"{name}.png"
    check.save(directory)
    if picture is not None:
        copy_atomically(directory / PICTURE, picture)
    print_check(check, make_console(), directory, picture)


def main() -> None:
    """``coordcheck [HYDRA OVERRIDES]``: a check, or with ``-m`` a sweep of them."""
    register_schema()
    _finished.clear()
    _sweep.clear()
    try:
        _job()
    except KeyboardInterrupt:
        print(
            "coordcheck: interrupted; finished runs are kept, the same command goes on from there",
            file=sys.stderr,
        )
        raise SystemExit(INTERRUPTED) from None
    if _sweep:
        raise SystemExit(_end_of_sweep(_sweep[-1]))
    if _finished:
        raise SystemExit(_exit_code(_finished))


def _exit_code(directories: list[Path]) -> int:
    import json

    from coordcheck.check import VERDICT
    from coordcheck.report import exit_code

    said = [d / VERDICT for d in directories]
    return exit_code([json.loads(path.read_text())["verdict"] if path.is_file() else "error" for path in said])


def _end_of_sweep(directory: Path) -> int:
    """The summary of a sweep and its exit code."""
    from coordcheck.check import RECORDS, CoordCheck
    from coordcheck.report import make_console, summarize

    jobs = sorted(path.parent for path in directory.glob("**/.hydra"))
    checks = {job: CoordCheck.load(job) for job in jobs if (job / RECORDS).is_file()}
    console = make_console()
    if checks:
        summarize(checks, directory, console)
    for job in jobs:
        if job not in checks:
            reason = (job / ERROR).read_text().strip() if (job / ERROR).is_file() else "left no records"
            console.print(f"{job.name}: {reason}", style="bold red", markup=False)
    return _exit_code(jobs)


def report() -> None:
    """``coordcheck-report DIR...``: rebuilds tables and figures from stored records, without torch."""
    parser = argparse.ArgumentParser(
        prog="coordcheck-report",
        description="Fit and judge stored records anew, and write their tables and figures. Exit codes: 0 pass, "
        "3 fail, 4 inconclusive, 1 and 2 bad input or usage.",
    )
    parser.add_argument("directory", nargs="+", type=Path, help="a check's directory, or one above several")
    parser.add_argument("--summary", type=Path, default=None, help="where the summary of several checks goes")
    arguments = parser.parse_args()
    try:
        raise SystemExit(_report(arguments.directory, arguments.summary))
    except ValueError as error:
        print(f"coordcheck-report: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _report(directories: list[Path], summary: Path | None) -> int:
    from coordcheck.check import CoordCheck
    from coordcheck.report import exit_code, find_checks, make_console, print_check, summarize

    console = make_console()
    checks = {path: CoordCheck.load(path) for path in find_checks(directories)}
    for path, check in checks.items():
        check.save(path)
        print_check(check, console, path)
    if len(checks) > 1:
        summarize(checks, summary or directories[0], console)
    return exit_code([check.verdict for check in checks.values()])
