"""What has no room is known before it has memory, and long preparations are not silent."""

import time

import pytest
import torch

from conftest import tiny_cell
from coordcheck.config.load import load
from coordcheck.models.families import make_cell
from coordcheck.run import estimate
from coordcheck.run.estimate import GIB, fitting, least_memory, not_silent

CPU = torch.device("cpu")


def test_a_width_without_room_is_skipped_and_said(monkeypatch):
    monkeypatch.setattr(estimate, "available_memory", lambda device: 2 * GIB)
    sizes = {8: 1, 16: GIB, 32: 2 * GIB, 64: 3 * GIB}
    assert fitting(sizes.__getitem__, [64, 8, 32, 16], CPU) == (
        [8, 32, 16],
        ["width 64 skipped: it needs at least 3.0 of 2.0 GiB of cpu's memory"],
    )


def test_a_wider_one_is_not_looked_at_where_a_narrower_has_no_room(monkeypatch):
    monkeypatch.setattr(estimate, "available_memory", lambda device: GIB)
    looked = []
    with pytest.raises(
        ValueError, match=r"`widths` needs at least 3 that fit into memory; .*width 8 needs at least 2.0"
    ):
        fitting(lambda width: looked.append(width) or 2 * GIB, [8, 16, 32], CPU)
    assert looked == [8]


@pytest.mark.parametrize("overrides", [["model.depth=7"], ["model=t5", "model.encoder_depth=5", "readout=constant"]])
def test_the_weights_of_a_deep_model_are_counted_without_building_it(overrides):
    cell = make_cell(load(overrides))
    counted = cell.weight_bytes(64)
    assert counted == sum(parameter.nbytes for parameter in cell.on_meta(64).parameters())
    assert counted < least_memory(cell, 64, 0)


def test_the_weights_of_a_hundred_thousand_blocks_are_counted_in_a_second():
    start = time.process_time()
    assert tiny_cell("model.depth=100000").weight_bytes(64) > 15 * GIB
    assert time.process_time() - start < 2


def test_a_long_preparation_is_said_once_and_a_short_one_not(monkeypatch, capsys):
    with not_silent([8, 16, 32]) as begun:
        begun()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(estimate, "LONG", 0.0)
    with not_silent([8, 16, 32]):
        deadline = time.monotonic() + 10
        said = ""
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
            said = capsys.readouterr().err
    assert said.startswith("preparing has taken 0 s so far: models of the narrowest of widths [8, 16, 32]")
