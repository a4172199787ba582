"""Records of ranks as those of one process, without torch."""

import numpy as np
import pandas as pd
import pytest

from conftest import NO_TORCH, run
from coordcheck import merge
from coordcheck.records.merge import read_records, save_run

COLUMNS = ["step", "module", "order", "role", "kind"]


def frame(rank, rows, ranks=2, width=64, seed=0, **attrs):
    """Records of entries: {(step, module, order, role, kind): array}."""
    made = [
        (width, seed, *key, np.abs(x).mean(), np.sqrt((x**2).mean()), np.abs(x).max(), (~np.isfinite(x)).sum(), x.size)
        for key, x in rows.items()
    ]
    names = ["width", "seed", *COLUMNS, "l1", "rms", "max", "nonfinite", "count"]
    result = pd.DataFrame(made, columns=names).astype({"role": "string"})
    result.attrs |= {"rank": rank, "ranks": ranks, **attrs}
    return result


def of(records, module, kind="activation"):
    return records[(records["module"] == module) & (records["kind"] == kind)].iloc[0]


def test_parts_of_unequal_size_add_up():
    x = np.random.default_rng(0).normal(size=100)
    key = (0, "fc", 0, "hidden", "activation")
    row = of(merge([frame(0, {key: x[:30]}), frame(1, {key: x[30:]})]), "fc")
    assert row["count"] == 100
    assert row["l1"] == pytest.approx(np.abs(x).mean(), rel=1e-12)
    assert row["rms"] == pytest.approx(np.sqrt((x**2).mean()), rel=1e-12)
    assert row["max"] == np.abs(x).max()


def test_what_each_rank_holds_whole_cancels_and_the_loss_is_their_mean():
    x, loss = np.array([1.0, -3.0]), (0, "(loss)", 1, "loss", "activation")
    key = (0, "fc", 0, "hidden", "activation")
    records = merge([frame(0, {key: x, loss: np.array([2.0])}), frame(1, {key: x, loss: np.array([4.0])})])
    assert of(records, "fc")[["l1", "max"]].tolist() == [2.0, 3.0]
    assert of(records, "(loss)")[["l1", "rms", "max"]].tolist() == [3.0, 3.0, 3.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_on_one_rank_is_not_finite(bad):
    key = (0, "fc", 0, "hidden", "activation")
    row = of(merge([frame(0, {key: np.array([1.0, bad])}), frame(1, {key: np.array([1.0])})]), "fc")
    assert row["nonfinite"] == 1
    for name in ("l1", "rms", "max"):
        assert not np.isfinite(row[name])


def test_stages_follow_one_another_in_forward_order():
    first = {(0, name, i, "hidden", "activation"): np.ones(2) for i, name in enumerate("ba")}
    second = {(0, name, 1_000_000 + i, "hidden", "activation"): np.ones(2) for i, name in enumerate("dc")}
    records = merge([frame(1, second, classes=7), frame(0, first)])
    assert records.set_index("module")["order"].to_dict() == {"b": 0, "a": 1, "d": 2, "c": 3}
    assert records.attrs == {"classes": 7}


def test_a_delta_that_one_rank_leaves_out_is_left_out():
    rows = {(1, name, 0, "hidden", "delta"): np.ones(2) for name in ("expert", "expert[0]", "expert2")}
    records = merge([frame(0, rows), frame(1, {(1, "fc", 0, "hidden", "delta"): np.ones(2)}, varying=["expert"])])
    assert set(records.module) == {"expert2", "fc"}


def test_runs_and_their_ranks_are_merged_at_once():
    key = (0, "fc", 0, "hidden", "activation")
    frames = [frame(rank, {key: np.full(3, width)}, width=width) for rank in (1, 0) for width in (128, 64)]
    assert merge(frames)[["width", "l1", "count"]].values.tolist() == [[64, 64.0, 6], [128, 128.0, 6]]


def test_a_missing_rank_is_told():
    key = (0, "fc", 0, "hidden", "activation")
    with pytest.raises(ValueError, match=r"width 64, seed 0 was recorded on 4 ranks, and those of \[0, 2\] are here.*"):
        merge([frame(rank, {key: np.ones(2)}, ranks=4) for rank in (0, 2)])
    with pytest.raises(ValueError, match=r"rank 1 of width 64, seed 0 is there twice. For example"):
        merge([frame(1, {key: np.ones(2)}), frame(1, {key: np.ones(2)})])
    with pytest.raises(ValueError, match=r"say 'first' of 2. For example record it anew"):
        merge([frame("first", {key: np.ones(2)})])


def test_the_report_merges_the_files_of_ranks_without_torch(tmp_path):
    rng, key = np.random.default_rng(0), (0, "fc", 0, "hidden", "activation")
    for width in (64, 128, 256):
        for seed in (0, 1):
            for rank in (0, 1):
                rows = {key: rng.normal(size=50) * (1 + rank)}
                save_run(frame(rank, rows, width=width, seed=seed), tmp_path / "mine")
    assert len(list((tmp_path / "mine" / "recorded").iterdir())) == 12
    code, out, err = run(tmp_path, "mine", entry="report", prelude=NO_TORCH)
    assert (code, err) == (4, ""), out + err
    written = pd.read_parquet(tmp_path / "mine" / "records.parquet")
    assert (written["count"] == 100).all()
    (tmp_path / "mine" / "recorded" / "width=64-seed=1-rank=1-of-2.parquet").unlink()
    code, out, err = run(tmp_path, "mine", entry="report", prelude=NO_TORCH)
    assert code != 0
    assert "recorded on 2 ranks, and those of [0] are here" in err


def test_a_run_recorded_again_by_another_number_of_ranks_takes_the_place_of_the_first(tmp_path):
    key = (0, "fc", 0, "hidden", "activation")
    for ranks in (4, 2, 1):
        for rank in range(ranks):
            of_rank = frame(rank, {key: np.ones(2)}, ranks=ranks)
            if ranks == 1:
                of_rank.attrs.clear()
            save_run(of_rank, tmp_path)
        assert read_records(tmp_path)["count"].tolist() == [2 * ranks]
