"""Learning rates tried at several widths: the whole flow, on models of milliseconds."""

import math

import pandas as pd
import pytest
import torch
from torch import nn

import coordcheck
from conftest import run
from coordcheck import Cure
from coordcheck.config.load import load
from coordcheck.report.figures.transfer import transfer_figure
from coordcheck.transferring import transfer_config

WIDTHS = (8, 16, 32)
TARGETS = torch.randint(16, (16,), generator=torch.Generator().manual_seed(1))
SHORT = ["widths=[32,64,96]", "steps=5", "seeds=2", "model.depth=1", "data.batch=2", "data.context=8", "base_width=32"]


def build(width):
    return nn.Sequential(nn.Embedding(16, width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 16))


def batch(seed):
    tokens = torch.randint(16, (4, 8), generator=torch.Generator().manual_seed(seed))
    return tokens, TARGETS[tokens]


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def transfer(build=build, batch=batch, optimizer=adam, **options):
    return coordcheck.transfer(build, batch, WIDTHS, optimizer, steps=5, seeds=2, device="cpu", **options)


@pytest.fixture(scope="module")
def result():
    return transfer()


def test_what_was_tried_is_told(result):
    losses = result.frame("losses")
    assert {*losses["width"]} == {*WIDTHS} and {*losses["model"]} == {"build"}
    assert (losses["lr"] == 1e-2 * 2.0 ** losses["octave"]).all()
    assert losses.groupby("width")["seed"].nunique().eq(2).all()
    assert result.verdict in ("pass", "fail", "inconclusive") and f"{result!r}".startswith("build: ")
    assert math.isfinite(result.exponent) and result.control is None


def test_numbers_depend_neither_on_workers_nor_on_what_was_stored(result, tmp_path):
    drawn = []

    def watched(seed):
        drawn.append(seed)
        return batch(seed)

    pd.testing.assert_frame_equal(transfer(batch=watched, workers=4).frame("losses"), result.frame("losses"))
    first = transfer(batch=watched, store=tmp_path)
    pd.testing.assert_frame_equal(first.frame("losses"), result.frame("losses"))
    stored = len([*tmp_path.iterdir()])
    assert stored == len(first.frame("losses"))
    drawn.clear()
    again = transfer(batch=watched, store=tmp_path)
    pd.testing.assert_frame_equal(again.frame("losses"), result.frame("losses"))
    assert len([*tmp_path.iterdir()]) == stored and len(drawn) < 10, "runs were done again"


def test_another_model_is_another_store(result, tmp_path):
    transfer(store=tmp_path)
    stored = len([*tmp_path.iterdir()])

    def other(width):
        return nn.Sequential(nn.Embedding(16, width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 16))

    other.__qualname__ = "build"
    transfer(other, store=tmp_path)
    assert len([*tmp_path.iterdir()]) > stored


def test_each_step_has_its_own_batch_and_all_runs_the_same(result):
    seeds = []

    def watched(seed):
        seeds.append(seed)
        return batch(seed)

    transfer(batch=watched, first_seed=3)
    assert {*range(15, 20)} == {*seeds} - {3}, "3 is of the steps that tell what the functions do"
    assert seeds.count(15) == seeds.count(19)


def test_a_rate_that_blows_up_is_data():
    result = transfer(optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=100.0))
    losses = result.frame("losses")
    assert losses["loss"].isin([math.inf]).any() and math.isfinite(losses["loss"].min())


@pytest.mark.parametrize("rate", [1e-12, 1e12])
def test_without_a_lowest_loss_there_is_a_picture_all_the_same(rate, tmp_path):
    """Too small a rate learns nothing that shows, too large a one diverges, within the reach of a search."""
    result = transfer(optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=rate))
    assert result.verdict == "inconclusive" and "no lowest point" in f"{result!r}"
    result.save(tmp_path)
    assert (tmp_path / "transfer.png").stat().st_size > 10_000


