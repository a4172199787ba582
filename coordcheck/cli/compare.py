"""``coordcheck-compare``: what changed from one check to another, or from one commit to another."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from coordcheck.cli.command import EXIT_CODES, end, exit_code, new_parser

if TYPE_CHECKING:
    from coordcheck.judge.baseline import Baseline

CODES = {**EXIT_CODES, "0": "nothing changed", "3": "a curve scales otherwise", "4": "some cannot be compared"}
EXAMPLE = "For example coordcheck-compare checks/before checks/after."
REVISIONS = "For example coordcheck-compare --rev main..HEAD experiment=mine."


def main() -> None:
    """``coordcheck-compare A B``: which curves scale otherwise in B than in A, by how much, with intervals."""
    parser = new_parser(
        "coordcheck-compare",
        "Say which curves scale otherwise in B than in A, by how much, with intervals, largest change first. A and B "
        "are checks' directories or baselines. Writes changes.png, changes.html and changes.csv.",
        {
            "coordcheck-compare checks/before checks/after": "two checks",
            "coordcheck-compare --rev main..HEAD experiment=mine": "what a branch changed",
        },
        CODES,
    )
    parser.add_argument(
        "argument", nargs="*", metavar="A B", help="two of them; with --rev the overrides of coordcheck; default: none"
    )
    parser.add_argument("--rev", metavar="A..B", help="run the check at two git revisions, default: do not")
    parser.add_argument(
        "--tolerance", type=float, default=0.05, help="smallest change of an exponent that matters; default: 0.05"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("comparison"), help="where the files go; default: comparison"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print every curve that changed")
    end(_compare, parser)


def _compare(arguments: argparse.Namespace) -> int:
    if not 0 <= arguments.tolerance < float("inf"):
        raise ValueError(
            f"`--tolerance` is a finite number, zero or more; got {arguments.tolerance}. For example 0.05."
        )
    if arguments.rev is not None:
        names = _revisions(arguments.rev)
        with tempfile.TemporaryDirectory() as scratch:
            stored = [_at_revision(name, arguments.argument, Path(scratch) / str(i)) for i, name in enumerate(names)]
    else:
        if len(arguments.argument) != 2:
            raise ValueError(f"coordcheck-compare takes two of what it compares; got {arguments.argument}. {EXAMPLE}")
        names = (arguments.argument[0], arguments.argument[1])
        stored = [_read(Path(name)) for name in names]
    return _tell(stored[0], stored[1], names, arguments)


def _tell(before: "Baseline", after: "Baseline", names: tuple[str, str], arguments: argparse.Namespace) -> int:
    from coordcheck.judge.comparison import Comparison
    from coordcheck.records.files import write_text
    from coordcheck.records.lock import locked
    from coordcheck.report.console import make_console, say
    from coordcheck.report.figures.comparison import comparison_figure
    from coordcheck.report.figures.style import save_figure
    from coordcheck.report.page.html import comparison_page
    from coordcheck.report.tables import WORST, changed_curves, markdown_table

    comparison = Comparison.of(before, after, names, arguments.tolerance)
    table = changed_curves(comparison.changes)
    directory: Path = arguments.output
    with locked(directory):
        write_text(directory / "changes.csv", comparison.changes.to_csv(index=False))
        save_figure(comparison_figure(comparison), directory / "changes.png", {"before": names[0], "after": names[1]})
        write_text(directory / "changes.html", comparison_page(comparison, (directory / "changes.png").read_bytes()))
    console = make_console()
    say(console, comparison.sentence())
    for line in comparison.differing:
        say(console, f"Differs: {line}")
    shown = table if arguments.verbose else table.head(WORST)
    if len(shown):
        console.print(markdown_table(shown), markup=False)
    if len(shown) < len(table):
        say(console, f"and {len(table) - len(shown)} more; -v shows them.")
    say(console, f"Files in {directory}: changes.png changes.html changes.csv")
    return exit_code([comparison.verdict])


def _read(path: Path) -> "Baseline":
    """The slopes of a check's directory, or of a baseline."""
    from coordcheck.judge.baseline import Baseline
    from coordcheck.result import CoordCheck

    return Baseline.of(CoordCheck.load(path)) if path.is_dir() else Baseline.read(path)


def _revisions(text: str) -> tuple[str, str]:
    first, dots, second = text.partition("..")
    if not dots or not first or second.startswith(".") or text.startswith("-"):
        raise ValueError(f"`--rev` is two git revisions, A..B; got {text!r}. {REVISIONS}")
    return first, second or "HEAD"


def _at_revision(revision: str, overrides: list[str], scratch: Path) -> "Baseline":
    """Runs the check as the code stood at a git revision, in a work tree of its own."""
    from coordcheck.judge.baseline import Baseline
    from coordcheck.result import CoordCheck

    with _worktree(revision, scratch) as tree:
        # where the command was called, in that tree; the coordcheck that runs is the one that compares
        home = tree / _git("rev-parse", "--show-prefix").strip()
        if not home.is_dir():
            raise ValueError(f"the folder {home.relative_to(tree)} is not there at {revision}. {REVISIONS}")
        out = scratch / "check"
        settings = [f"hydra.run.dir={json.dumps(str(out))}", "plots=null"]
        done = subprocess.run([sys.executable, "-m", "coordcheck", *overrides, *settings], cwd=home)
        if done.returncode not in (0, 3, 4):
            raise ValueError(f"the check of {revision} ended with exit code {done.returncode}; see above. {REVISIONS}")
        return Baseline.of(CoordCheck.load(out))


@contextmanager
def _worktree(revision: str, scratch: Path) -> Iterator[Path]:
    tree = scratch / "tree"
    scratch.mkdir()
    _git("worktree", "add", "--detach", str(tree), revision)
    try:
        yield tree
    finally:
        _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"git {arguments[0]}: {done.stderr.strip() or 'failed'}. {REVISIONS}")
    return done.stdout
