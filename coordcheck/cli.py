"""The console commands. Only here is Hydra's merged configuration seen; torch is imported inside a job.

In a sweep no job ends the others: what came of it is in its directory, and the summary and the exit code are made
from those directories after Hydra has returned.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from coordcheck.config import file_name, from_hydra, register_schema

if TYPE_CHECKING:
    from coordcheck.result import CoordCheck

ERROR = "error.txt"
EXIT_CODES = "Exit codes: 0 pass, 3 fail, 4 inconclusive, 1 and 2 bad input or usage."
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
    from coordcheck.report import make_console, print_check
    from coordcheck.result import PICTURE
    from coordcheck.storage import copy_atomically

    check = check_config(config)
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    picture = None if in_sweep or config.plots is None else Path(config.plots) / f"{file_name(config.name)}.png"
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

    from coordcheck.report import exit_code
    from coordcheck.result import VERDICT

    said = [
        json.loads((d / VERDICT).read_text())["verdict"]
        if (d / VERDICT).is_file() and not (d / ERROR).is_file()
        else "error"
        for d in directories
    ]
    return exit_code(said)


def _end_of_sweep(sweep: Sweep) -> int:
    """The summary of a sweep and its exit code."""
    from coordcheck.report import make_console, summarize
    from coordcheck.result import RECORDS, CoordCheck
    from coordcheck.storage import copy_atomically

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


def audit() -> None:
    """``coordcheck-audit [HYDRA OVERRIDES]``: who writes each parameter and how it scales; nothing is trained."""
    parser = argparse.ArgumentParser(
        prog="coordcheck-audit",
        description="Look at the parameters of a model at all widths, before the first step: who wrote each, and how "
        f"its init, learning rate and weight decay scale with width. {EXIT_CODES}",
    )
    parser.add_argument("override", nargs="*", help="as for coordcheck, for example parametrization=sp")
    parser.add_argument("--all", action="store_true", help="show every parameter, not only those that do not pass")
    parser.add_argument("--output", type=Path, help="where the files go; default: checks/NAME as for coordcheck")
    _exit(_audit, parser)


def _audit(arguments: argparse.Namespace) -> int:
    from coordcheck.config import load

    config = load(arguments.override)
    from coordcheck.audit_result import PICTURE, TABLE, TEXT
    from coordcheck.auditing import audit_cell
    from coordcheck.families import make_cell
    from coordcheck.report import exit_code, make_console, print_audit

    cell = make_cell(config)
    result = audit_cell(cell, config.widths, config.gate)
    directory: Path = arguments.output or Path("checks") / file_name(config.name)
    result.save(directory)
    console = make_console()
    print_audit(result, console, arguments.all)
    console.print(f"Files in {directory}: {TEXT} {TABLE} {PICTURE}", markup=False)
    return exit_code([result.verdict])


def report() -> None:
    """``coordcheck-report DIR...``: rebuilds tables and figures from stored records, without torch."""
    parser = _parser(
        "coordcheck-report",
        "Fit and judge stored records anew, and write their tables and figures.",
    )
    parser.add_argument("directory", nargs="+", type=Path, help="a check's directory, or one above several")
    parser.add_argument("--summary", type=Path, help="where the summary of several checks goes; default: the first DIR")
    _exit(_report, parser)


def _report(arguments: argparse.Namespace) -> int:
    from coordcheck.report import exit_code, find_checks, make_console, print_check, summarize

    console = make_console()
    named: list[Path] = arguments.directory
    sources = named if arguments.format == "mup" else find_checks(named)
    checks: dict[Path, CoordCheck] = {}
    broken: list[str] = []
    for path in sources:
        try:
            check = _load(path, arguments.format)
            check.save(_home(path, arguments.format))
        except ValueError as error:
            broken.append("error")
            print(f"coordcheck-report: {error}", file=sys.stderr)
            continue
        checks[_home(path, arguments.format)] = check
        print_check(check, console, _home(path, arguments.format))
    if len(checks) > 1:
        summarize(checks, arguments.summary or _home(named[0], arguments.format), console)
    return exit_code([*broken, *(check.verdict for check in checks.values())])


def gate() -> None:
    """``coordcheck-gate DIR [--baseline FILE]``: a check held against stored slopes, or against theory alone."""
    parser = _parser(
        "coordcheck-gate",
        "Hold a check against a baseline of its slopes, or without one against theory. GITHUB_STEP_SUMMARY gets "
        "the result too, where that variable is set.",
    )
    parser.add_argument("directory", type=Path, help="a check's directory")
    parser.add_argument("--baseline", type=Path, help="slopes stored earlier, JSON")
    parser.add_argument("--update", action="store_true", help="write the baseline instead of comparing with it")
    parser.add_argument("--tolerance", type=float, help="smallest change of an exponent that matters (default 0.05)")
    parser.add_argument("--junit", type=Path, help="write JUnit's XML there")
    parser.add_argument("--markdown", type=Path, help="write Markdown there")
    _exit(_gate, parser)


def _gate(arguments: argparse.Namespace) -> int:
    from coordcheck.baseline import TOLERANCE, Baseline
    from coordcheck.gate import gate_on_baseline, gate_on_theory
    from coordcheck.report import exit_code, make_console
    from coordcheck.storage import write_atomically

    if arguments.baseline is None and (arguments.update or arguments.tolerance is not None):
        raise ValueError(
            "`--update` and `--tolerance` need `--baseline`. For example coordcheck-gate DIR --baseline slopes.json."
        )
    tolerance = TOLERANCE if arguments.tolerance is None else arguments.tolerance
    if not 0 <= tolerance < float("inf"):
        raise ValueError(f"`--tolerance` is a finite number, zero or more; got {tolerance}. For example 0.05.")
    check = _load(arguments.directory, arguments.format)
    if arguments.update:
        Baseline.of(check).write(arguments.baseline)
        print(f"baseline of {len(check.slopes)} curves written to {arguments.baseline}")
        return 0
    if arguments.baseline is None:
        result = gate_on_theory(check)
    else:
        result = gate_on_baseline(check, Baseline.read(arguments.baseline), tolerance)
    make_console().print(result.markdown(), markup=False)
    if arguments.junit is not None:
        result.write_junit(arguments.junit)
    if arguments.markdown is not None:
        write_atomically(arguments.markdown, lambda path: path.write_text(result.markdown()))
    if os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(os.environ["GITHUB_STEP_SUMMARY"]).open("a") as summary:
            summary.write(result.markdown())
    return exit_code([result.verdict])


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=name, description=f"{description} {EXIT_CODES}")
    parser.add_argument(
        "--format",
        choices=["coordcheck", "mup"],
        default="coordcheck",
        help="mup: read a CSV or parquet file as mup.coord_check records it, in the place of a directory",
    )
    return parser


def _exit(command: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser) -> NoReturn:
    arguments = parser.parse_args()
    try:
        raise SystemExit(command(arguments))
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _home(path: Path, form: str) -> Path:
    """Where the files of a check go: its directory, or one beside the frame that was read."""
    return path.with_suffix("") if form == "mup" else path


def _load(path: Path, form: str) -> "CoordCheck":
    from coordcheck.result import CoordCheck

    if form == "coordcheck":
        return CoordCheck.load(path)
    from coordcheck.config import default_gate
    from coordcheck.mup_format import read_mup

    return CoordCheck.from_records(read_mup(path), default_gate())
