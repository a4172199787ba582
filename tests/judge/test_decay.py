"""What only weight decay moves, because no gradient has come there yet, owes no size."""

import pytest
import torch
from torch import nn

import coordcheck

WIDTHS = (32, 64, 128)


class Branch(nn.Module):
    """A frozen matrix and a trained product of two beside it, the second zero: LoRA."""

    def __init__(self, width):
        super().__init__()
        self.base, self.a, self.b = (nn.Linear(a, b, bias=False) for a, b in ((width, width), (width, 4), (4, width)))
        for layer in (self.base, self.a):
            nn.init.normal_(layer.weight, std=width**-0.5)
        nn.init.zeros_(self.b.weight)
        self.base.weight.requires_grad_(False)

    def forward(self, x):
        return self.base(x) + self.b(self.a(x))


def build(middle, readout_std):
    def of(width):
        model = nn.Sequential(nn.Embedding(32, width), middle(width), nn.Tanh(), nn.Linear(width, 32, bias=False))
        nn.init.normal_(model[-1].weight, std=readout_std / width)
        return model

    return of


def linear(width):
    layer = nn.Linear(width, width, bias=False)
    nn.init.normal_(layer.weight, std=width**-0.5)
    return layer


def adamw(decay, shrinks=-1.0):
    """AdamW with the rates of muP, but for width^shrinks at the matrix in the middle."""

    def of(model):
        width = model[0].embedding_dim
        names = ("0.weight", "1.b.weight"), ("3.weight", "1.a.weight"), ("1.weight",)
        groups = [[p for n, p in model.named_parameters() if n in part] for part in names]
        rates = (1.0, WIDTHS[0] / width, (width / WIDTHS[0]) ** shrinks)
        known = [{"params": p, "lr": 1e-2 * rate} for p, rate in zip(groups, rates, strict=True) if p]
        return torch.optim.AdamW(known, eps=1e-12, weight_decay=decay)

    return of


def batch(seed):
    tokens = torch.randint(32, (8, 17), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def check(middle, optimizer, readout_std=1.0):
    return coordcheck.coord_check(
        build(middle, readout_std), batch, WIDTHS, seeds=3, optimizer=optimizer, control=None, device="cpu"
    )


@pytest.mark.parametrize(("middle", "place", "readout"), [(linear, "1", 0.0), (Branch, "1.a", 1.0)])
def test_decay_alone_does_not_fail_a_correct_model(middle, place, readout):
    result = check(middle, adamw(0.1), readout)
    moved = result.slopes.query("module == @place and kind == 'effective_update'").set_index("step")
    assert moved["slope"][1] == pytest.approx(-1.0, abs=0.1)  # it does shrink, and is no fault
    assert moved["expected_low"][1] == -float("inf") and "only weight decay" in moved["source"][1]
    assert (moved["expected_low"][[2, 3]] == 0).all()
    assert result.verdict != "fail", result


def test_without_decay_all_that_moves_owes_a_size():
    slopes = check(linear, adamw(0.0), 0.0).slopes
    assert (slopes[slopes["role"] == "hidden"]["expected_low"] == 0).all()


def test_what_the_gradient_moves_owes_its_size_under_decay_too():
    """A rate that shrinks too fast shows at every step: not the decay makes it so."""
    result = check(linear, adamw(0.1, shrinks=-2.0), 0.0)
    assert (result.verdict, result.findings[0].parameter) == ("fail", "1.weight")
    assert result.findings[0].fault == "learning_rate"
    curves = result.slopes.query("module == '1' and kind == 'effective_update'").set_index("step")
    assert (curves["verdict"][[2, 3]] == "vanishes").all()
