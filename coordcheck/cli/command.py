"""What all commands share: exit codes, how they end, and how they read a check."""

import argparse
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from coordcheck import __version__
from coordcheck.config.schema import Expect
from coordcheck.records.names import one_line

if TYPE_CHECKING:
    from coordcheck.report.annotations import Annotation
    from coordcheck.result import CoordCheck

CODES = {"pass": 0, "fail": 3, "inconclusive": 4}
EXIT_CODES = {"0": "pass", "3": "fail", "4": "inconclusive", "1": "bad input; one line says what", "2": "bad usage"}
OVERRIDES = "as for coordcheck: GROUP=OPTION or KEY=VALUE, see coordcheck --help; default: none"
WIDTH = 110  # columns of a help page at most


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


def new_parser(
    name: str, does: str, examples: Mapping[str, str], codes: Mapping[str, str] = EXIT_CODES
) -> argparse.ArgumentParser:
    """A parser whose help is a manual page.

    Args:
        name: Of the command.
        does: What it does: its first sentence is the title, the rest a paragraph.
        examples: Commands, and what each is for.
        codes: What the exit codes mean.
    """
    parser = argparse.ArgumentParser(
        prog=name,
        description=_wrapped(does),
        epilog="\n".join(
            [
                "exit codes:",
                *(f"  {code}  {meaning}" for code, meaning in codes.items()),
                "",
                "examples:",
                *(line for command, use in examples.items() for line in (f"  {command}", f"      {use}")),
            ]
        ),
        formatter_class=_Manual,
    )
    parser.add_argument("--version", action="version", version=f"{name} {__version__}")
    return parser


class _Manual(argparse.RawDescriptionHelpFormatter):
    """Text as it was laid out, no wider than is read easily."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=26, width=min(shutil.get_terminal_size().columns, WIDTH) - 2)


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), min(shutil.get_terminal_size().columns, WIDTH) - 2)


def parser_of_checks(name: str, does: str, examples: Mapping[str, str]) -> argparse.ArgumentParser:
    """The parser of a command that reads stored checks."""
    parser = new_parser(name, does, examples)
    parser.add_argument(
        "--format",
        choices=["coordcheck", "mup"],
        default="coordcheck",
        help="mup: read a CSV or parquet file as mup.coord_check records it, in the place of a directory; default: "
        "coordcheck",
    )
    parser.add_argument(
        "--expect",
        choices=[option.value for option in Expect],
        help="whose exponents the slopes are held against; default: as the check was made, mup where nothing says so",
    )
    return parser


def annotate(annotations: "Sequence[Annotation]", code_quality: Path | None) -> None:
    """Tells GitHub of findings, where a workflow of it is running, and writes GitLab's file, where one is asked for."""
    from coordcheck.records.files import write_text
    from coordcheck.report import annotations as formats

    if os.environ.get("GITHUB_ACTIONS") == "true":
        print(formats.github(annotations), end="")
    if code_quality is not None:
        write_text(code_quality, formats.code_quality(annotations))


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
