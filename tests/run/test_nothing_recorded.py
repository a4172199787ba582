"""A check that recorded nothing but the loss is no check, and says what never ran."""

import pandas as pd
import pytest
import torch
from torch import nn

from conftest import power, synthetic
from coordcheck import CoordCheck, coord_check

XY = torch.randn(16, 8), torch.randint(0, 4, (16,))


class Blocks(nn.Module):
    """Whose blocks stand in a ModuleList, which no forward pass calls."""

    def __init__(self, width):
        super().__init__()
        self.wte = nn.Linear(8, width)
        self.blocks = nn.ModuleList([nn.Linear(width, width)])
        self.act = nn.ReLU()
        self.spare = nn.Linear(width, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.act(self.blocks[0](self.wte(x))))


def check(**options):
    return coord_check(
        Blocks, XY, widths=(8, 16, 32), seeds=1, device="cpu", control=False, audit=False, **{"steps": 2, **options}
    )


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("kinds", [["activation"], ["delta", "effective_update"], ["gradient"]])
@pytest.mark.parametrize("modules", [["blocks"], ["head", "blocks"]])
def test_a_module_list_never_runs_and_is_named(tmp_path, modules, kinds, store):
    with pytest.raises(
        ValueError, match=r"got 'blocks', of which blocks never ran. For example modules=\['blocks.\*'\]"
    ):
        check(modules=modules, kinds=kinds, store=tmp_path / "runs" if store else None)
    assert not list(tmp_path.glob("runs/*"))
    assert {*check(modules=["blocks.*"], kinds=kinds).slopes["module"]} >= {"blocks.0"}


def test_a_layer_that_is_never_called_is_named():
    with pytest.raises(ValueError, match=r"got 'spar\*', of which spare never ran. For example modules=\['\*'\]"):
        check(modules=["spar*"])
    assert "spare" not in {*check(modules=["*"]).slopes["module"]}  # beside others that run it is no fault


def test_kinds_of_which_there_is_nothing_are_an_error():
    with pytest.raises(ValueError, match=r"nothing was recorded but the loss: .* select act and effective_update"):
        check(modules=["act"], kinds=["effective_update"])


def test_stored_records_of_the_loss_alone_are_refused(tmp_path, gate):
    records = synthetic({("(loss)", "activation", s): power(-0.1) for s in (0, 1)}, role="loss")
    records.to_parquet(tmp_path / "records.parquet")
    with pytest.raises(ValueError, match=r"hold nothing but the loss, so there is no curve to judge. For example"):
        CoordCheck.load(tmp_path)
    more = pd.concat([records, synthetic({("fc", "activation", 0): power(0.0)}).assign(role=pd.NA)])
    assert len(CoordCheck.from_records(more.astype({"role": "string"}), gate).slopes) == 3
