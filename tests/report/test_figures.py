"""The data behind the figures, and that the files are pictures."""

import itertools
import json

import matplotlib.image
import matplotlib.style
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from conftest import power, synthetic
from coordcheck import CoordCheck
from coordcheck.report.figures.check import draw_panel, pick_steps, report_figure
from coordcheck.report.figures.curves import LABELLED
from coordcheck.report.figures.heat_map import draw_heat_map
from coordcheck.report.figures.rows import MOST_ROWS, Row, rows_of
from coordcheck.report.figures.style import VERDICT_COLOURS, contrast, depth_colours, ink
from coordcheck.report.figures.summary import summary_figure


def check_of(gate, curves, **kwargs):
    return CoordCheck.from_records(synthetic(curves, **kwargs), gate, config={"widths": [64, 128, 256, 512]})


@pytest.fixture
def failing(gate):
    exponents = {"wte": 0.0, "fc": 0.4, "proj": 0.9}
    curves = {(m, "activation", s): power(e * s, 0.01) for m, e in exponents.items() for s in (0, 1)}
    curves |= {(m, "delta", 1): power(e, 0.01) for m, e in exponents.items()}
    return check_of(gate, curves)


def test_a_panel_draws_the_geometric_mean_and_the_range_of_the_seeds(failing):
    axes = Figure().subplots()
    of = {"kind": "activation", "step": 1}
    records, slopes = (
        frame[(frame.kind == of["kind"]) & (frame.step == of["step"])] for frame in (failing.records, failing.slopes)
    )
    draw_panel(axes, records, slopes, depth_colours(["wte", "fc", "proj"]))
    bands, lines, dots = axes.collections
    assert len(lines.get_segments()) == len(bands.get_paths()) == 3
    proj = [tuple(colour) for colour in lines.get_colors()].index(depth_colours(["wte", "fc", "proj"])["proj"])
    sizes = records[records.module == "proj"].groupby("width")["l1"]
    widths, middles = lines.get_segments()[proj].T
    assert widths.tolist() == [64, 128, 256, 512]
    assert middles == pytest.approx(sizes.apply(lambda s: np.exp(np.log(s).mean())).to_numpy())
    low, high = (np.sort(part) for part in np.split(bands.get_paths()[proj].vertices[:8, 1], 2))
    assert (low, high) == (pytest.approx(np.sort(sizes.min())), pytest.approx(np.sort(sizes.max())))
    assert len(dots.get_offsets()) == 12
    assert [text.get_text() for text in axes.texts] == ["▲ proj +0.90", "▲ fc +0.40"]
    assert axes.texts[0].get_color() == ink(lines.get_colors()[proj])


def test_where_a_fault_starts_is_marked_and_its_curve_framed(failing):
    finding = failing.findings[0]
    assert (finding.module, finding.kind, finding.step) == ("fc", "delta", 1)
    figure = report_figure(failing)
    panels = {axes.get_title().split()[-1]: axes for axes in figure.findobj(Axes) if axes.images}
    labels = [label.get_text() for label in panels["activation"].get_yticklabels()]
    assert labels == [f"► {name}" if name == finding.module else name for name in ("wte", "fc", "proj")]
    frames = {kind: [patch for patch in panels[kind].patches if not patch.get_fill()] for kind in panels}
    assert not frames["activation"]
    (frame,) = frames[finding.kind]
    row = ["wte", "fc", "proj"].index(finding.module)
    assert (frame.get_x(), frame.get_y()) == (-0.5, row - 0.5)


def test_at_most_three_curves_are_labelled_and_a_passing_panel_names_its_nearest(gate):
    many = check_of(gate, {(f"m{i}", "activation", 0): power(0.3 + i / 10) for i in range(6)})
    one = check_of(gate, {("a", "activation", 0): power(0.01), ("b", "activation", 0): power(0.02)})
    for check, labels in ((many, ["▲ m5 +0.80", "▲ m4 +0.70", "▲ m3 +0.60"]), (one, ["b +0.02"])):
        axes = Figure().subplots()
        draw_panel(axes, check.records, check.slopes, depth_colours(list(check.slopes.module)))
        assert sorted(text.get_text() for text in axes.texts) == sorted(labels)
        assert len(labels) <= LABELLED


