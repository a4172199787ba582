"""From a flax model to a verdict, files and pictures, as of a torch model, and without torch."""

import json
import os
import subprocess
import sys
from functools import cache

import pytest

pytest.importorskip("flax", reason="JAX is not installed: pip install 'coordcheck[jax]'")

import flax.linen as nn
import jax
import numpy as np
import optax
import pandas as pd

import coordcheck
import coordcheck.jax as cj
from coordcheck.cli.report import main as report
from coordcheck.jax.audit import measure, rates
from coordcheck.jax.cell import Cured, JaxCell
from coordcheck.jax.check import _can_be_tried
from coordcheck.jax.steps import try_steps
from coordcheck.judge.cure import CureTable, Entry, Exponents
from coordcheck.judge.trial import trials_of
from coordcheck.records.merge import save_run

DRAW = np.random.default_rng(0)
BATCH = DRAW.normal(size=(32, 12)).astype("float32"), DRAW.integers(0, 10, 32)
WIDTHS = (32, 64, 128)


class MLP(nn.Module):
    width: int
    mup: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.width, name="up")(x))
        x = nn.relu(nn.Dense(self.width, name="mid")(x))
        start = nn.initializers.normal(32**-0.5) if self.mup else nn.initializers.lecun_normal()
        return nn.Dense(10, name="head", kernel_init=start)(x * 32 / self.width if self.mup else x)


def in_mup(width, roles):
    return optax.chain(optax.adam(1e-2), cj.scale_by_width(width, roles, 32, multipliers={"readout": -1.0}))


def in_sp(width, roles):
    return optax.adam(1e-2)


@cache
def check(mup):
    build = MLP if mup else lambda width: MLP(width, mup=False)
    return cj.coord_check(build, BATCH, WIDTHS, 8, optimizer=in_mup if mup else in_sp, name=f"mup={mup}")


def test_a_model_in_mup_passes_and_its_control_fails():
    found = check(True)
    assert not found.slopes["verdict"].isin(["explodes", "vanishes", "dead", "nonfinite"]).any()
    assert (found.slopes["verdict"] == "pass").mean() > 0.9
    assert found.control.saw
    assert found.audit.verdict == "pass"
    assert found.records.attrs["classes"] == 10
    assert found.config["parameters"]["32"] == 12 * 32 + 32 + 32 * 32 + 32 + 320 + 10


def test_a_model_in_sp_fails_at_its_kernels_in_the_words_of_jax():
    found = check(False)
    assert found.verdict == "fail"
    said = {finding.parameter: finding for finding in found.findings if finding.fault}
    assert said["mid.kernel"].fault == "learning_rate"
    assert said["mid.kernel"].advice.startswith("Give it lr / width_mult, for example by coordcheck.jax.scale_by_width")
    assert said["head.kernel"].fault == "multiplier"
    assert said["head.kernel"].advice.startswith("Multiply its input by 1 / width_mult")
    sentences = " ".join(f"{f}" for f in (*found.findings, *found.audit.findings))
    assert "mup." not in sentences and "weight of" not in sentences and "parameter group" not in sentences
    undecided = [finding for finding in found.findings if not finding.fault and finding.module == "mid"]
    assert all(finding.parameter == "mid.kernel" for finding in undecided)


@pytest.mark.parametrize("faulty", ["rate", "all"])
def test_advice_is_tried_in_jax_too(monkeypatch, faulty):
    """One rate alone, and standard parametrization, whose readout must start and learn as if it were divided."""
    monkeypatch.setattr("coordcheck.jax.check.trials_of", trials_of)

    def fast_but_one(width, roles):
        return in_mup(width, {**roles, "mid.kernel": "input"})

    build, optimizer = (MLP, fast_but_one) if faulty == "rate" else (lambda width: MLP(width, mup=False), in_sp)
    found = cj.coord_check(build, BATCH, WIDTHS, 5, optimizer=optimizer, control=False)
    said = {finding.parameter: finding.tried for finding in found.findings if finding.fault}
    assert said["mid.kernel"].startswith("Tried: with this change ")
    assert all(trial.helped and trial.verdict != "fail" for trial in found.trials)
    assert ("head.kernel" in said) == (faulty == "all") and len(found.trials) == len(said)
    untried = cj.coord_check(build, BATCH, WIDTHS, 5, optimizer=optimizer, control=False, try_advice=False)
    assert not untried.trials and untried.findings[0].advice == found.findings[0].advice


