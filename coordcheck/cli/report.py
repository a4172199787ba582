"""``coordcheck-report``: tables and figures of stored records, without torch."""

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from coordcheck.cli.command import end, exit_code, home, load_check, parser_of_checks

if TYPE_CHECKING:
    from coordcheck.result import CoordCheck


def main() -> None:
    """``coordcheck-report DIR...``: rebuilds tables and figures from stored records, without torch."""
    parser = parser_of_checks(
        "coordcheck-report",
        "Fit and judge stored records anew, and write their tables and pictures beside them. Trains nothing and needs "
        "no torch. Several checks get one summary.",
        {
            "coordcheck-report checks/mine": "a check, or what your own training loop saved there",
            "coordcheck-report checks/mine --expect sp": "held against standard parametrization",
            "coordcheck-report --format mup coords.csv": "what mup.coord_check recorded",
            "coordcheck-report checks/mine --log tensorboard": "for tensorboard --logdir checks",
        },
    )
    parser.add_argument("directory", nargs="+", type=Path, help="a check's directory, or one above several")
    parser.add_argument("--summary", type=Path, help="where the summary of several checks goes; default: the first DIR")
    parser.add_argument(
        "--log",
        choices=["tensorboard", "wandb", "mlflow"],
        help="log each check there too, TensorBoard's files into its directory; default: nowhere",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print tables, and every finding in full")
    end(_report, parser)


def _report(arguments: argparse.Namespace) -> int:
    from coordcheck.records.lock import locked
    from coordcheck.records.merge import find_checks
    from coordcheck.records.names import one_line
    from coordcheck.report.console import make_console, print_check
    from coordcheck.report.summary import summarize

    console = make_console()
    named: list[Path] = arguments.directory
    sources = named if arguments.format == "mup" else find_checks(named)
    checks: dict[Path, CoordCheck] = {}
    broken: list[str] = []
    for path in sources:
        try:
            with locked(path) if path.is_dir() else nullcontext():
                check = load_check(path, arguments.format, arguments.expect)
                check.save(home(path, arguments.format))
        except ValueError as error:
            broken.append("error")
            print(f"coordcheck-report: {one_line(error)}", file=sys.stderr)
            continue
        if arguments.log is not None:
            _log(check, arguments.log, home(path, arguments.format))
        checks[home(path, arguments.format)] = check
        print_check(check, console, home(path, arguments.format), verbose=arguments.verbose)
    if len(checks) > 1:
        directory = arguments.summary or home(named[0], arguments.format)
        with locked(directory):
            summarize(checks, directory, console)
    return exit_code([*broken, *(check.verdict for check in checks.values())])


def _log(check: "CoordCheck", logger: str, directory: Path) -> None:
    """Hands a check to a logger, in a run of its own."""
    from coordcheck import loggers

    if logger == "tensorboard":
        loggers.tensorboard(check, directory)
    else:
        {"wandb": loggers.wandb, "mlflow": loggers.mlflow}[logger](check)
