"""What a recorder remembers of a tensor ends with the pass that computed it: numbers are fresh, memory is free."""

import gc
import weakref

import pytest
import torch
from torch import nn

from conftest import row
from coordcheck.observe.recorder import Recorder


class Table(nn.Module):
    """Hands out one and the same tensor at every pass."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 4))

    def forward(self, x):
        return self.weight


@pytest.mark.parametrize("kind", ["activation", "delta"])
def test_a_tensor_that_changed_unseen_between_passes_is_measured_anew(kind):
    table = Table()
    with Recorder(table, width=4, kinds=[kind]) as recorder:
        for _ in range(3):
            table(None)
            recorder.step()
            table.weight.data += 1  # which leaves its version as it was, as fused and foreign kernels do
    sizes = [
        row(recorder.records(), "(model)", kind, step).l1 for step in ((0, 1, 2) if kind == "activation" else (1, 2))
    ]
    assert sizes == ([1, 2, 3] if kind == "activation" else [1, 2])


def test_a_gradient_that_changed_unseen_between_steps_is_measured_anew():
    model, gradient = nn.Linear(2, 2), torch.ones(3, 2)
    with Recorder(model, width=2, kinds=["gradient"]) as recorder:
        for _ in range(2):
            model(torch.ones(3, 2)).backward(gradient)
            recorder.step()
            gradient.data *= 3
    assert [row(recorder.records(), "(model)", "gradient", step).l1 for step in (0, 1)] == [1, 3]


def test_neither_outputs_nor_gradients_are_kept_after_their_pass():
    model, kept = nn.Sequential(nn.Linear(2, 2), nn.Tanh()), []
    with Recorder(model, width=2, kinds=["activation", "gradient"]) as recorder:
        output = model(torch.ones(3, 2))
        kept.append(weakref.ref(output))
        output.register_hook(lambda gradient: kept.append(weakref.ref(gradient)))
        output.sum().backward()
        del output
        recorder.step()
        gc.collect()
        assert len(kept) == 2 and [reference() for reference in kept] == [None, None]


def test_what_a_step_pools_does_not_reach_the_next():
    """Calls are counted, and compared with step 0, for each step alone."""
    model = nn.Linear(2, 2)
    x = torch.ones(3, 2)
    with Recorder(model, width=2, kinds=["activation", "delta"]) as recorder:
        for _ in range(3):
            model(x)
            model(2 * x)
            recorder.step()
            with torch.no_grad():
                model.weight += 1
    records = recorder.records()
    deltas = [row(records, "(model)", "delta", step) for step in (1, 2)]
    # the weight grew by 1 in both columns: by 2 x on ones, by 4 on twos, 3 on average, and twice that after two steps
    assert [round(float(delta.l1), 5) for delta in deltas] == [3, 6]
    assert [int(delta["count"]) for delta in deltas] == [12, 12]


def test_what_was_computed_of_one_tensor_is_not_given_for_another():
    model = nn.Sequential(nn.Linear(2, 2), nn.Hardtanh(-0.25, 0.25), nn.Identity())
    nn.init.ones_(model[0].weight), nn.init.zeros_(model[0].bias)
    with Recorder(model, width=2, kinds=["activation"]) as recorder:
        model(torch.ones(3, 2))
        recorder.step()
    assert [row(recorder.records(), name).l1 for name in ("0", "1", "2", "(model)")] == [2, 0.25, 0.25, 0.25]
