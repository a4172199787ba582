"""experiment=attention_qkv_init reaches https://github.com/google/flax/issues/4027 by its own verdicts."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import qkv_init
import torch
from torch import nn

from conftest import run
from coordcheck.check import check_config
from coordcheck.config.load import load
from coordcheck.config.schema import Scheme
from coordcheck.judge.verdict import FAILURES

ROOT = Path(__file__).parents[2]
SMALL = ["experiment=attention_qkv_init", "widths=[32,64,128]", "seeds=3", "plots=null"]
FIRST = "decoder.0.self_attn"


@pytest.fixture(scope="module", params=["lecun_normal", "xavier_packed"])
def check(request, tmp_path_factory):
    torch.set_num_threads(1)
    runs = tmp_path_factory.mktemp("runs")
    return check_config(load([*SMALL, f"model.init={request.param}", "control=false", f"runs={runs}"]))


def exactly_zero(check, kind, step):
    """Modules and parameters that are exactly zero in every run, which may not be called dead."""
    curves = check.slopes.query("kind == @kind and step == @step and n_zero == n_runs")
    return set(curves.module), set(curves.verdict)


def rms(check, kind, module):
    return check.records.query("kind == @kind and module == @module and step == 0")["rms"].to_numpy()


def test_of_all_curves_only_the_gradient_of_values_of_zeros_is_at_fault(check):
    at_fault = check.slopes[check.slopes.verdict.isin(FAILURES)]
    assert at_fault[["module", "kind", "verdict"]].values.tolist() == [[f"{FIRST}.v.weight", "gradient", "dead"]]
    assert (check.verdict, check.findings[0].parameter) == ("fail", f"{FIRST}.v.weight")


def test_what_a_zero_input_makes_zero_at_step_0_is_due(check):
    # values of zeros without a bias, their mixture, and the norm of it
    due = {f"{FIRST}.v", f"{FIRST}.out", FIRST, "decoder.0.ln_1"}
    assert exactly_zero(check, "activation", 0) == (due, {"pass"})
    assert exactly_zero(check, "activation", 1) == (set(), set())


def test_the_first_blocks_kernels_start_without_a_gradient(check):
    modules, verdicts = exactly_zero(check, "gradient", 0)
    kernels = {f"{FIRST}.{name}.weight" for name in ("q", "k", "v", "out")}
    # the softmax weighs equal values, so nothing before it matters; the gain of the norm multiplies zeros
    biases = {f"{FIRST}.{name}.bias" for name in ("q", "k")}
    assert {name for name in modules if name.endswith(("weight", "bias"))} == kernels | biases | {
        "decoder.0.ln_1.weight"
    }
    assert verdicts == {"pass"}


def test_a_norm_of_zeros_amplifies_by_one_over_the_root_of_eps(check):
    first, second = (
        rms(check, "gradient", f"decoder.{i}.self_attn") / rms(check, "gradient", f"decoder.{i}.ln_1") for i in (0, 1)
    )
    # what it takes away is the mean of each vector's gradient, of D entries
    assert ((0.9 / math.sqrt(1e-5) < first) & (first < 1.0001 / math.sqrt(1e-5))).all()
    assert (second < 5).all()


def test_the_audit_shows_the_size_that_torchs_packed_matrix_has(check):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(128, 8, kdim=None if check.config["model"]["init"] == "xavier_packed" else 129)
    weight = attention.in_proj_weight if attention.in_proj_weight is not None else attention.q_proj_weight
    theirs = weight.std().item() * 128**0.5
    sizes = check.audit.parameters.set_index("parameter")["std_fan_in"]
    for name in ("encoder.0.attn", "decoder.0.self_attn", "decoder.1.cross_attn"):
        assert sizes[[f"{name}.{kernel}.weight" for kernel in "qkv"]].tolist() == pytest.approx([theirs] * 3, rel=0.03)


def test_one_command_checks_every_scheme(tmp_path):
    few = "hydra.sweeper.params={model.init: 'xavier_separate,t_fixup'}"
    code, out, _ = run(tmp_path, *SMALL, "control=false", "audit=false", "steps=2", "kinds=[activation]", few)
    cells = sorted(path.name for path in (tmp_path / "checks/attention_qkv_init").iterdir() if path.is_dir())
    assert cells == ["attention_qkv_init-t_fixup", "attention_qkv_init-xavier_separate"]
    assert code in (0, 4)
    assert "2 cells" in out


def test_the_sweep_has_all_schemes():
    text = (ROOT / "configs/experiment/attention_qkv_init.yaml").read_text()
    assert ",".join(Scheme) in text


# The benchmark: its numbers are kept beside it, and its picture is drawn from them.


@pytest.fixture(scope="module")
def frames():
    return [pd.read_csv(qkv_init.DATA / f"{name}.csv") for name in ("size", "gradient", "training")]


def test_the_stored_sizes_are_those_of_the_formulas(frames):
    sizes = frames[0].set_index("kernels")
    # xavier: 2 / (fan_in + fan_out); packed: fan_out = 3 fan_in; torch's nn.Linear: uniform up to fan_in^-1/2
    assert sizes.loc["xavier_separate", "q"] == pytest.approx(1.0, rel=0.01)
    assert sizes.loc["xavier_packed", ["q", "k", "v"]].tolist() == pytest.approx([0.5**0.5] * 3, rel=0.01)
    assert sizes.loc["torch_layers", "out"] == pytest.approx(3**-0.5, rel=0.01)
    assert sizes.loc["torch MultiheadAttention, d=1024", "q"] == pytest.approx(0.5**0.5, rel=0.01)


def test_the_stored_gradients_are_zero_in_the_first_block_and_grow_with_epsilon(frames):
    gradients = frames[1]
    kernels = gradients[["q.weight", "k.weight", "v.weight", "out.weight"]]
    assert (kernels[gradients.block == 0] == 0).all(axis=None)
    assert (kernels[gradients.block > 0] > 0).all(axis=None)
    of_eps = gradients.query("scheme == 'xavier_separate' and block == 0").set_index("eps")["v.bias"]
    assert of_eps[1e-6] / of_eps[1e-5] == pytest.approx(10**0.5, rel=1e-3)


def test_a_short_training_repeats_the_stored_one(frames):
    curve = qkv_init.train(qkv_init.Run("xavier_packed", 2, 0, 25))
    stored = frames[2].query("case == 'xavier_packed' and blocks == '2 + 2' and seed == 0 and step <= 25")
    assert curve.step.tolist() == stored.step.tolist() == [0, 25]
    np.testing.assert_allclose(curve.loss, stored.loss, rtol=0.02)  # other processors round otherwise


def test_every_scheme_learns_more_than_can_be_guessed(frames):
    last = frames[2].sort_values("step").groupby(["blocks", "case", "seed"]).last().reset_index()
    blind = last.loc[last.case == qkv_init.BLIND, "found"].item()
    for scheme in Scheme:
        assert (last.loc[last.case == scheme, "found"] > 3 * blind).all(), scheme


def test_the_picture_shows_the_numbers_it_is_given(frames):
    sizes, gradients, curves = frames
    figure = qkv_init.picture(sizes, gradients.assign(**{"q.weight": gradients["q.weight"] * 7}), curves)
    panels = {axes.get_title(): axes for part in figure.subfigs for axes in part.axes}
    for line, scheme in zip(panels["q weight"].lines, sorted(Scheme), strict=False):  # noqa: B007
        drawn = gradients.query("scheme == @scheme and eps == 1e-5 and block > 0")["q.weight"]
        np.testing.assert_allclose(line.get_ydata(), 7 * drawn)
    assert "exactly 0 in 5 of 5 schemes" in [text.get_text() for text in panels["v weight"].texts]
    numbers = [text.get_text() for text in panels["std × √d of the kernels"].texts]
    assert numbers[8] == f"{sizes.set_index('kernels').loc['xavier_packed', 'q']:.3f}"
    deep = panels["held-out loss, 6 + 6 blocks, width 64"]
    packed = next(line for line in deep.lines if line.get_label() == "xavier_packed")
    drawn = curves.query("case == 'xavier_packed' and blocks == '6 + 6' and seed == 0")
    np.testing.assert_allclose(packed.get_ydata(), drawn.loss)


def test_the_picture_is_stored():
    assert qkv_init.PICTURE.stat().st_size > 50_000
