"""A cure on several ranks: sharded training of a cured model is that of one process."""

import cured
import modes
import pytest
import torch


@pytest.fixture(scope="module")
def alone(two):
    return two(cured.train, "alone")[0]


@pytest.mark.parametrize("way", ["before", "after"])
def test_a_cure_under_fsdp2_is_that_of_one_process(two, alone, way):
    for weights in two(cured.train, way):
        assert weights.keys() == alone.keys()
        for name, weight in weights.items():
            assert torch.allclose(weight, alone[name], rtol=1e-9, atol=1e-12), name


def test_the_cure_changes_what_is_trained(two, alone):
    plain = modes.build()
    moved = {name: (alone[name] - weight.detach()).abs().max() for name, weight in plain.named_parameters()}
    assert moved["blocks.0.fc.weight"] > 0.01  # it starts at half its std
    assert moved["blocks.0.attn.proj.weight"] > 0.001
