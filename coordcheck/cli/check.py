"""``coordcheck``: a check, or a sweep of them. Torch is imported inside a job.

In a sweep no job ends the others: the summary and the exit code are made after Hydra has returned, from what came of
the jobs of this sweep and of no other. Those of this process are kept in memory. Those that a launcher ran in other
processes left a file with the id of their sweep.
"""

import json
import os
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from coordcheck.cli.command import CODES, exit_code
from coordcheck.config.load import file_name, from_hydra, in_one_line, register_schema
from coordcheck.records.names import one_line

if TYPE_CHECKING:
    from coordcheck.result import CoordCheck

OUTCOME = "outcome.json"  # of a job in another process
BROKE = "left no records"
FULL_ERROR = "HYDRA_FULL_ERROR"  # set to 1, Hydra raises what it would print
WHOLE_ERRORS = os.environ.get(FULL_ERROR) == "1"  # a user who sets it wants tracebacks
INTERRUPTED = 130


class Sweep(NamedTuple):
    """A sweep that has begun: its directory, where its picture goes, its id, and the process that awaits its end."""

    directory: Path
    plots: str | None
    id: str
    process: int


class Outcome(NamedTuple):
    """What came of a job: its number, its directory, a verdict or "error" and the reason, and the check itself."""

    number: int
    directory: Path
    verdict: str = "error"
    reason: str = BROKE
    check: "CoordCheck | None" = None


_outcomes: list[Outcome] = []
_sweep: list[Sweep] = []
_directories: list[Path] = []  # in which Hydra has begun to write
_held = ExitStack()  # the locks of this command


def register_resolvers() -> None:
    """Tells Hydra what names a sweep; cached, so that all its jobs get the same id, in whichever process they run."""
    OmegaConf.register_new_resolver("sweep_id", lambda: uuid4().hex[:8], use_cache=True, replace=True)
    register_schema()


register_resolvers()  # on import, for the processes in which a launcher runs jobs


class OutputDirectory(Callback):
    """Makes and locks the directory before Hydra writes there, and remembers a sweep; set in configs/check.yaml.

    Hydra would end with a traceback if it could not, and let two commands write to one directory.

    Args:
        sweep_id: What jobs of this sweep know each other by.
    """

    def __init__(self, sweep_id: str):
        self.sweep_id = sweep_id

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before the job."""
        with suppress(OmegaConfBaseException):  # a name that cannot be resolved, which Hydra objects to next
            _begin(config, Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before the first job."""
        directory = Path(config.hydra.sweep.dir)
        _begin(config, directory)
        _sweep.append(Sweep(directory, config.plots, self.sweep_id, os.getpid()))


def _begin(config: DictConfig, directory: Path) -> None:
    from coordcheck.records.lock import locked

    try:
        if config.hydra.job.chdir:
            raise ValueError(
                "`hydra.job.chdir` must be false, for the paths of a check start where the command does; got true. "
                "For example hydra.run.dir=checks/mine says where the files of a check go."
            )
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"{directory} cannot be made ({error.strerror}). Choose one that you may write to, for example "
                f"hydra.run.dir=checks/mine."
            ) from None
        _held.enter_context(locked(directory))
        _directories.append(directory)
    except ValueError as error:
        print(f"coordcheck: {error}", file=sys.stderr)
        raise SystemExit(1) from None


@hydra.main(version_base="1.3", config_path="pkg://coordcheck.configs", config_name="check")
def _job(merged: DictConfig) -> None:
    """One check, in the directory that Hydra gives it."""
    settings = HydraConfig.get()
    directory = Path(os.path.relpath(settings.runtime.output_dir))
    if settings.mode != RunMode.MULTIRUN:
        try:
            _outcomes.append(_check(merged, Outcome(0, directory)))
        except Exception as error:  # of a user's model, of a library that it uses, or ours: said in one line
            if WHOLE_ERRORS:
                raise
            print(f"coordcheck: {_said_of(error)}", file=sys.stderr)
            raise SystemExit(1) from None
        return
    from coordcheck.records.lock import locked

    outcome = Outcome(int(settings.job.num), directory)
    try:
        _leave(outcome)
        with locked(directory):
            outcome = _check(merged, outcome)
    except Exception as error:  # whatever breaks a job must not end the others of a sweep
        if WHOLE_ERRORS:
            raise
        said = _said_of(error)
        print(f"coordcheck: {directory.name}: {said}", file=sys.stderr)
        outcome = outcome._replace(reason=said)
    finally:
        _outcomes.append(outcome)
    _leave(outcome)


def _leave(outcome: Outcome) -> None:
    """Leaves what came of a job so far in its directory, if the process that awaits it is another one."""
    if _sweep and _sweep[-1].process == os.getpid():
        return
    from coordcheck.records.files import write_text

    content = {"sweep": HydraConfig.get().callbacks["output_directory"].sweep_id, "number": outcome.number}
    content |= {"verdict": outcome.verdict, "reason": outcome.reason}
    write_text(outcome.directory / OUTCOME, json.dumps(content))


def _check(merged: DictConfig, outcome: Outcome) -> Outcome:
    """Makes a check, saves and prints it."""
    with in_one_line([*HydraConfig.get().overrides.task]):
        config = from_hydra(merged)
    from coordcheck.check import check_config
    from coordcheck.records.files import REPORT_PICTURE, copy_atomically
    from coordcheck.report.console import make_console, print_check

    directory = outcome.directory
    check = check_config(config)
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    picture = None if in_sweep or config.plots is None else Path(config.plots) / f"{file_name(config.name)}.png"
    check.save_text(directory)
    print_check(check, make_console(), directory, picture, config.verbose)
    sys.stdout.flush()  # nobody waits for pictures to read the verdict
    check.save_pictures(directory)
    if picture is not None:
        copy_atomically(directory / REPORT_PICTURE, picture)
    return outcome._replace(verdict=check.verdict, reason="", check=check)


