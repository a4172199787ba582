"""Data parallelism: every rank has its part of the batch, and the records are those of one process and all of it."""

import modes
import pytest
from harness import differences


@pytest.fixture(scope="module")
def alone(two):
    return two(modes.one_process)[0]


def test_ddp(two, alone):
    frames = two(modes.ddp)
    assert frames[0].equals(frames[1])
    assert differences(frames[0], alone) == []


def test_ddp_with_micro_batches_that_are_not_reduced(two, alone):
    assert differences(two(modes.ddp_micro_batches)[0], alone) == []


def test_ddp_whose_inside_is_recorded(two, alone):
    assert differences(two(modes.ddp_of_which_the_recorder_has_the_inside)[0], alone) == []


@pytest.mark.parametrize("use_orig_params", [True, False])
def test_fsdp1(two, alone, use_orig_params):
    assert differences(two(modes.fsdp1, use_orig_params)[0], alone) == []


def test_fsdp1_of_a_layer_that_runs_twice(two):
    assert differences(two(modes.fsdp1, False, True)[0], two(modes.one_process, modes.LENGTH, True)[0]) == []


@pytest.mark.parametrize("per_layer", [False, True])
def test_fsdp2(two, alone, per_layer):
    assert differences(two(modes.fsdp2, per_layer)[0], alone) == []


def test_fsdp2_with_checkpointed_and_compiled_blocks(two, alone):
    assert differences(two(modes.fsdp2, False, True)[0], alone) == []


def test_classes_are_known_where_no_rank_may_have_split_them(two):
    assert two(modes.ddp)[0].attrs["classes"] == two(modes.fsdp2, True)[0].attrs["classes"] == modes.VOCABULARY
