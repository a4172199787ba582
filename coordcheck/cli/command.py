"""What all commands share: exit codes, how they end, and how they read a check."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from coordcheck.config.schema import Expect
from coordcheck.records.names import one_line

if TYPE_CHECKING:
    from coordcheck.result import CoordCheck

CODES = {"pass": 0, "fail": 3, "inconclusive": 4}
EXIT_CODES = "Exit codes: 0 pass, 3 fail, 4 inconclusive, 1 and 2 bad input or usage."


def exit_code(verdicts: Sequence[str]) -> int:
    """One exit code for many verdicts: 1 for an error or nothing, else 3 for a fail, 4 for an inconclusive, 0."""
    codes = {CODES.get(verdict, 1) for verdict in verdicts} or {1}
    return next(code for code in (1, 3, 4, 0) if code in codes)


def end(command: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser) -> NoReturn:
    """Runs a command and exits with its code; what a user can mend is one line."""
    arguments = parser.parse_args()
    try:
        raise SystemExit(command(arguments))
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {one_line(error)}", file=sys.stderr)
        raise SystemExit(1) from None


def parser_of_checks(name: str, description: str) -> argparse.ArgumentParser:
    """The parser of a command that reads stored checks."""
    parser = argparse.ArgumentParser(prog=name, description=f"{description} {EXIT_CODES}")
    parser.add_argument(
        "--format",
        choices=["coordcheck", "mup"],
        default="coordcheck",
        help="mup: read a CSV or parquet file as mup.coord_check records it, in the place of a directory",
    )
    parser.add_argument(
        "--expect",
        choices=[option.value for option in Expect],
        help="whose exponents the slopes are held against; default: as the check was made, mup where nothing says so",
    )
    return parser


def home(path: Path, form: str) -> Path:
    """Where the files of a check go: its directory, or one beside the frame that was read."""
    return path.with_suffix("") if form == "mup" else path


def load_check(path: Path, form: str, expect: str | None) -> "CoordCheck":
    """A stored check, or a frame in mup's format, judged anew."""
    from coordcheck.result import CoordCheck

    if form == "coordcheck":
        return CoordCheck.load(path, expect)
    import dataclasses

    from coordcheck.config.load import default_gate
    from coordcheck.config.rules import member
    from coordcheck.records.mup_format import read_mup

    gate = dataclasses.replace(default_gate(), expect=member(Expect, "expect", expect or "mup"))
    return CoordCheck.from_records(read_mup(path), gate)
