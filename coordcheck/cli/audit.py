"""``coordcheck-audit``: who writes each parameter, and how it scales; nothing is trained."""

import argparse
from dataclasses import asdict
from pathlib import Path

from coordcheck.cli.command import OVERRIDES, annotate, end, exit_code, new_parser
from coordcheck.config.load import file_name, load


def main() -> None:
    """``coordcheck-audit [HYDRA OVERRIDES]``: who writes each parameter and how it scales; nothing is trained."""
    parser = new_parser(
        "coordcheck-audit",
        "Look at the parameters of a model at all widths, before the first step: how each is used, who wrote it, and "
        "how its init std, learning rate and weight decay scale with width. Nothing is trained. Writes audit.csv, "
        "audit.md and audit.png.",
        {
            "coordcheck-audit parametrization=sp": "the built-in GPT in standard parametrization",
            "coordcheck-audit model=own model.build=my_package.my_module.build --all": "your model, every parameter",
        },
    )
    parser.add_argument("override", nargs="*", help=OVERRIDES)
    parser.add_argument("--all", action="store_true", help="show every parameter; default: those that do not pass")
    parser.add_argument("--code-quality", type=Path, help="write GitLab's code-quality JSON there; default: nowhere")
    parser.add_argument("--output", type=Path, help="where the files go; default: checks/NAME/audit")
    end(_audit, parser)


def _audit(arguments: argparse.Namespace) -> int:
    config = load(arguments.override)
    from coordcheck.auditing import audit_config
    from coordcheck.records.files import AUDIT_PICTURE, AUDIT_TABLE, AUDIT_TEXT
    from coordcheck.records.lock import locked
    from coordcheck.report.annotations import functions_of, of_audit
    from coordcheck.report.console import make_console, print_audit

    # not beside a check's files, which hold an audit of their own
    directory: Path = arguments.output or Path("checks") / file_name(config.name) / "audit"
    with locked(directory):
        result = audit_config(config)
        result.save(directory)
    console = make_console()
    print_audit(result, console, arguments.all)
    console.print(f"Files in {directory}: {AUDIT_TEXT} {AUDIT_TABLE} {AUDIT_PICTURE}", markup=False)
    annotate(of_audit(result, functions_of(asdict(config))), arguments.code_quality)
    return exit_code([result.verdict])
