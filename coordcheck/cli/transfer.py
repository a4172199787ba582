"""``coordcheck-transfer``: whether the best learning rate stays where it is as width grows."""

import argparse
import sys
from pathlib import Path

from coordcheck.cli.command import EXIT_CODES, OVERRIDES, end, exit_code, new_parser
from coordcheck.config.load import file_name, load

INTERRUPTED = 130
CODES = {
    **EXIT_CODES,
    "0": "it stays: the interval of its exponent of width lies within 0.15 of 0",
    "3": "it moves",
    str(INTERRUPTED): "interrupted",
}


def main() -> None:
    """``coordcheck-transfer [HYDRA OVERRIDES]``: whether the best learning rate stays where it is as width grows."""
    parser = new_parser(
        "coordcheck-transfer",
        "Does the best learning rate stay where it is as width grows? Trains a model at several learning rates and "
        "widths, from the narrowest to the widest, each searched around the best one of the width before, and shows "
        "how the best one scales, with an interval. Finished runs are kept: the same command goes on from there.",
        {
            "coordcheck-transfer": "the default GPT in muP, and in standard parametrization beside it",
            "coordcheck-transfer widths=[64,128,256] steps=200": "longer runs",
            "coordcheck-transfer model=hf model.config=llama --cure cure.yaml": "a model with its cure, and as it was",
        },
        CODES,
    )
    parser.add_argument("override", nargs="*", help=OVERRIDES)
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
