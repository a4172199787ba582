"""mup's own recorder read, and its own plot fed."""

import mup.coord_check
import pandas as pd
import pytest
import torch

from conftest import plan_of, tiny_cell
from coordcheck import CoordCheck, coord_check
from coordcheck.records.mup_format import read_mup, to_mup
from coordcheck.run.queue import RunQueue

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def theirs():
    """What mup records of our GPT in standard parametrization, two seeds."""
    cell = tiny_cell("parametrization=sp", "readout=constant", "optimizer.lr=0.01")
    inputs, targets = cell.batch(0, CPU)
    seeds = iter(range(100))
    return mup.coord_check._get_coord_data(
        {width: lambda width=width: cell.build(width, next(seeds), CPU) for width in (64, 128, 256)},
        [(inputs, targets.flatten())],
        lambda model: cell.optimizer(model, 0),
        nsteps=3,
        nseeds=2,
        flatten_output=True,
        cuda=False,
        show_progress=False,
        output_fdict={"l1": "l1", "l2": "l2"},
    )


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_mups_own_frame_is_read_and_judged(theirs, tmp_path, gate, suffix):
    path = tmp_path / f"coords.{suffix}"
    theirs.to_csv(path) if suffix == "csv" else theirs.to_parquet(path)
    records = read_mup(path)
    assert sorted(records["seed"].unique()) == [0, 1]
    assert sorted(records["step"].unique()) == [0, 1, 2]
    assert records["l1"].to_numpy() == pytest.approx(theirs["l1"].to_numpy())
    roles = records.drop_duplicates("module").set_index("module")["role"]
    assert set(roles[roles == "readout"].index) == {"lm_head", "(model)"}
    check = CoordCheck.from_records(records, gate)
    assert check.verdict == "fail"
    logits = check.slopes.query("module == 'lm_head' and step == 0")["slope"].item()
    assert logits == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("root", [True, False])
def test_a_module_that_runs_twice_in_a_pass_has_no_more_seeds_than_the_model(tmp_path, root):
    """mup's own recorder, of a model whose activation function is one module that runs after both layers."""
    net = torch.nn.Sequential

    def build(width):
        act = torch.nn.Tanh()
        return net(torch.nn.Linear(8, width), act, torch.nn.Linear(width, width), act, torch.nn.Linear(width, 4))

    batch = (torch.randn(16, 8), torch.randint(0, 4, (16,)))
    frame = mup.coord_check._get_coord_data(
        {width: lambda width=width: build(width) for width in (8, 16, 32)},
        [batch],
        lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        nsteps=2,
        nseeds=3,
        cuda=False,
        show_progress=False,
        output_fdict={"l1": "l1", "l2": "l2"},
    )
    twice = frame.query("width == 16 and module == '1' and t == 2")
    assert len(twice) == 6
    (frame if root else frame[frame["module"] != ""]).to_csv(tmp_path / "coords.csv")
    records = read_mup(tmp_path / "coords.csv")
    assert sorted(records["seed"].unique()) == [0, 1, 2]
    pooled = records.query("width == 16 and module == '1' and step == 1").sort_values("seed")
    assert pooled["l1"].to_numpy() == pytest.approx(twice["l1"].to_numpy().reshape(3, 2).mean(axis=1))
    squares = twice["l2"].to_numpy().reshape(3, 2) ** 2
    assert pooled["rms"].to_numpy() == pytest.approx(squares.mean(axis=1) ** 0.5)


def test_there_and_back_again(theirs, tmp_path, gate):
    theirs.to_csv(tmp_path / "coords.csv", index=False)
    back = CoordCheck.from_records(read_mup(tmp_path / "coords.csv"), gate).to_mup()
    by = ["width", "module", "t", "l1"]
    pd.testing.assert_frame_equal(
        back[[*by, "l2"]].sort_values(by, ignore_index=True),
        theirs[[*by, "l2"]].sort_values(by, ignore_index=True),
        check_dtype=False,
    )


def test_only_what_mup_records_is_written(tmp_path, gate):
    """Attention logits, of which mup knows nothing, would come back as a hidden layer that must not shrink."""
    records = RunQueue(cell := tiny_cell(), plan_of(cell.config), [64, 128, 256], [0]).finish().records
    assert "attention_logits" in set(records["role"])
    written = to_mup(records)
    assert not written["module"].str.contains(r"[\[(]").any()
    assert set(written["module"]) == {name for name, _ in cell.on_meta(64).named_modules() if name != "blocks"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_mups_own_plot_takes_what_we_give(tmp_path):
    import matplotlib.pyplot as plt

    x, y = torch.randn(16, 8), torch.randint(0, 4, (16,))

    def build(width):
        return torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.ReLU(), torch.nn.Linear(width, 4))

    check = coord_check(build, (x, y), widths=(8, 16, 32), seeds=2, steps=2, device="cpu")
    with plt.rc_context({"backend": "agg"}):
        mup.coord_check.plot_coord_data(check.to_mup(), save_to=str(tmp_path / "mup.png"), legend=False)
        plt.close("all")
    assert (tmp_path / "mup.png").stat().st_size > 5000


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "other.csv").write_text("width,layer\n64,fc\n")
    with pytest.raises(ValueError, match=r"rows with the columns.*lacks \['module', 't', 'l1'\]"):
        read_mup(tmp_path / "other.csv")
    with pytest.raises(ValueError, match=r"missing.csv cannot be read \(No such file"):
        read_mup(tmp_path / "missing.csv")
