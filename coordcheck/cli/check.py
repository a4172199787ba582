"""``coordcheck``: a check, or a sweep of them. Torch is imported inside a job.

In a sweep no job ends the others: what came of it is in its directory, and the summary and the exit code are made
from those directories after Hydra has returned.
"""

import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from coordcheck.cli.command import exit_code
from coordcheck.config.load import file_name, from_hydra, register_schema

ERROR = "error.txt"
INTERRUPTED = 130


class Sweep(NamedTuple):
    """A sweep that has begun: its directory, where its picture goes, and when that was."""

    directory: Path
    plots: str | None
    began: float


_finished: list[Path] = []
_sweep: list[Sweep] = []


class OutputDirectory(Callback):
    """Makes the directory before Hydra does, and remembers where a sweep writes; set in configs/check.yaml.

    Hydra would end with a traceback if it could not. Jobs of a sweep may run in other processes.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before the job."""
        _make(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before the first job."""
        _make(Path(config.hydra.sweep.dir))
        _sweep.append(Sweep(Path(config.hydra.sweep.dir), config.plots, time.time()))


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(
            f"coordcheck: {directory} cannot be made ({error.strerror}). Choose one that you may write to, for example "
            f"hydra.run.dir=checks/mine.",
            file=sys.stderr,
        )
        raise SystemExit(1) from None


@hydra.main(version_base="1.3", config_path="pkg://coordcheck.configs", config_name="check")
def _job(merged: DictConfig) -> None:
    """One check, in the directory that Hydra gives it."""
    directory = Path(os.path.relpath(HydraConfig.get().runtime.output_dir))
    (directory / ERROR).unlink(missing_ok=True)
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
    from coordcheck.check import check_config
    from coordcheck.records.files import REPORT_PICTURE, copy_atomically
    from coordcheck.report.console import make_console, print_check

    check = check_config(config)
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    picture = None if in_sweep or config.plots is None else Path(config.plots) / f"{file_name(config.name)}.png"
    check.save(directory)
    if picture is not None:
        copy_atomically(directory / REPORT_PICTURE, picture)
    print_check(check, make_console(), directory, picture)


def main() -> None:
    """``coordcheck [HYDRA OVERRIDES]``: a check, or with ``-m`` a sweep of them."""
    if sys.argv[1:] == ["--version"]:
        print(f"coordcheck {version('coordcheck')}")
        return
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
    except SystemExit:
        # Hydra has printed why a job of the sweep broke; the others' results are there all the same
        if not _sweep:
            raise
    if _sweep:
        try:
            code = _end_of_sweep(_sweep[-1])
        except ValueError as error:
            print(f"coordcheck: {error}", file=sys.stderr)
            code = 1
        raise SystemExit(code)
    if _finished:
        raise SystemExit(_exit_code(_finished))


def _exit_code(directories: list[Path]) -> int:
    import json

    from coordcheck.records.files import VERDICT

    said = [
        json.loads((d / VERDICT).read_text())["verdict"]
        if (d / VERDICT).is_file() and not (d / ERROR).is_file()
        else "error"
        for d in directories
    ]
    return exit_code(said)


def _end_of_sweep(sweep: Sweep) -> int:
    """The summary of a sweep and its exit code."""
    from coordcheck.check import CoordCheck
    from coordcheck.records.files import RECORDS, copy_atomically
    from coordcheck.report.console import make_console
    from coordcheck.report.summary import summarize

    jobs = _jobs(sweep)
    checks = {job: CoordCheck.load(job) for job in jobs if (job / RECORDS).is_file() and not (job / ERROR).is_file()}
    console = make_console()
    if checks:
        summary = summarize(checks, sweep.directory, console)[0]
        if sweep.plots is not None:
            picture = Path(sweep.plots) / f"{sweep.directory.name}.png"
            copy_atomically(summary, picture)
            console.print(f"Picture: {picture}", markup=False)
    for job in jobs:
        if job not in checks:
            reason = (job / ERROR).read_text().strip() if (job / ERROR).is_file() else "left no records"
            console.print(f"{job.name}: {reason}", style="bold red", markup=False)
    return _exit_code(jobs)


def _jobs(sweep: Sweep) -> list[Path]:
    """The directories of a sweep's jobs in the order of their start, without those that an earlier sweep left there."""
    starts = {path.parent.parent: path.stat().st_mtime for path in sweep.directory.glob("**/.hydra/config.yaml")}
    return sorted((job for job, start in starts.items() if start >= sweep.began), key=starts.__getitem__)
