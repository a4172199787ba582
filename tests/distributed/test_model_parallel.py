"""Tensor, sequence and pipeline parallelism: every rank has its part of the model."""

import modes
import pytest
from harness import differences


@pytest.fixture(scope="module")
def alone(two):
    return two(modes.one_process)[0]


@pytest.mark.parametrize("between", ["whole", "distributed"])
def test_tensor_parallelism(two, alone, between):
    assert differences(two(modes.tensor_parallel, between)[0], alone) == []


def test_sequences_that_are_split_into_plain_tensors_are_pooled(two):
    """As each rank chooses positions of what it has, they are those of one process where all positions are used."""
    short = 16
    assert differences(two(modes.tensor_parallel, "plain", short)[0], two(modes.one_process, short)[0]) == []


@pytest.mark.parametrize("per_layer", [False, True])
def test_a_mesh_of_two_dimensions(four, alone, per_layer):
    assert differences(four(modes.mesh_of_two_dimensions, per_layer)[0], alone) == []


def test_what_fsdp2_shards_may_be_replicated_too(four, alone):
    assert differences(four(modes.fsdp2, False, False, 2)[0], alone) == []


@pytest.mark.parametrize("name", ["ScheduleGPipe", "Schedule1F1B"])
def test_pipelines(two, alone, name):
    records = two(modes.pipeline, name)[0]
    hidden = records["module"] == "stages.0"  # which one process has as the output of a block
    assert set(records[hidden]["kind"]) == {"activation", "delta", "gradient"}
    assert differences(records[~hidden], alone) == []


def test_stages_with_the_same_names_are_told_apart(two):
    assert differences(two(modes.interleaved)[0], two(modes.not_interleaved)[0]) == []


def test_sequences_that_are_split_by_hand(two):
    short = 16  # of which all positions are used
    assert differences(two(modes.context_parallel, short)[0], two(modes.one_process, short)[0]) == []


def test_experts_on_different_ranks(two):
    assert differences(two(modes.mixture, 2)[0], two(modes.mixture, 1)[0]) == []
