"""What ranks say of themselves, gather and save, and what is refused of them."""

import modes
import pandas as pd

from coordcheck.records.merge import read_records


def test_lost_roles_are_told(two):
    (said,) = two(modes.without_roles)[0]
    assert "no parameter has a role" in said
    assert "roles = coordcheck.roles(build); Recorder(model, width=512, roles=roles)" in said


def test_the_inside_of_what_fsdp1_wraps_is_refused(two):
    assert "it does not know the inside of a model that FSDP1 wraps" in two(modes.inside_of_fsdp1)[0]


def test_norms_of_weights_are_refused_on_several_ranks(two):
    assert "`kinds` ['weight'] are recorded in one process" in two(modes.weights_of_ranks)[0]


def test_what_ranks_save_is_what_they_gather(two, tmp_path):
    gathered = two(modes.saved, str(tmp_path))[0]
    files = sorted(path.name for path in (tmp_path / "recorded").iterdir())
    assert files == [f"width=128-seed=0-rank={rank}-of-2.parquet" for rank in (0, 1)]
    pd.testing.assert_frame_equal(read_records(tmp_path), gathered, check_exact=True)


def test_a_group_is_the_ranks_that_trained_together(two):
    entries = modes.BATCH * modes.LENGTH * modes.WIDTH
    assert two(modes.of_groups) == [(entries, entries // 2)] * 2
