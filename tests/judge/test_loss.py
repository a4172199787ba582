"""The initial loss: ln V with logits of zero, and what a readout whose std ignores the width makes of it."""

import dataclasses
import math

import pandas as pd
import pytest
import torch

from conftest import plan_of, power, synthetic, tiny_cell, tiny_config
from coordcheck import CoordCheck
from coordcheck.check import check_config
from coordcheck.judge.loss import InitialLoss
from coordcheck.report.markdown import check_markdown
from coordcheck.run.train import run

CPU = torch.device("cpu")


def test_a_zero_readout_starts_at_ln_v_and_its_loss_is_recorded_at_every_step():
    cell = tiny_cell()
    model = cell.build(64, 0, CPU)
    batch = cell.batch(0, CPU)
    records = run(
        *(model, cell.optimizer(model, 64), batch, cell.loss, plan_of(cell.config)), width=64, seed=0, roles=cell.roles
    )
    loss = records[records.role == "loss"].set_index("step")
    assert loss["module"].unique().tolist() == ["(loss)"]
    assert loss["kind"].unique().tolist() == ["activation"]
    assert loss["l1"][0] == pytest.approx(math.log(256), rel=1e-6)
    assert loss["l1"][3] == pytest.approx(cell.loss(model, batch).item(), rel=1e-6)
    assert loss["rms"].to_numpy() == pytest.approx(loss["l1"].to_numpy(), rel=1e-6)
    assert str(InitialLoss.of(records)) == "Initial loss: 5.55 (narrowest) to 5.55 (widest), ln V = 5.55."


def checked(tmp_path, *overrides):
    return check_config(tiny_config(f"runs={tmp_path}", "plots=null", *overrides))


def test_a_readout_whose_std_ignores_the_width_is_named_with_what_it_does_to_the_loss(tmp_path):
    check = checked(tmp_path, "parametrization=sp", "gate.expect=sp", "readout=constant", "readout.std=1", "steps=1")
    (finding,) = (finding for finding in check.findings if finding.module == "lm_head")
    widest = InitialLoss.of(check.records).widest
    said = f"Initial loss {widest:.1f} where ln V = 5.5: the readout's std does not shrink with width."
    assert check.verdict == "fail"
    assert finding.fault == "init" and finding.cause.endswith(said)
    assert f"to {widest:.2f} (widest), ln V = 5.55." in check_markdown(check)
    check.save(tmp_path / "check")
    assert CoordCheck.load(tmp_path / "check").findings == check.findings


def test_without_the_audit_the_readouts_logits_are_what_is_known(tmp_path):
    small = ["parametrization=sp", "gate.expect=sp", "readout=constant", "readout.std=1", "steps=1", "audit=false"]
    (finding,) = (finding for finding in checked(tmp_path, *small).findings if finding.module == "lm_head")
    assert "where ln V = 5.5: the readout's logits grow with width." in finding.cause


@pytest.mark.parametrize(
    "overrides", [["parametrization=sp", "gate.expect=sp", "readout=fan_in"], ["readout=constant", "readout.std=1"]]
)
def test_the_loss_of_a_correct_model_passes(tmp_path, overrides):
    check = checked(tmp_path, *overrides)
    assert set(check.slopes[check.slopes.role == "loss"]["verdict"]) == {"pass"}


def test_a_loss_that_grows_although_the_logits_do_not_is_not_explained(gate):
    loss = synthetic({("(loss)", "activation", 0): power(0.7)}, role="loss")
    head = synthetic({("head", "activation", 0): power(0.0, 0.01)}, role="readout")
    records = pd.concat([loss, head], ignore_index=True)
    records.attrs["classes"] = 10
    check = CoordCheck.from_records(records, dataclasses.replace(gate, expect="sp"))
    (finding,) = check.findings
    assert (finding.module, finding.fault) == ("(loss)", "unexplained")
    assert "where ln V = 2.3, although the readout's logits keep their size" in finding.cause


def test_records_without_a_loss_have_none(gate):
    check = CoordCheck.from_records(synthetic({("fc", "activation", 0): power(0.0)}), gate)
    assert InitialLoss.of(check.records) is None
    assert "Initial loss" not in check_markdown(check)


def test_a_loss_that_is_no_cross_entropy_fails_nothing(gate):
    loss = synthetic({("(loss)", "activation", step): power(0.7) for step in (0, 1)}, role="loss")
    rest = synthetic({("fc", "activation", 0): power(0.0)})
    check = CoordCheck.from_records(pd.concat([loss, rest], ignore_index=True), gate)
    assert (check.findings, check.verdict) == ([], "pass")
    assert "ln V" not in str(InitialLoss.of(check.records))
    assert {*check.to_mup()["module"]} == {"fc"}
