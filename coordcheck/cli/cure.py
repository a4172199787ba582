"""``coordcheck-cure``: what puts a model into muP, found and tried."""

import argparse
from pathlib import Path

from coordcheck.cli.command import OVERRIDES, end, exit_code, new_parser
from coordcheck.config.load import file_name, load

CURE_PAGE = "cure.html"


def main() -> None:
    """``coordcheck-cure [HYDRA OVERRIDES]``: what puts a model into muP, found and tried."""
    parser = new_parser(
        "coordcheck-cure",
        "Find a factor on each initial weight and on each learning rate that put a model into muP, or another "
        "parametrization, without a change of its code, and check the model with them. Writes the table, cure.yaml, "
        "the checks before and after it, and both on one page, cure.html. "
        "The exit code is that of the check after the cure.",
        {
            "coordcheck-cure model=hf model.config=llama": "a model of transformers",
            "coordcheck-cure model=own model.build=my_package.my_module.build --as python": "yours, and code to paste",
            "coordcheck-cure model=hf model.config=llama --target ntk": "into another parametrization",
        },
    )
    parser.add_argument("override", nargs="*", help=OVERRIDES)
    parser.add_argument("--output", type=Path, help="where the files go; default: checks/NAME/cure")
    parser.add_argument("--target", default="mup", help="the parametrization, one that gate.expect takes; default: mup")
    parser.add_argument(
        "--as",
        dest="form",
        choices=["python"],
        help="print the cure as code that needs torch alone, too; default: no",
    )
    end(_cure, parser)


def _cure(arguments: argparse.Namespace) -> int:
    config = load(arguments.override)
    from coordcheck.curing import CURE, CURE_PICTURE, cure_config
    from coordcheck.records.files import write_text
    from coordcheck.records.lock import locked
    from coordcheck.report.console import make_console, say
    from coordcheck.report.page.html import cure_page

    directory: Path = arguments.output or Path("checks") / file_name(config.name) / "cure"
    with locked(directory):
        result = cure_config(config, arguments.target)
        result.save(directory)
        picture = (directory / CURE_PICTURE).read_bytes()
        write_text(directory / CURE_PAGE, cure_page(result.before, result.after, picture))
    console = make_console()
    for line in f"{result!r}".splitlines():
        say(console, line)
    if result.after.verdict != "pass":
        say(console, result.after.sentence())
    say(console, f"Files in {directory}: {CURE} {CURE_PICTURE} {CURE_PAGE} before/report.html after/report.html")
    if arguments.form == "python":
        print(result.cure.as_python(), end="")
    return exit_code([result.after.verdict])
