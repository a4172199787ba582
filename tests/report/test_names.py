"""Names are data: whatever a module is called, every text and picture that shows it stays whole."""

import html.parser
import io
import itertools
import re
import subprocess
import sys
from xml.etree import ElementTree

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from rich.console import Console

from conftest import power, synthetic
from coordcheck import CoordCheck
from coordcheck.judge.audit import AuditResult
from coordcheck.judge.ruling import rule_by_theory
from coordcheck.records.names import one_line, printable
from coordcheck.report.console import print_check
from coordcheck.report.figures.check import report_figure
from coordcheck.report.figures.style import plain
from coordcheck.report.junit import write_junit
from coordcheck.report.markdown import MOST_ROWS, check_markdown, gate_sentence, ruling_markdown
from coordcheck.report.summary import summarize
from coordcheck.report.tables import in_markdown, markdown_table

NAMES = [
    "line\nbreak\r\n# PASS",
    "pi|pe\\|and `tick`",
    "$\\frac{1}{0}$",
    "$",
    "<script>alert(1)</script>&lt;",
    "\x1b[31mred\x1b[0m\x07\x00\x08",
    "\u202ereversed\u2028\ud7ff\ufeff",
    "**bold** __init__ ~~x~~ [a](http://b) ![c](d)",
    "_private",
    "],]]>--><!--",
    "x" * 1_000_000,
    "漢字🙂",
    "",
    " ",
]
FORBIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029\ufeff]")


@pytest.fixture(scope="module")
def check():
    from coordcheck.config.load import default_gate

    curves = {(name, "activation", step): power(0.5 + i / 50) for i, name in enumerate(NAMES) for step in (0, 1)}
    frame = synthetic(curves, widths=(64, 128, 256), seeds=2)
    frame.insert(0, "cell", "a|b\n`$x$`")
    return CoordCheck.from_records(
        frame,
        default_gate(),
        skipped=["# width 9 skipped\n<b>"],
        unaudited="ValueError: `x`\n|",
        versions={"torch\n": "<2>"},
        corpus_sha256="`\n",
        config={"name": "x"},
    )


def well_formed(text):
    assert not FORBIDDEN.search(text)
    assert len(text) < 100_000
    assert not re.search(r"(?<!\\)(\\\\)*`|(?<!\\)(\\\\)*\$", text)  # no code, no formula
    assert "<script" not in text and "<b>" not in text and "<!--" not in text
    assert not re.search(r"[^\\]\]\(http|!\[c\]\(", text)
    lines = text.splitlines()
    for first in [i for i, line in enumerate(lines) if set(line) == {"|", " ", "-"}]:
        columns = cells(lines[first])
        for line in itertools.takewhile(bool, lines[first - 1 :]):
            assert cells(line) == columns, line
    return lines


def cells(line):
    """How many GitHub sees: backslashes escape what follows."""
    return re.sub(r"\\.", "", line).count("|") - 1


def test_the_report_is_well_formed(check):
    lines = well_formed(check_markdown(check))
    headings = [line for line in lines if line.startswith("#")]
    assert headings[0].startswith("# FAIL: a\\|b")
    assert headings[1:] == ["## Worst curve of each module", "## Findings", "## Who says so", "## Made with"]
    rows = lines[lines.index("## Worst curve of each module") + 4 :][: len(NAMES)]
    assert all(row.startswith("| ") for row in rows)


def test_the_summary_of_a_job_is_well_formed_and_fits(check, gate):
    well_formed(ruling_markdown(rule_by_theory(check)))
    curves = {(f"layer{i}", "activation", 0): power(0.5) for i in range(MOST_ROWS + 5)}
    text = ruling_markdown(rule_by_theory(CoordCheck.from_records(synthetic(curves, seeds=2), gate)))
    assert text.endswith("\n5 more are not shown.\n") and text.count("\n| ") == MOST_ROWS + 2


def test_junit_can_be_parsed_and_has_all_cases(check, tmp_path):
    write_junit(rule_by_theory(check), tmp_path / "junit.xml")
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    names = [case.get("name") for case in suite.iter("testcase")]
    assert len(names) == 2 * len(NAMES)
    assert {"pi|pe\\|and `tick`, step 0", "line\\nbreak\\r\\n# PASS, step 0", "漢字🙂, step 1"} <= set(names)
    assert max(map(len, names)) <= 400
    assert all(case.find("failure").get("message") for case in suite.iter("testcase"))


def test_the_terminal_gets_no_control_characters(check, tmp_path):
    out = io.StringIO()
    print_check(check, Console(file=out, width=130, soft_wrap=True, force_terminal=False), tmp_path, verbose=True)
    assert not FORBIDDEN.search(out.getvalue())
    assert "\\x1b[31mred" in out.getvalue()
    assert len(out.getvalue()) < 100_000


