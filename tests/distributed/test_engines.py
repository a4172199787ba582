"""Accelerate and Lightning, as their users write a loop."""

import engines
import modes
import pytest
from harness import differences


@pytest.fixture(scope="module")
def alone(two):
    return two(modes.one_process)[0]


def test_accelerate_with_accumulated_gradients(two, alone):
    pytest.importorskip("accelerate")
    assert differences(two(engines.with_accelerate)[0], alone) == []


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_callback_of_lightning(two, alone, strategy):
    pytest.importorskip("lightning")
    records = two(engines.with_lightning, strategy)[0]
    inner = records.assign(module=records["module"].str.removeprefix("model.").replace("model", "(model)"))
    assert differences(inner, alone[alone["module"] != "(loss)"]) == []
