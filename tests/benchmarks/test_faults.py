"""The benchmark of planted faults, on a handful of them end to end."""

import faults
import pytest

from coordcheck.judge.diagnose.evidence import FAULT_CLASSES


def test_there_are_enough_cases_and_each_has_its_class():
    planted, right = list(faults.faulty(64)), list(faults.correct(64))
    assert len(planted) >= 30 and len(right) >= 15
    assert {case.cause for case in planted} == {*FAULT_CLASSES} - {"unexplained"}
    assert len(faults.cases(64)) == len({case.name for case in faults.cases(64).values()})
    assert faults.cases(64).keys() == faults.cases(128).keys()


@pytest.mark.parametrize(
    "name",
    [
        "one k's init std constant",
        "last layer's rate width^-1/2",
        "scheduler overwrites the rates",
        "1/sqrt(head size) with growing heads",
        "residual stream times sqrt(width)",
        "one layer without gradient",
        "shared readout rescaled",
        "warmup: learning rate 1e-9",
        "batch shrinks with width",
    ],
)
def test_a_planted_fault_is_named_with_its_place_and_cause(name):
    case = faults.cases(64)[name]
    check = faults.check_case(case, range(20, 23))
    assert check.verdict == ("inconclusive" if case.cause in ("gentle", "harness") else "fail")
    assert check.findings[0].fault == case.cause
    assert check.findings[0].module.partition("[")[0] in case.places


@pytest.mark.parametrize("name", ["GPT, logits divided by width after the readout", "GPT, activation checkpointing"])
def test_a_correct_model_has_no_fault(name):
    check = faults.check_case(faults.cases(64)[name], range(20, 23))
    assert not [finding for finding in check.findings if finding.fault]
    assert check.verdict != "fail"