def test_pictures_are_drawn_and_show_dollars_as_such(check, tmp_path):
    check.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 10_000
    labels = [tick.get_text() for axes in report_figure(check).axes for tick in axes.get_yticklabels()]
    assert any(label.endswith("\\$\\frac{1}{0}\\$") for label in labels)


def test_the_pictures_of_an_audit_and_of_a_summary_are_drawn(check, tmp_path):
    console = Console(file=io.StringIO(), width=130)
    files = summarize({tmp_path / "a$b$": check, tmp_path / "c|\n": check}, tmp_path, console)
    assert all(path.stat().st_size for path in files)
    well_formed(files[2].read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_mathtext_leaves_a_name_alone(name):
    figure = Figure()
    text = figure.text(0, 0, plain(name))
    assert text._preprocess_math(text.get_text())[1] is False


def test_a_notebook_shows_names_as_text(check):
    seen = []
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attrs: seen.append(tag)
    parser.feed(check._repr_html_())
    assert set(seen) == {"div", "b", "ol", "li", "img"}


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", "a\\|b"),
        ("a\\|b", "a\\\\\\|b"),
        ("# x", "\\# x"),
        ("- x", "\\- x"),
        ("-0.3 [+0.1, +0.2]", "-0.3 [+0.1, +0.2]"),
        ("__init__ and fan_in", "\\_\\_init\\_\\_ and fan_in"),
        ("std * sqrt(x) and a*b*", "std * sqrt(x) and a\\*b\\*"),
        ("attn[logits]", "attn[logits]"),
        ("[a](b)", "[a]\\(b)"),
        ("a\nb", "a\\\\nb"),
        ("&lt;", "&amp;lt;"),
    ],
)
def test_what_markdown_would_take_for_its_own_is_escaped(text, escaped):
    assert in_markdown(text) == escaped


def test_a_bar_in_a_cell_does_not_end_it():
    table = markdown_table(pd.DataFrame({"a|": ["x|y", "\\"], "b": ["|", "||"]}))
    assert table.splitlines()[0] == "| a\\| | b |"
    assert [cells(line) for line in table.splitlines()] == [2, 2, 2, 2]


@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(st.text(max_size=60), st.integers(1, 50))
def test_any_text_becomes_one_line(text, most):
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)
    assert len(text) <= most or len(printable(text, most)) < 12 * most
    assert one_line(text).isprintable()
    assert cells(f"| {in_markdown(text)} |") == 1


def test_a_gate_that_is_not_the_default_is_shown(check, gate, tmp_path):
    assert gate_sentence(check) == ""
    gate.tolerance.explodes["activation"] = 9.0
    gate.confidence = 0.5
    own = CoordCheck.from_records(check.records, gate)
    said = (
        "The gate is not the default one: confidence=0.5 (default 0.95), tolerance.explodes.activation=9.0 (default "
        "0.1)."
    )
    assert gate_sentence(own) == said
    own.save(tmp_path)
    stored = CoordCheck.load(tmp_path)
    assert gate_sentence(stored) == f"Gate and control are those of verdict.json. {said}"
    out = io.StringIO()
    print_check(stored, Console(file=out, width=300), tmp_path)
    for text in (out.getvalue(), check_markdown(stored), ruling_markdown(rule_by_theory(stored))):
        assert f"Gate and control are those of verdict.json. {said}" in text


LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PATH": "/usr/bin:/bin"}


def test_files_are_utf8_and_are_read_as_such_whatever_the_locale(gate, tmp_path):
    frame = synthetic({("größe–漢字", "activation", 0): power(0.5)}, seeds=2)
    CoordCheck.from_records(frame, gate, skipped=["√"]).save(tmp_path / "check")
    code = (
        "import sys, locale; sys.path[:0] = sys.argv.pop(1).split(':'); "
        "assert locale.getpreferredencoding(False) == 'ANSI_X3.4-1968', locale.getpreferredencoding(False); "
        "import coordcheck.cli.{0}; coordcheck.cli.{0}.main()"
    )
    for entry, arguments in (
        ("report", ["check"]),
        ("gate", ["check", "--baseline", "b.json", "--update", "--accept-failing"]),
        ("gate", ["check", "--baseline", "b.json"]),
        ("gate", ["check", "--junit", "j.xml", "--markdown", "m.md"]),
        ("check", ["--cfg", "job"]),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code.format(entry), ":".join(filter(None, sys.path)), *arguments],
            cwd=tmp_path,
            env={**LOCALE, "GITHUB_STEP_SUMMARY": str(tmp_path / "step.md")},
            capture_output=True,
        )
        assert done.returncode in (0, 3, 4), done.stderr
        assert done.stderr == b""
    for name in ("check/report.md", "check/report.html", "m.md", "step.md", "j.xml", "check/slopes.csv"):
        assert "größe–漢字" in (tmp_path / name).read_text(encoding="utf-8")
    assert isinstance(CoordCheck.load(tmp_path / "check").audit, AuditResult | None)
