"""``coordcheck-gate``: a check held against stored slopes, or against theory alone, for CI."""

import argparse
import os
from pathlib import Path

from coordcheck.cli.command import annotate, end, exit_code, load_check, parser_of_checks


def main() -> None:
    """``coordcheck-gate DIR [--baseline FILE]``: a check held against stored slopes, or against theory alone."""
    parser = parser_of_checks(
        "coordcheck-gate",
        "Hold a check against a baseline of its slopes, or without one against theory: for CI. Trains nothing and "
        "needs no torch. In a GitHub workflow the job's summary gets the result too, and the pull request annotations.",
        {
            "coordcheck-gate checks/mine": "against theory",
            "coordcheck-gate checks/mine --baseline slopes.json --update": "once: store the slopes",
            "coordcheck-gate checks/mine --baseline slopes.json --junit gate.xml": "on every pull request",
        },
    )
    parser.add_argument("directory", type=Path, help="a check's directory")
    parser.add_argument("--baseline", type=Path, help="slopes stored earlier, JSON; default: none, theory decides")
    parser.add_argument("--update", action="store_true", help="write the baseline instead of comparing with it")
    parser.add_argument("--accept-failing", action="store_true", help="with --update: store a failing check too")
    parser.add_argument("--tolerance", type=float, help="smallest change of an exponent that matters; default: 0.05")
    parser.add_argument("--junit", type=Path, help="write JUnit's XML there; default: nowhere")
    parser.add_argument("--code-quality", type=Path, help="write GitLab's code-quality JSON there; default: nowhere")
    parser.add_argument("--markdown", type=Path, help="write Markdown there; default: nowhere")
    end(_gate, parser)


def _gate(arguments: argparse.Namespace) -> int:
    from coordcheck.judge.baseline import TOLERANCE, Baseline, refuse_failing
    from coordcheck.judge.ruling import rule_by_baseline, rule_by_theory
    from coordcheck.records.files import write_text
    from coordcheck.report.annotations import of_ruling
    from coordcheck.report.console import make_console
    from coordcheck.report.junit import write_junit
    from coordcheck.report.markdown import ruling_markdown

    if arguments.baseline is None and (arguments.update or arguments.tolerance is not None):
        raise ValueError(
            "`--update` and `--tolerance` need `--baseline`. For example coordcheck-gate DIR --baseline slopes.json."
        )
    if arguments.accept_failing and not arguments.update:
        raise ValueError(
            "`--accept-failing` says which baseline is written, so it needs `--update`. For example "
            "coordcheck-gate DIR --baseline slopes.json --update --accept-failing."
        )
    tolerance = TOLERANCE if arguments.tolerance is None else arguments.tolerance
    if not 0 <= tolerance < float("inf"):
        raise ValueError(f"`--tolerance` is a finite number, zero or more; got {tolerance}. For example 0.05.")
    check = load_check(arguments.directory, arguments.format, arguments.expect)
    if arguments.update:
        refuse_failing(check, arguments.accept_failing, "--accept-failing")
        Baseline.of(check).write(arguments.baseline)
        done = f"baseline of {len(check.slopes)} curves written to {arguments.baseline}. {check.sentence()}"
        make_console().print(done, markup=False, highlight=False, soft_wrap=True)
        return 0
    if arguments.baseline is None:
        ruling = rule_by_theory(check)
    else:
        ruling = rule_by_baseline(check, Baseline.read(arguments.baseline), tolerance)
    text = ruling_markdown(ruling)
    make_console().print(text, markup=False)
    if arguments.junit is not None:
        write_junit(ruling, arguments.junit)
    annotate(of_ruling(ruling), arguments.code_quality)
    if arguments.markdown is not None:
        write_text(arguments.markdown, text)
    if os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(os.environ["GITHUB_STEP_SUMMARY"]).open("a", encoding="utf-8") as summary:
            summary.write(text)
    return exit_code([ruling.verdict])