def _said_of(error: Exception) -> str:
    """An error in one line: our own sentence, or what was raised and where."""
    if isinstance(error, ValueError | OSError):
        return one_line(error)
    from coordcheck.run.theirs import describe

    return f"{describe(error)}. For example {FULL_ERROR}=1 coordcheck ... shows where"


def _unwritten(error: OSError) -> str:
    """What Hydra could not write: a file of ``.hydra/``, multirun.yaml, or the directory of a job."""
    directory = error.filename or (_directories[-1] if _directories else "the current directory")
    others = " The jobs of the sweep after it were not run." if _sweep else ""
    key = "hydra.sweep.dir" if _sweep else "hydra.run.dir"
    return one_line(
        f"{directory} cannot be written ({error.strerror or error}).{others} Choose a directory with room that you may "
        f"write to, for example {key}=checks/mine."
    )


def _hydra() -> None:
    """Lets Hydra run; what it objects to is raised here, where it would print many lines and exit.

    Raises:
        SystemExit: after one line that says what is wrong.
    """
    # Hydra has no public parser of its command line; the versions that pyproject.toml allows have this one
    arguments = get_args_parser().parse_args()
    asks = arguments.help or arguments.hydra_help or arguments.shell_completion or arguments.cfg or arguments.info
    os.environ[FULL_ERROR] = "1"
    try:
        # whether several values are a sweep is for Hydra to say: an experiment may be one without -m
        with in_one_line([] if asks else arguments.overrides, sweep=True):
            _job()
    except Exception as error:  # of Hydra and its plugins, which have no class for all that they raise
        if WHOLE_ERRORS:
            raise
        print(f"coordcheck: {_unwritten(error) if isinstance(error, OSError) else _said_of(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        if not WHOLE_ERRORS:
            del os.environ[FULL_ERROR]


def main() -> None:
    """``coordcheck [-v] [HYDRA OVERRIDES]``: a check, or with ``-m`` a sweep of them; ``-v`` prints tables too."""
    # an override, so that it reaches jobs in other processes
    sys.argv[1:] = ["verbose=true" if argument in ("-v", "--verbose") else argument for argument in sys.argv[1:]]
    register_resolvers()
    _outcomes.clear()
    _sweep.clear()
    _directories.clear()
    with _held:
        code = _run()
    if code is not None:
        raise SystemExit(code)


def _run() -> int | None:
    """Lets Hydra run the jobs; the exit code is that of their results, None where none was asked for."""
    broke = False
    try:
        _hydra()
    except KeyboardInterrupt:
        print(
            "coordcheck: interrupted; finished runs are kept, the same command goes on from there",
            file=sys.stderr,
        )
        return INTERRUPTED
    except SystemExit as end:
        # what broke the sweep has been said; the results of its jobs are there all the same
        if not _sweep:
            raise
        broke = bool(end.code)
    if not _sweep:
        return exit_code([outcome.verdict for outcome in _outcomes]) if _outcomes else None
    try:
        return _end_of_sweep(_sweep[-1], broke)
    except ValueError as error:
        print(f"coordcheck: {error}", file=sys.stderr)
        return 1


def _end_of_sweep(sweep: Sweep, broke: bool) -> int:
    """The summary of a sweep and its exit code; `broke` if Hydra could not run all of it."""
    from coordcheck.records.files import copy_atomically
    from coordcheck.report.console import make_console
    from coordcheck.report.summary import summarize

    outcomes = sorted([*_outcomes, *_outcomes_elsewhere(sweep)], key=lambda outcome: outcome.number)
    checks = {outcome.directory: outcome.check for outcome in outcomes if outcome.check is not None}
    console = make_console()
    if checks:
        summary = summarize(checks, sweep.directory, console)[0]
        if sweep.plots is not None:
            picture = Path(sweep.plots) / f"{sweep.directory.name}.png"
            copy_atomically(summary, picture)
            console.print(f"Picture: {picture}", markup=False)
    for outcome in outcomes:
        if outcome.check is None:
            console.print(f"{outcome.directory.name}: {outcome.reason}", style="bold red", markup=False)
    return exit_code([*(["error"] if broke else []), *(outcome.verdict for outcome in outcomes)])


def _outcomes_elsewhere(sweep: Sweep) -> list[Outcome]:
    """What came of the jobs that a launcher ran in other processes, from the files that they left."""
    from coordcheck.result import CoordCheck

    outcomes = []
    for path in sweep.directory.glob(f"**/{OUTCOME}"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["sweep"] != sweep.id:
                continue  # of an earlier sweep into the same directory
            outcome = Outcome(int(content["number"]), path.parent, str(content["verdict"]), str(content["reason"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            outcomes.append(Outcome(sys.maxsize, path.parent, reason=f"{OUTCOME} cannot be read ({error})"))
            continue
        if outcome.verdict in CODES:
            try:
                outcome = outcome._replace(check=CoordCheck.load(path.parent))
            except ValueError as error:
                outcome = outcome._replace(verdict="error", reason=str(error))
        outcomes.append(outcome)
    return outcomes