def test_the_heat_map_shows_the_distance_from_the_expected_range_and_the_verdicts(gate):
    curves = {
        ("hidden", "activation", 0): power(0.4),
        ("flat", "activation", 0): power(0.0),
        ("zero", "activation", 0): lambda w, s: 0.0,
        ("dying", "activation", 0): power(-0.7),
    }
    check = check_of(gate, curves)
    axes = Figure().subplots()
    image = draw_heat_map(axes, check.slopes, rows_of(["hidden", "flat", "zero", "dying"]), [0])
    data = np.ma.filled(image.get_array().astype(float), np.nan)[:, 0]
    assert data == pytest.approx([0.4, 0.0, np.nan, -0.7], nan_ok=True)
    assert [text.get_text() for text in axes.texts] == ["▲ +0.40", "+0.00", "0", "▼ -0.70"]


def test_a_slope_inside_a_range_is_not_coloured(gate):
    logits = check_of(gate, {("head", "activation", 1): power(-0.3)}, role="readout")
    image = draw_heat_map(Figure().subplots(), logits.slopes, rows_of(["head"]), [1])
    assert image.get_array()[0, 0] == 0.0


def test_colours_run_from_dark_to_bright_with_depth():
    colours = depth_colours([f"m{i}" for i in range(60)])
    brightness = [0.3 * r + 0.6 * g + 0.1 * b for r, g, b, _ in colours.values()]
    assert len(set(colours.values())) == 60
    assert brightness == sorted(brightness)


def test_panels_of_many_steps():
    assert pick_steps([0, 1, 2]) == [0, 1, 2]
    assert pick_steps(list(range(20))) == [0, 6, 13, 19]


@pytest.mark.parametrize("modules", [1, 60])
def test_the_file_is_a_picture_with_the_configuration_in_its_metadata(tmp_path, gate, modules):
    curves = {
        (f"blocks.{i}", k, s): power(0.1 * s) for i in range(modules) for k, s in (("activation", 0), ("delta", 1))
    }
    check = check_of(gate, curves)
    check.plot(tmp_path / "report.png")
    picture = matplotlib.image.imread(tmp_path / "report.png")
    assert picture.std() > 0.05
    from PIL import Image

    with Image.open(tmp_path / "report.png") as image:
        assert json.loads(image.info["Description"]) == check.config


def test_titles_say_the_verdict_and_no_text_of_sixty_rows_overlaps(gate):
    curves = {(f"blocks.{i}.attn.proj", "activation", 0): power(0.0) for i in range(60)}
    figure = report_figure(check_of(gate, curves))
    assert figure.get_suptitle().startswith("PASS   widths 64–512 (4) · 5 seeds")
    figure.draw_without_rendering()
    labels = [text for axes in figure.axes for text in axes.get_yticklabels() if text.get_text().startswith("blocks")]
    boxes = sorted((text.get_window_extent() for text in labels), key=lambda box: box.y0)
    assert len(boxes) == 60
    assert all(below.y1 <= above.y0 + 1 for below, above in itertools.pairwise(boxes))


def test_a_check_that_is_zero_or_nan_throughout_still_has_a_picture(tmp_path, gate):
    check = check_of(
        gate, {("a", "activation", 0): lambda w, s: 0.0, ("b", "activation", 0): lambda w, s: float("nan")}
    )
    check.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 1000


def test_the_summary_has_a_panel_for_each_cell(failing, gate):
    passing = check_of(gate, {("wte", "activation", 0): power(0.0)})
    figure = summary_figure({"a=1": failing, "a=2": passing}, [["a=1", "a=2"], [None, None]])
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == [
        "a=1\nFAIL, delta, step 1",
        "a=2\nPASS, activation, step 0",
    ]
    assert "1 fail, 1 pass" in figure.get_suptitle()