def test_a_change_that_no_transformation_bears_is_not_tried():
    entry = Entry(("a.kernel",), "hidden", Exponents(lr=-1.0))
    assert _can_be_tried(CureTable(32, (entry,)))
    assert not _can_be_tried(CureTable(32, (entry,), {"head": -0.5}))
    for power in ("weight_decay", "eps"):
        assert not _can_be_tried(CureTable(32, (Entry(("a.kernel",), "hidden", Exponents(**{power: 1.0})),)))


def test_what_is_changed_is_seen_by_its_audit():
    """Sizes as they start, rates as they step."""
    cell = JaxCell(MLP, BATCH, in_mup, None, WIDTHS)
    entries = Entry(("mid.kernel",), "hidden", Exponents(std=0.5, lr=1.0)), Entry(("up.bias",), "", Exponents(lr=-0.5))
    before, after = (measure(of, WIDTHS).set_index("parameter") for of in (cell, Cured(cell, CureTable(32, entries))))
    moved = after[["std_exponent", "lr_exponent"]].sub(before[["std_exponent", "lr_exponent"]]).fillna(0.0)
    expected = pd.DataFrame(0.0, moved.index, moved.columns)
    expected.loc["mid.kernel"], expected.loc["up.bias", "lr_exponent"] = [0.5, 1.0], -0.5
    pd.testing.assert_frame_equal(moved, expected, atol=1e-4)


def test_sp_is_what_it_says_it_is():
    found = cj.audit(lambda width: MLP(width, mup=False), BATCH, WIDTHS, in_sp, expect="sp")
    assert found.verdict == "pass"
    table = found.parameters.set_index("parameter")
    assert table["role"].to_dict() == {
        **dict.fromkeys(["up.bias", "mid.bias"], "vector"),
        **{"up.kernel": "input", "mid.kernel": "hidden", "head.kernel": "readout", "head.bias": "fixed"},
    }
    assert table.loc["mid.kernel", "std_exponent"] == pytest.approx(-0.5, abs=0.02)
    assert table.loc["mid.kernel", ["fan_in", "fan_out"]].tolist() == [128, 128]
    assert table.loc["up.kernel", "fan_in"] == 12


@pytest.mark.parametrize(
    ("optimizer", "rule", "exponents"),
    [
        (lambda w, r: optax.adam(1e-2 * 32 / w), "adam", (-1, np.nan)),
        (lambda w, r: optax.adamw(1e-2 * 32 / w, weight_decay=0.1), "adam", (-1, -1)),
        (lambda w, r: optax.sgd(0.1 * (w / 32) ** 0.5, momentum=0.9), "sgd", (0.5, np.nan)),
        (lambda w, r: optax.lion(1e-3 * 32 / w, weight_decay=0.1 * w / 32), "adam", (-1, 0)),
        (lambda w, r: optax.sgd(0.0), "", (np.nan, np.nan)),
        (lambda w, r: optax.adam(optax.linear_schedule(1e-5, 1e-2 * 32 / w, 1)), "adam", (-1, np.nan)),
    ],
)
def test_learning_rates_are_seen_by_trying_the_transformation(optimizer, rule, exponents):
    taken = [try_steps(optimizer(w, {}), {"mid": {"kernel": np.zeros((w, w))}})["mid.kernel"] for w in WIDTHS]
    assert {step.rule for step in taken} == {rule}
    found = rates(WIDTHS, taken)
    np.testing.assert_allclose([found["lr_exponent"], found["effective_decay_exponent"]], exponents, atol=1e-3)


