"""Accelerate, Lightning and the Trainer of transformers, as their users write a loop."""

import engines
import modes
import pytest
from harness import differences

from coordcheck.records.merge import read_records


@pytest.fixture(scope="module")
def alone(two):
    return two(modes.one_process)[0]


def test_accelerate_with_accumulated_gradients(two, alone):
    pytest.importorskip("accelerate")
    assert differences(two(engines.with_accelerate)[0], alone) == []


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_callback_for_lightning(two, alone, strategy, tmp_path):
    pytest.importorskip("lightning")
    two(engines.with_lightning, strategy, str(tmp_path))
    assert len([*(tmp_path / "recorded").iterdir()]) == 2  # a file for each rank
    records = read_records(tmp_path)
    inner = records.assign(module=records["module"].str.removeprefix("model.").replace("model", "(model)"))
    assert differences(inner, alone) == []


def test_the_callback_for_transformers(two, alone, tmp_path):
    pytest.importorskip("transformers")
    two(engines.with_transformers, str(tmp_path))
    records = read_records(tmp_path)
    records = records[records["module"] != "(model)"]  # what has the loss
    inner = records.assign(module=records["module"].str.removeprefix("model.").replace("model", "(model)"))
    expected = alone[alone["kind"].isin(engines.SHUFFLED) & (alone["module"] != "(loss)")]
    assert differences(inner, expected) == []
