"""Words and tables, and the labels of many cells."""

import dataclasses
import io
from pathlib import Path

import pytest
import torch
from matplotlib.colors import to_hex
from rich.console import Console
from torch import nn

from conftest import power, synthetic
from coordcheck import CoordCheck, audit
from coordcheck.cli.command import exit_code
from coordcheck.records.merge import find_checks
from coordcheck.report.console import print_check
from coordcheck.report.figures.audit import audit_figure
from coordcheck.report.figures.style import VERDICT_COLOURS
from coordcheck.report.markdown import audit_markdown, check_markdown
from coordcheck.report.summary import arrange, label_checks, summarize
from coordcheck.report.tables import audit_sentences, differing_sizes, format_exponent
from coordcheck.result import Audit


def audited(depth=1):
    def build(width):
        return nn.Sequential(nn.Linear(8, width), *(nn.Linear(width, width) for _ in range(depth)))

    return audit(build, (32, 64, 128), lambda model: torch.optim.Adam(model.parameters()))


def check_of(gate, exponent, **config):
    return CoordCheck.from_records(
        synthetic({("attn[logits]", "activation", 1): power(exponent)}),
        gate,
        config=config,
        skipped=["width 9 skipped"],
    )


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([], 1),
        (["pass"], 0),
        (["pass", "inconclusive"], 4),
        (["inconclusive", "fail", "pass"], 3),
        (["fail", "error"], 1),
    ],
)
def test_one_exit_code_for_many_verdicts(outcomes, code):
    assert exit_code(outcomes) == code


def printed(check, verbose=False, **terminal):
    out = io.StringIO()
    print_check(
        check, Console(file=out, **{"width": 130, "soft_wrap": True, **terminal}), Path("a"), Path("b.png"), verbose
    )
    return out.getvalue()


def test_the_terminal_shows_first_what_decides(gate):
    first, second, *rest = printed(check_of(gate, 0.5)).splitlines()
    assert (first, second) == ("FAIL: 1 of 1 curves is at fault.", "widths 64-512 (4) | 5 seeds")
    assert "\n".join(printed(check_of(gate, 0.6), verbose=True)).isascii()
    labels = {line[:14].strip(): line[14:] for line in rest}
    assert [*labels] == ["First fault", "Why", "What to do", "Control", "Note", "Picture", "Files"]
    assert labels["First fault"] == "unexplained at attn.weight"
    assert "width^+0.50" in labels["Why"] and labels["What to do"]
    assert labels["Control"] == "none, so a pass does not show that a fault would have been seen."
    assert labels["Note"] == "width 9 skipped"
    assert labels["Picture"] == "b.png"
    assert labels["Files"] == "a: report.html report.md slopes.csv verdict.json records.parquet"


def test_a_passing_check_is_told_in_fewer_lines_than_one_screen(gate):
    assert "First fault" not in printed(check_of(gate, 0.0)) and len(printed(check_of(gate, 0.0)).splitlines()) < 10


def test_an_undecided_check_says_which_curve(gate):
    records = synthetic({("attn", "activation", 1): power(0.1, noise=0.1)})
    check = CoordCheck.from_records(records, gate)
    assert check.verdict == "inconclusive"
    assert f"\nUndecided     {check.findings[0]}\n" in printed(check)


def test_verbose_adds_the_tables(gate):
    text = printed(check_of(gate, 0.5), verbose=True)
    assert "| +0.500 [+0.500, +0.500] |" in text and "explodes" in text
    assert "+0.500 [" not in printed(check_of(gate, 0.5))