def test_files_are_those_of_any_check(tmp_path):
    found = check(False)
    found.save(tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert {"records.parquet", "slopes.csv", "verdict.json", "report.png", "report.md", "audit.csv"} <= files
    again = coordcheck.CoordCheck.load(tmp_path)
    assert [str(f) for f in again.findings] == [str(f) for f in found.findings]
    assert [str(f) for f in again.audit.findings] == [str(f) for f in found.audit.findings]
    assert json.loads((tmp_path / "verdict.json").read_text())["versions"].keys() >= {"jax", "flax", "optax"}


def test_finished_runs_are_kept_and_found_again(tmp_path):
    def small(width):
        return nn.Sequential([nn.Dense(width, use_bias=False), nn.Dense(10, use_bias=False)])

    def sgd(width, roles):
        return optax.sgd(0.1)

    def call(seeds):
        kinds = ["activation"]
        cj.coord_check(small, BATCH, WIDTHS, seeds, 1, sgd, kinds=kinds, audit=False, control=False, store=tmp_path)

    call(2)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(written) == 6
    call(3)
    again = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(again) == 9 and {path: again[path] for path in written} == written


def test_a_loop_of_ones_own_saves_what_a_report_reads(tmp_path, capsys, monkeypatch):
    cell = JaxCell(MLP, BATCH, in_mup, None, WIDTHS)
    for width in WIDTHS:
        loss = jax.jit(cj.value_and_grad(cell.loss(width), kinds=("activation",)))
        for seed in range(2):
            parameters, rest, _ = cell.begun(width, seed)
            (_, told), _ = loss(parameters, rest, cell.batch(seed))
            save_run(cj.records([told], width=width, seed=seed, roles=cell.roles), tmp_path)
    found = coordcheck.CoordCheck.load(tmp_path)
    assert found.records.attrs["parameters_of"]["mid"] == "mid.kernel"
    monkeypatch.setattr(sys, "argv", ["coordcheck-report", "-v", str(tmp_path)])
    with pytest.raises(SystemExit):
        report()
    assert "mid" in capsys.readouterr().out


COMMAND = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "mup"):
            raise ImportError(f"{name} was imported")

sys.meta_path.insert(0, NoTorch())
from coordcheck.cli.check import main
sys.argv = ["coordcheck", *sys.argv[1:]]
main()
"""
GPT = ["model=flax", "model.build=coordcheck.jax.gpt.build", "model.args.depth=1", "model.args.vocab_size=128"]
GPT += ["model.optimizer=coordcheck.jax.gpt.optimizer", "data.context=16", "data.batch=2", "widths=[32,64,128]"]


def command(directory, *overrides):
    asked = [sys.executable, "-c", COMMAND, *overrides]
    kept = {"JAX_COMPILATION_CACHE_DIR": str(directory / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.run(asked, cwd=directory, capture_output=True, text=True, timeout=280, env={**os.environ, **kept})


@pytest.mark.slow
def test_the_command_sweeps_stores_and_needs_no_torch(tmp_path):
    swept = ["first_seed=0,10", "seeds=2", "steps=2", "kinds=[activation]", "control=false", "audit=false"]
    ran = command(tmp_path, "-m", *GPT, *swept)
    assert "was imported" not in ran.stderr
    assert ran.returncode in (0, 4), ran.stderr
    assert "first_seed=0" in ran.stdout and "first_seed=10" in ran.stdout
    sweep = next(path for path in (tmp_path / "checks").iterdir() if path.name != "runs")
    assert len(list(sweep.glob("*/report.png"))) == 2
    assert len([*(tmp_path / "checks" / "runs").iterdir()]) == 12
    assert len(json.loads(next(sweep.glob("*/verdict.json")).read_text())["corpus_sha256"]) == 64


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("device=cuda", r"`device` is auto for model=flax.*JAX_PLATFORMS=cpu"),
        ("model.args.deep=3", r"`model.args` are keyword arguments of coordcheck.jax.gpt.build, after the width.*deep"),
        ("parametrization=sp", r"model=flax takes parametrization=own"),
    ],
)
def test_the_command_says_what_it_needs(override, message):
    from coordcheck.check import check_config
    from coordcheck.config.load import load

    with pytest.raises(ValueError, match=message):
        check_config(load([*GPT, override]))
