"""``coordcheck``: a check, or a sweep of them. Torch is imported inside a job.

In a sweep no job ends the others: what came of it is in its directory, and the summary and the exit code are made
from those directories after Hydra has returned.
"""

import os
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from coordcheck.cli.command import exit_code
from coordcheck.config.arguments import one_line
from coordcheck.config.load import file_name, from_hydra, in_one_line, register_schema

ERROR = "error.txt"
FULL_ERROR = "HYDRA_FULL_ERROR"  # set to 1, Hydra raises what it would print
WHOLE_ERRORS = os.environ.get(FULL_ERROR) == "1"  # a user who sets it wants tracebacks
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
        with suppress(OmegaConfBaseException):  # a name that cannot be resolved, which Hydra objects to next
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
    except Exception as error:  # whatever breaks a job must not end the others of a sweep
        if WHOLE_ERRORS:
            raise
        said = _said_of(error)
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            print(f"coordcheck: {said}", file=sys.stderr)
            raise SystemExit(1) from None
        print(f"coordcheck: {directory.name}: {said}", file=sys.stderr)
        (directory / ERROR).write_text(f"{said}\n")
    _finished.append(directory)


def _check(merged: DictConfig, directory: Path) -> None:
    with in_one_line([*HydraConfig.get().overrides.task]):
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


def _said_of(error: Exception) -> str:
    """An error in one line: our own sentence, or what was raised and where."""
    if isinstance(error, ValueError | OSError):
        return one_line(error)
    from coordcheck.run.theirs import describe

    return f"{describe(error)}. For example {FULL_ERROR}=1 coordcheck ... shows where"


def _hydra() -> None:
    """Lets Hydra run; what it objects to is raised here, where it would print many lines and exit.

    Raises:
        SystemExit: after one line that says what is wrong.
    """
    arguments = get_args_parser().parse_args()
    asks = arguments.help or arguments.hydra_help or arguments.shell_completion or arguments.cfg or arguments.info
    os.environ[FULL_ERROR] = "1"
    try:
        # whether several values are a sweep is for Hydra to say: an experiment may be one without -m
        with in_one_line([] if asks else arguments.overrides, sweep=True):
            _job()
    except Exception as error:  # of Hydra, which has no class for all that it raises
        if WHOLE_ERRORS:
            raise
        print(f"coordcheck: {_said_of(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        if not WHOLE_ERRORS:
            del os.environ[FULL_ERROR]


def main() -> None:
    """``coordcheck [HYDRA OVERRIDES]``: a check, or with ``-m`` a sweep of them."""
    if sys.argv[1:] == ["--version"]:
        print(f"coordcheck {version('coordcheck')}")
        return
    register_schema()
    _finished.clear()
    _sweep.clear()
    try:
        _hydra()
    except KeyboardInterrupt:
        print(
            "coordcheck: interrupted; finished runs are kept, the same command goes on from there",
            file=sys.stderr,
        )
        raise SystemExit(INTERRUPTED) from None
    except SystemExit:
        # what broke the sweep has been said; the results of its jobs are there all the same
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
