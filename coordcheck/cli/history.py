"""``coordcheck-history``: how a check's slopes moved over time."""

import argparse
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from coordcheck.cli.command import EXIT_CODES, end, exit_code, new_parser

CODES = {**EXIT_CODES, "0": "nothing changed", "3": "a curve scales otherwise", "4": "some cannot be compared"}


def main() -> None:
    """``coordcheck-history DIR [--add CHECK]``: how a check's slopes moved over time."""
    parser = new_parser(
        "coordcheck-history",
        "Keep the slopes of a check each time it is run, and say what changed. DIR holds a baseline for each entry, "
        "named after its time and git revision: commit it. Writes history.csv and history.png there.",
        {
            "coordcheck-history history --add checks/mine": "after each check, for example every night",
            "coordcheck-history history": "what there is",
            "coordcheck-history history --since 20260101T000000Z-0123abc": "the last one held against an older one",
        },
        CODES,
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="the history")
    parser.add_argument("--add", type=Path, metavar="CHECK", help="a check's directory to add; default: none")
    parser.add_argument(
        "--since", metavar="NAME", help="the entry that the last is held against; default: the one before"
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.05, help="smallest change of an exponent that matters; default: 0.05"
    )
    end(_history, parser)


def _history(arguments: argparse.Namespace) -> int:
    if not 0 <= arguments.tolerance < float("inf"):
        raise ValueError(
            f"`--tolerance` is a finite number, zero or more; got {arguments.tolerance}. For example 0.05."
        )
    from coordcheck.judge.baseline import Baseline
    from coordcheck.judge.history import History
    from coordcheck.records.files import write_text
    from coordcheck.records.lock import locked
    from coordcheck.report.console import make_console, say
    from coordcheck.report.figures.history import history_figure
    from coordcheck.report.figures.style import save_figure
    from coordcheck.report.tables import history_rows, markdown_table
    from coordcheck.result import CoordCheck

    directory: Path = arguments.directory
    with locked(directory):
        if arguments.add is not None:
            Baseline.of(CoordCheck.load(arguments.add)).write(directory / f"{_now()}-{_revision()}.json")
        entries = {path.stem: Baseline.read(path) for path in sorted(directory.glob("*.json"))}
        history = History.of(entries, arguments.since, arguments.tolerance)
        write_text(directory / "history.csv", history.slopes.to_csv(index=False))
        save_figure(history_figure(history), directory / "history.png", {"entries": [*entries]})
    console = make_console()
    say(console, history.sentence())
    for line in [] if history.latest is None else history.latest.differing:
        say(console, f"Differs: {line}")
    console.print(markdown_table(history_rows(history)), markup=False)
    say(console, f"Files in {directory}: history.csv history.png")
    return exit_code([history.verdict])


def _now() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def _revision() -> str:
    """The git revision of the working directory, with "-dirty" where it was edited; "unversioned" without git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unversioned"
    return done.stdout.strip() or "unversioned"