def test_text_is_wrapped_beside_its_label_on_a_terminal(gate):
    text = printed(check_of(gate, 0.5), force_terminal=True, color_system=None, width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert "\n              " in text


def test_the_markdown_report_holds_the_finding(gate):
    text = check_markdown(check_of(gate, -0.9))
    assert text.startswith("# FAIL: widths 64–512 (4) · 5 seeds")
    assert "| attn[logits] | activation | 1 | -0.900 [-0.900, -0.900] | +0.00 | vanishes |" in text
    assert "width 9 skipped" in text
    assert "![curves and slopes](report.png)" in text


def test_labels_are_what_differs(gate):
    checks = {
        Path("1"): check_of(gate, 0, embedding={"name": "tied", "std": 1}, name="x", steps=4),
        Path("2"): check_of(gate, 0, embedding={"name": "untied", "std": 1}, name="y", steps=4),
    }
    assert label_checks(checks) == {Path("1"): {"embedding": "tied"}, Path("2"): {"embedding": "untied"}}


def test_checks_without_a_telling_configuration_are_named_by_directory(gate):
    checks = {Path("1"): check_of(gate, 0), Path("2"): check_of(gate, 0)}
    assert label_checks(checks) == {Path("1"): {"": "1"}, Path("2"): {"": "2"}}


def test_a_grid_is_a_little_wider_than_high():
    labels = [{"a": a, "b": b, "c": c} for a in "12" for b in "123" for c in "12"]
    grid = arrange(labels)
    assert (len(grid), {len(row) for row in grid}) == (3, {4})
    assert sorted(label for row in grid for label in row) == sorted(f"a={x['a']} b={x['b']} c={x['c']}" for x in labels)


def test_a_summary_of_two_cells(gate, tmp_path):
    checks = {Path("1"): check_of(gate, 0.0, steps=1), Path("2"): check_of(gate, 0.5, steps=2)}
    files = summarize(checks, tmp_path, Console(quiet=True))
    assert [path.name for path in files] == ["summary.png", "summary.csv", "summary.md", "summary.html"]
    assert "| steps=2 | fail | 1 of 1 | attn.weight | unexplained |" in (tmp_path / "summary.md").read_text()


def test_cells_that_no_slope_tells_apart_are_told_apart_by_their_initial_sizes(gate, tmp_path):
    """Two layers half as large, once; a bias that is zero in both, and a third layer, tell nothing."""

    def parameters(factor):
        rows = audited(depth=3).parameters
        rows.loc[rows["parameter"].isin(["1.weight", "2.weight"]), "std_fan_in"] *= factor
        return rows.assign(parameter="blocks." + rows["parameter"].str.replace("3.weight", "out.weight"))

    audits = {str(of): Audit.from_parameters(parameters(of), [32, 64, 128], "sp", 0.1) for of in (1.0, 0.5)}
    sizes = differing_sizes(audits | {"none": None})
    other = Audit.from_parameters(parameters(1.0).assign(parameter=list("abcdefgh")), [32, 64, 128], "sp", 0.1)
    assert differing_sizes(audits | {"other": other})["other"].tolist() == [""]
    assert sizes.columns.tolist() == ["std√fan_in", "1.0", "0.5"]
    ((name, whole, half),) = sizes.to_numpy().tolist()
    assert name == "blocks.*.weight"
    assert (float(whole), float(half)) == pytest.approx((0.58, 0.29), abs=0.02)
    checks = {Path(label): check_of(gate, 0.0, of=label) for label in audits}
    checks = {path: dataclasses.replace(check, audit=audits[str(path)]) for path, check in checks.items()}
    console = Console(record=True, width=120, file=io.StringIO())
    summarize(checks, tmp_path, console)
    said = console.export_text()
    assert "no slope tells these cells apart" in said and "blocks.*.weight" in said
    assert f"| blocks.*.weight | {whole} | {half} |" in (tmp_path / "summary.md").read_text().replace("\\", "")
    failing = checks | {Path("0.5"): dataclasses.replace(check_of(gate, 0.5, of="0.5"), audit=audits["0.5"])}
    summarize(failing, tmp_path, console)
    assert "no slope" not in console.export_text()


def test_checks_are_found_below_a_directory(tmp_path, gate):
    for name in ("a", "b/c"):
        check_of(gate, 0.0).save(tmp_path / name)
    assert find_checks([tmp_path, tmp_path / "a"]) == [tmp_path / "a", tmp_path / "b/c"]
    assert find_checks([tmp_path / "b/d"]) == [tmp_path / "b/d"]


def test_a_markdown_audit_shows_findings_exponents_and_writers():
    text = audit_markdown(audited())
    assert "# Audit: FAIL" in text
    assert "- learning_rate: 1.weight: its learning rate scales like width^+0.00; expected -1.00" in text
    assert "| 1.weight | hidden | 1 |" in text and "+0.00 not -1.00" in text
    assert "Linear.reset_parameters linear.py:" in text
    assert "0.weight fits only" not in text


def test_findings_that_say_the_same_are_said_once():
    sentences = audit_sentences(audited(depth=3))
    (said,) = (sentence for sentence in sentences if "2.weight" in sentence or "1.weight" in sentence)
    assert said.endswith("The same holds for 2 more.")


def test_the_figure_of_an_audit_marks_faults(tmp_path):
    figure = audit_figure(audited())
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert labels == ["0.weight (input)", "0.bias (vector)", "learning_rate: 1.weight (hidden)", "1.bias (vector)"]
    audited().plot(tmp_path / "audit.png")
    assert (tmp_path / "audit.png").stat().st_size > 10_000


def test_each_panel_of_an_audits_figure_is_coloured_by_its_own_quantity():
    """1.weight's init and rate are wrong, 2.weight's rate alone: the worst finding of the first hides no other."""

    def build(width):
        model = nn.Sequential(nn.Linear(8, width), *(nn.Linear(width, width) for _ in range(2)))
        nn.init.constant_(model[0].bias, 0.1)
        nn.init.normal_(model[1].weight, std=1.0)
        return model

    result = audit(build, (32, 64, 128), lambda model: torch.optim.Adam(model.parameters()))
    assert result.parameters.set_index("parameter")["verdict"]["1.weight"] == "init"
    names = result.parameters["parameter"].tolist()
    drawn = []
    for axes in audit_figure(result).axes[:2]:
        by_label = {dots.get_label(): dots for dots in axes.collections}
        for label, colour in (("measured", "pass"), ("measured, at fault", "fail")):
            dots = by_label[label]
            assert to_hex(dots.get_facecolor()[0]) == VERDICT_COLOURS[colour]
            drawn.append({names[int(y)] for _, y in dots.get_offsets()})
    good_init, bad_init, good_rate, bad_rate = drawn
    assert bad_init == {"1.weight"} and "2.weight" in good_init
    assert bad_rate == {"1.weight", "2.weight"} and "0.weight" in good_rate
    assert not good_init & bad_init and not good_rate & bad_rate


@pytest.mark.parametrize(
    ("measured", "expected", "text"),
    [(-1.0, -1.0, "-1.00"), (-0.001, 0.0, "+0.00"), (0.5, 0.0, "+0.50 not +0.00"), (float("nan"), 0.0, "")],
)
def test_an_exponent_is_shown_with_what_was_expected_where_they_differ(measured, expected, text):
    assert format_exponent(measured, expected) == text