def test_a_cured_model_stands_beside_itself_as_it_was(result):
    cure = Cure.from_dict(
        {
            "version": 1,
            "base_width": 8,
            "entries": [{"parameters": ["1.weight", "3.weight"], "role": "hidden", "lr": -1}],
        }
    )
    cured = transfer(cure=cure)
    assert [curves.name for curves in (cured.curves, cured.control)] == ["build, cured", "before the cure"]
    pd.testing.assert_frame_equal(
        cured.control.losses.query("width == 8"), result.curves.losses.query("width == 8"), check_exact=True
    )
    widest = [each.best.loc[32, "lr"] for each in (cured.curves, cured.control)]
    assert widest[0] > 1.3 * widest[1], "a rate that the cure divides by 4 is to be larger"
    assert transfer(cure=cure, control=False).control is None


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"seeds": 1}, r"`seeds` is at least 2; got 1\. For example seeds=3\."),
        ({"seeds": [0, 1]}, r"`seeds` is a whole number; got \[0, 1\]"),
        ({"steps": 4}, r"`steps` is at least 5; got 4\. For example steps=100\."),
        ({"widths": (8, 16)}, r"`widths` needs at least 3"),
        ({"control": 3}, r"`control` is True, False"),
        ({"loss": lambda model, batch: -model(batch[0]).square().mean()}, r"zero or more; got -.*\+ 10"),
    ],
)
def test_bad_input_is_told(options, pattern):
    with pytest.raises(ValueError, match=pattern):
        coordcheck.transfer(
            **{"build": build, "batch": batch, "widths": WIDTHS, "steps": 10, "device": "cpu"} | options
        )


def test_a_configured_model_stands_beside_standard_parametrization(tmp_path):
    result = transfer_config(load([*SHORT, f"runs={tmp_path}/runs"], "transfer"))
    assert [curves.name for curves in (result.curves, result.control)] == [
        "gpt depth=1 head_size=32 mup",
        "standard parametrization",
    ]
    at_base = [each.losses.query("width == 32")["loss"].tolist() for each in (result.curves, result.control)]
    assert at_base[0] == pytest.approx(at_base[1]), "at the base width both are the same model"
    figure = transfer_figure(result.curves, result.control)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    for width in (32, 64, 96):
        drawn = result.curves.losses.query("width == @width and loss < inf").groupby("lr")["loss"].mean()
        assert [*lines[f"{width}"].get_ydata()] == drawn.tolist()
    assert [*figure.axes[2].lines[1].get_ydata()] == result.curves.best["lr"].tolist()


def test_a_configured_model_is_cured_too(tmp_path):
    entries = [{"parameters": ["blocks.*.mlp.fc.weight", "lm_head.weight"], "role": "hidden", "lr": -3}]
    cure = Cure.from_dict({"version": 1, "base_width": 32, "entries": entries})
    result = transfer_config(load([*SHORT, "parametrization=sp", f"runs={tmp_path}"], "transfer"), cure)
    assert result.control.name == "before the cure" and result.curves.name.endswith(" sp, cured")
    runs = [each.losses.set_index(["octave", "width", "seed"])["loss"] for each in (result.curves, result.control)]
    both = pd.concat(runs, axis=1, join="inner").query("0 <= octave <= 2")
    same = both.iloc[:, 0] == both.iloc[:, 1]
    at_base = both.index.get_level_values("width") == 32
    assert same[at_base].all() and at_base.any() and not same[~at_base].any()


def test_what_is_in_standard_parametrization_has_no_control(tmp_path):
    assert transfer_config(load([*SHORT, "parametrization=sp", f"runs={tmp_path}"], "transfer")).control is None


def test_the_command_writes_files_and_ends_with_the_code_of_the_verdict(tmp_path):
    code, out, err = run(tmp_path, *SHORT, "control=false", "name=mine", entry="transfer")
    words = {0: "transfers", 3: "does not transfer", 4: "inconclusive"}
    assert words[code] in out, err
    written = {path.name for path in (tmp_path / "checks" / "mine" / "transfer").iterdir()}
    assert {"transfer.csv", "optima.csv", "transfer.png"} <= written


def test_a_model_of_jax_is_refused():
    with pytest.raises(ValueError, match="coordcheck-transfer trains torch models; got model=flax"):
        transfer_config(load(["model=flax", "model.build=a.b"], "transfer"))


def test_an_executor_that_it_would_not_use_is_refused():
    with pytest.raises(ValueError, match="coordcheck-transfer makes its runs in this process; got executor=processes"):
        transfer_config(load(["executor=processes"], "transfer"))
