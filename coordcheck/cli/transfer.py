"""``coordcheck-transfer``: whether the best learning rate stays where it is as width grows."""

import argparse
import sys
from pathlib import Path

from coordcheck.cli.command import EXIT_CODES, end, exit_code
from coordcheck.config.load import file_name, load

INTERRUPTED = 130


def main() -> None:
    """``coordcheck-transfer [HYDRA OVERRIDES]``: whether the best learning rate stays where it is as width grows."""
    parser = argparse.ArgumentParser(
        prog="coordcheck-transfer",
        description="Train a model at several learning rates and widths, and show where the best learning rate goes. "
        f"{EXIT_CODES} Pass: its exponent of width lies within 0.15 of 0, with its whole interval.",
    )
    parser.add_argument("override", nargs="*", help="as for coordcheck, for example widths=[64,128,256] steps=200")
    parser.add_argument("--cure", type=Path, help="a cure.yaml to apply; the model as it was is shown beside")
    parser.add_argument("--output", type=Path, help="where the files go; default: checks/NAME/transfer")
    end(_transfer, parser)


def _transfer(arguments: argparse.Namespace) -> int:
    config = load(arguments.override, "transfer")
    from coordcheck.curing import Cure
    from coordcheck.records.lock import locked
    from coordcheck.report.console import make_console, say
    from coordcheck.transferring import OPTIMA, PICTURE, TABLE, transfer_config

    directory: Path = arguments.output or Path("checks") / file_name(config.name) / "transfer"
    cure = None if arguments.cure is None else Cure.load(arguments.cure)
    try:
        with locked(directory):
            result = transfer_config(config, cure)
            result.save(directory)
    except KeyboardInterrupt:
        said = "interrupted; finished runs are kept, the same command goes on from there"
        print(f"coordcheck-transfer: {said}", file=sys.stderr)
        return INTERRUPTED
    console = make_console()
    for line in f"{result!r}".splitlines():
        say(console, line)
    say(console, f"Files in {directory}: {TABLE} {OPTIMA} {PICTURE}")
    return exit_code([result.verdict])
