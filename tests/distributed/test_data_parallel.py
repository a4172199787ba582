"""Data parallelism: every rank has its part of the batch, and what is recorded is what one process records of all of it."""

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
