"""Runs that recorders saved side by side, as one frame."""

import pandas as pd
import pytest
import torch
from torch import nn

from conftest import NO_TORCH, run
from coordcheck import CoordCheck, Recorder
from coordcheck.records.merge import find_checks, merge, read_records

WIDTHS = (16, 32, 64)


def trained(width, seed, directory=None):
    """Records of a short loop; saved where a directory is given."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Recorder(model, width=width, seed=seed) as recorder:
        for _ in range(3):
            model(torch.randn(16, 8)).square().mean().backward()
            optimizer.step()
            recorder.step()
    if directory is not None:
        recorder.save(directory)
    return recorder.records()


@pytest.fixture
def saved(tmp_path):
    frames = [trained(width, seed, tmp_path / "mine") for seed in (1, 0) for width in WIDTHS]
    return tmp_path / "mine", frames


def test_saved_runs_are_read_as_one_frame_in_order(saved):
    directory, frames = saved
    records = read_records(directory)
    expected = pd.concat(frames).sort_values(["width", "seed"], kind="stable", ignore_index=True)
    pd.testing.assert_frame_equal(records, expected, check_exact=True)
    assert records[["width", "seed"]].drop_duplicates().to_numpy().tolist() == [[w, s] for w in WIDTHS for s in (0, 1)]


def test_the_report_reads_what_recorders_saved_and_what_is_added_later(saved, tmp_path):
    directory, _ = saved
    assert find_checks([tmp_path]) == [directory]
    code, out, err = run(tmp_path, "mine", "--expect", "sp", entry="report", prelude=NO_TORCH)
    assert (code in (0, 3, 4) and err == "" and "that sp expects" in out) or "2 seeds" in out
    assert CoordCheck.load(directory).gate.expect == "sp"
    for width in WIDTHS:
        trained(width, 2, directory)
    assert CoordCheck.load(directory).records["seed"].nunique() == 3


def test_what_another_process_has_not_finished_is_left_out(saved):
    directory, frames = saved
    (directory / "recorded" / ".coordcheck-0123.parquet").write_bytes(b"PAR1 half")
    assert len(read_records(directory)) == sum(map(len, frames))


def test_a_run_recorded_again_takes_the_place_of_the_first(saved):
    directory, _ = saved
    trained(16, 0, directory)
    assert len(list((directory / "recorded").iterdir())) == 6


def test_the_same_run_in_two_frames_is_refused(saved):
    _, frames = saved
    with pytest.raises(
        ValueError, match=r"each run may be there once; .* \[\[16, 1\]\]. For example give each process"
    ):
        merge([*frames, frames[0]])


def test_several_widths_have_one_number_of_classes(saved):
    _, frames = saved
    for frame, classes in zip(frames, [4, 4, 4, 4, 4, 4], strict=True):
        frame.attrs["classes"] = classes
    assert merge(frames).attrs == {"classes": 4}
    frames[0].attrs["classes"] = 5
    assert merge(frames).attrs == {}


def test_nothing_recorded_cannot_be_saved(tmp_path):
    recorder = Recorder(nn.Linear(2, 2), width=2)
    with pytest.raises(ValueError, match=r"these records hold 0. For example train a step"):
        recorder.save(tmp_path)