def test_the_summary_names_where_a_fault_starts_and_its_line_stands_out(failing, gate):
    passing = check_of(gate, {("wte", "activation", 0): power(0.0), ("head", "activation", 0): power(-0.1)})
    figure = summary_figure({"a=1": failing, "a=2": passing}, [["a=1", "a=2"]])
    (fault, *extremes), alone = ([text.get_text() for text in axes.texts] for axes in figure.axes)
    assert fault == "fault starts at fc.weight\nunexplained: delta, step 1 +0.40"
    assert [text.replace("-0.00", "+0.00") for text in extremes] == [
        "highest slope: proj +0.90, explodes",
        "lowest slope: wte +0.00, pass",
    ]
    assert alone == ["highest slope: wte +0.00, pass", "lowest slope: head -0.10, pass"]
    of_fault, of_none = ([line for line in axes.lines if len(line.get_xdata())] for axes in figure.axes)
    assert [line.get_color() for line in of_fault] == [ink(VERDICT_COLOURS["fail"])]
    assert of_fault[0].get_linewidth() > figure.axes[0].collections[1].get_linewidth()[0]
    assert not of_none


@pytest.mark.parametrize("kind", ["activation", "delta", "effective_update", "gradient"])
def test_the_summary_draws_the_curve_that_shows_the_fault(gate, kind):
    """With the slope that it names, though the same module's other curves are flat."""
    flat = {"gradient": -1.0}.get(kind, 0.0)
    curves = {(m, "activation", s): power(0.0) for m in ("wte", "fc") for s in (0, 1, 2)}
    curves |= {("wte", kind, 1): power(flat), ("fc", kind, 1): power(flat + 0.9)}
    check = check_of(gate, curves)
    assert (check.findings[0].module, check.findings[0].kind, check.findings[0].step) == ("fc", kind, 1)
    axes = summary_figure({"a=1": check}, [["a=1"]]).axes[0]
    assert axes.get_title() == f"a=1\nFAIL, {kind}, step 1"
    (red,) = [line for line in axes.lines if line.get_color() == ink(VERDICT_COLOURS["fail"])]
    widths, sizes = red.get_data()
    assert np.polyfit(np.log(widths), np.log(sizes), 1)[0] == pytest.approx(flat + 0.9)
    assert f"{kind}, step 1 {flat + 0.9:+.2f}" in axes.texts[0].get_text()


def test_the_texts_of_a_summary_panel_do_not_overlap(failing):
    figure = summary_figure({"a=1": failing}, [["a=1"]])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 3
    assert all(above.y0 >= below.y1 - 1 for above, below in itertools.pairwise(boxes))


def deep_model(gate, blocks):
    """A check of many modules: one block's k is at fault, and one far from it."""
    modules = [f"blocks.{i}.{part}" for i in range(blocks) for part in ("ln", "attn.q", "attn.k", "attn", "mlp")]
    names = ["wte", *modules, "lm_head"]
    curves = {(m, "activation", 0): power(0.0) for m in names}
    curves |= {(m, "delta", 1): power(0.5 if m in ("blocks.7.attn.k", "blocks.1.mlp") else 0.0) for m in names}
    return names, check_of(gate, curves, seeds=2)


@pytest.mark.parametrize("blocks", [22, 600])
def test_models_of_112_and_of_3002_modules_have_a_picture_that_can_be_read(gate, blocks):
    """Warnings are errors here: none of collapsed axes."""
    names, check = deep_model(gate, blocks)
    assert len(names) == 5 * blocks + 2
    figure = report_figure(check)
    assert figure.get_figheight() < 15
    panels = {axes.get_title().split()[-1]: axes for axes in figure.findobj(Axes) if axes.images}
    labels = [tick.get_text() for tick in panels["activation"].get_yticklabels()]
    assert len(labels) <= MOST_ROWS
    starts = [label for label in labels if label.startswith("►")]
    assert len(starts) == len({finding.module for finding in check.findings if finding.fault})
    assert all("modules)" not in label for label in starts)
    faulty = next(axes for axes in figure.findobj(Axes) if axes.get_title() == "delta, step 1")
    assert len(faulty.collections[1].get_segments()) == len(labels)
    assert sorted(text.get_text() for text in faulty.texts) == ["▲ blocks.1.mlp +0.50"]


def test_rows_hold_each_module_once_in_forward_order_and_those_at_fault_alone():
    names = [f"{side}.blocks.{i}.{part}" for side in ("encoder", "decoder") for i in range(40) for part in "abcd"]
    rows = rows_of(names, ["decoder.blocks.9.c"])
    assert [module for row in rows for module in row.modules] == names
    assert Row(("decoder.blocks.9.c",), "decoder.blocks.9.c") in rows
    assert len(rows) <= MOST_ROWS
    assert len({row.label() for row in rows}) == len(rows) > MOST_ROWS / 2


