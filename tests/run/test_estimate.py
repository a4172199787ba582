"""What a sweep will cost: operations and memory counted by hand, times from made-up measurements."""

import pytest
import torch
from torch import nn

from coordcheck.config.load import load
from coordcheck.models.families import make_cell
from coordcheck.models.own import OwnCell
from coordcheck.run import estimate
from coordcheck.run.estimate import Dryrun, Estimate, dry_run, makespan, memory_of_run, seconds_by_width, useful_workers

CPU = torch.device("cpu")


class Runnable(OwnCell):
    def runnable_on_meta(self, width):
        return self.on_meta(width)


def test_operations_and_bytes_are_those_counted_by_hand():
    def build(width):
        return nn.Sequential(nn.Linear(8, width, bias=False), nn.ReLU(), nn.Linear(width, 4, bias=False))

    batch = torch.randn(16, 8), torch.randint(0, 4, (16,))
    cell = Runnable(build, batch, lambda model: torch.optim.Adam(model.parameters()), None, (32, 64))
    dry = dry_run(cell, 32, 0)
    assert dry.flops == 2 * 16 * (8 * 32 + 32 * 4)
    assert dry.parameters == 4 * (8 * 32 + 32 * 4)
    floats = 16 * 8 + 16 * 32 + 16 * 4  # the input, what ReLU gives, log probabilities; targets are int64
    assert 0 <= dry.activations - 4 * floats - 8 * 16 <= 16  # the number of targets


@pytest.mark.parametrize("overrides", [[], ["model=t5"], ["experiment=attention_qkv_init"], ["embedding=tied"]])
def test_every_family_has_its_operations_counted(overrides):
    """Mostly products of 512 rows with each matrix."""
    cell = make_cell(load(overrides))
    matrices = sum(p.numel() for p in cell.on_meta(512).parameters() if p.dim() == 2)
    dry = dry_run(cell, 512, 0)
    assert dry.parameters == 4 * sum(p.numel() for p in cell.on_meta(512).parameters())
    assert 2 * 100 * matrices < dry.flops < 2 * 1000 * matrices
    assert dry.activations > 4 * 512 * 512 * 20


def test_a_model_that_needs_values_is_taken_by_its_parameters():
    class Choosing(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    cell = Runnable(
        lambda width: nn.Sequential(Choosing(8, width)),
        (torch.randn(2, 8), torch.randint(0, 4, (2,))),
        lambda model: torch.optim.Adam(model.parameters()),
        None,
        (32, 64),
    )
    assert dry_run(cell, 32, 0) == Dryrun(4 * 9 * 32, 4 * 9 * 32, 0)


def test_a_forward_pass_of_a_user_is_not_run_without_memory():
    tables = {}

    class Positions(nn.Linear):
        def forward(self, x):
            return super().forward(x) + tables.setdefault(self.out_features, torch.zeros(1, device=x.device))

    cell = OwnCell(
        lambda width: Positions(8, width),
        (torch.randn(2, 8), torch.randint(0, 4, (2,))),
        lambda model: torch.optim.Adam(model.parameters()),
        None,
        (32, 64),
    )
    assert dry_run(cell, 32, 0) == Dryrun(4 * 9 * 32, 4 * 9 * 32, 0)
    assert not tables


def test_time_is_a_fixed_part_and_one_in_proportion_to_operations(monkeypatch):
    dry = {width: Dryrun(width**2, 0, 0) for width in (64, 128, 1024)}
    monkeypatch.setattr(estimate, "matmul_flops_per_second", lambda _: 1e30)
    seconds = seconds_by_width(dry, {64: 1 + 64**2, 128: 1 + 128**2}, 4, CPU)
    assert seconds == pytest.approx({width: 1 + width**2 for width in dry})
    # on a device whose narrow runs take the same time, the rate of one large product is the bound
    monkeypatch.setattr(estimate, "matmul_flops_per_second", lambda _: 10.0)
    seconds = seconds_by_width(dry, {64: 1.0, 128: 1.0}, 4, CPU)
    assert seconds[1024] == pytest.approx(1 + (3 * 4 - 2) * (1024**2 - 64**2) / 10)
    assert seconds_by_width(dry, {64: 2.0}, 4, CPU)[64] == 2.0


def test_memory_is_weights_state_and_gradients_or_activations():
    assert memory_of_run(Dryrun(0, 100, 30), state=2) == 400
    assert memory_of_run(Dryrun(0, 100, 300), state=2) == 600
    assert memory_of_run(Dryrun(0, 100, 300), state=0) == 400


def test_the_longest_run_is_a_bound():
    assert makespan([4, 1, 1], 2) == 4
    assert makespan([4, 4, 4], 2) == 6
    assert makespan([], 2) == 0


def test_the_words():
    said = str(Estimate(840, 33, 1, int(3.2 * 2**30), 80 * 2**30, "NVIDIA H100"))
    assert said == "about 14 min for 33 runs on NVIDIA H100; the widest needs about 3.2 of 80 GiB"
    assert str(Estimate(25.2, 34, 4, 2**30, 24 * 2**30, "cpu")).startswith("about 25 s for 34 runs on cpu, 4 at a time")


@pytest.mark.parametrize(
    ("seconds", "workers"), [([0.1] * 36, 1), ([0.1] * 12 + [0.2] * 12 + [0.6] * 12, 2), ([0.1, 0.3, 1.0, 4.0], 10)]
)
def test_runs_of_short_operations_do_not_go_on_many_at_a_time(seconds, workers):
    assert useful_workers(seconds, 0.1) == workers
    assert useful_workers([], 0.1) == 1