def test_a_row_of_several_modules_shows_the_worst(gate):
    curves = {("h.0.a", "activation", 0): power(0.0), ("h.0.b", "activation", 0): power(0.4)}
    check = check_of(gate, curves)
    axes = Figure().subplots()
    ranked = check.slopes.sort_values("slope", ascending=False)
    image = draw_heat_map(axes, ranked, [Row(("h.0.a", "h.0.b"), "h.0")], [0])
    assert image.get_array()[0, 0] == pytest.approx(0.4)
    assert [text.get_text() for text in axes.texts] == ["▲ +0.40"]


def test_zero_broken_passing_and_not_recorded_look_different(gate):
    curves = {
        ("fine", "activation", 0): power(0.0),
        ("zero", "activation", 0): lambda w, s: 0.0,
        ("broken", "activation", 0): lambda w, s: float("nan"),
    }
    check = check_of(gate, curves)
    slopes = check.slopes.assign(verdict=check.slopes["verdict"].replace("dead", "pass"))  # a zero that is due
    axes = Figure().subplots()
    draw_heat_map(axes, slopes, rows_of(["fine", "zero", "broken", "missing"]), [0])
    deviation, flat = (image.get_array() for image in axes.images)
    covered = [tuple(float(x) for x in cell[0]) for cell in np.asarray(flat)]
    assert len(set(covered)) == 3 and covered[0][3] == covered[3][3] == 0 and covered[1][3] == covered[2][3] == 1
    assert np.ma.filled(deviation, np.nan)[:, 0] == pytest.approx([0.0, np.nan, np.nan, np.nan], nan_ok=True)
    (ground,) = axes.patches
    assert ground.get_hatch()
    assert {text.get_text() for text in axes.texts} == {"+0.00", "0", "✕"}


def test_the_loss_stands_by_itself(gate):
    curves = {(m, "activation", s): power(0.0) for m in ("wte", "head") for s in (0, 1)}
    records = synthetic({**curves, ("(loss)", "activation", 0): power(0.0), ("(loss)", "activation", 1): power(-0.1)})
    records.loc[records["module"] == "(loss)", "role"] = "loss"
    check = CoordCheck.from_records(records, gate)
    figure = report_figure(check)
    by_title = {axes.get_title(): axes for axes in figure.findobj(Axes)}
    assert len(by_title["activation, step 0"].collections[1].get_segments()) == 2
    assert len(by_title["loss"].collections[1].get_segments()) == 2
    assert [text.get_text() for text in by_title["loss"].get_legend().get_texts()] == ["step 0", "step 1"]
    (heat,) = [axes for axes in by_title.values() if axes.images]
    assert [tick.get_text() for tick in heat.get_yticklabels()] == ["wte", "head", "", "(loss)"]
    panel = summary_figure({"a=1": check}, [["a=1"]]).axes[0]
    assert len(panel.collections[1].get_segments()) == 2


@pytest.mark.parametrize("style", ["default", "dark_background", "grayscale"])
def test_what_is_written_can_be_read_in_every_style(failing, style):
    with matplotlib.style.context(style):
        ground = matplotlib.rcParams["axes.facecolor"]
        figures = [report_figure(failing), summary_figure({"a=1": failing}, [["a=1"]])]
        texts = [text for figure in figures for axes in figure.findobj(Axes) if not axes.images for text in axes.texts]
        names = [tick for axes in figures[0].findobj(Axes) if axes.images for tick in axes.get_yticklabels()]
        shown = [text for text in [*texts, *names, figures[0]._suptitle] if text.get_text()]
        assert len(shown) > 10
        for text in shown:
            assert contrast(text.get_color(), ground) >= 4.5, text


def test_long_names_stay_inside_their_panels(gate):
    name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.of_a_model_with_long_names"
    check = check_of(gate, {(name, "activation", s): power(0.5 * s, 0.01) for s in (0, 1, 2, 3)})
    for figure in (report_figure(check), summary_figure({"a=1": check}, [["a=1"]])):
        figure.draw_without_rendering()
        for axes in figure.findobj(Axes):
            for text in axes.texts if axes.get_xscale() == "log" else []:
                assert text.get_window_extent().x1 <= axes.get_window_extent().x1, text
