"""The plugin in a pytest of its own, on a passing and on a broken model."""

import pytest

pytest_plugins = ["pytester"]

SUITE = """
import torch
from torch import nn

torch.set_num_threads(1)

class MLP(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc_in = nn.Linear(8, width)
        self.fc = nn.Linear(width, width)
        self.head = nn.Linear(width, 4, bias=False)
        self.width = width
        nn.init.zeros_(self.head.weight)
        nn.init.normal_(self.fc.weight, std=width ** -0.5)

    def forward(self, x):
        return self.head(torch.relu(self.fc(torch.relu(self.fc_in(x)))) * (64 / self.width))

def adam(model, scaled):
    hidden = [model.fc.weight]
    others = [p for p in model.parameters() if p is not model.fc.weight]
    groups = [dict(params=hidden, lr=1e-3 * 64 / model.width if scaled else 1e-3), dict(params=others)]
    return torch.optim.Adam(groups, lr=1e-3)

def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(64, 8, generator=generator), torch.randint(0, 4, (64,), generator=generator)

def test_model(coord_check):
    coord_check(
        MLP, batch, widths=(64, 128, 256, 512), steps=4, device="cpu", optimizer=lambda m: adam(m, SCALED)
    ).assert_passes()
"""


@pytest.fixture
def suite(pytester):
    def write(scaled):
        pytester.makepyfile(test_model=SUITE.replace("SCALED", str(scaled)))
        return pytester

    return write


def test_a_correct_model_passes(suite):
    suite(True).runpytest_subprocess("-p", "no:xdist").assert_outcomes(passed=1)


def test_a_broken_model_fails_with_the_layer_the_slope_and_the_picture(suite):
    result = suite(False).runpytest_subprocess("-p", "no:xdist")
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines(
        [
            r".*FAIL: \d+ of \d+ curves are at fault. First at fault: fc.weight: its updates grow like "
            r"width\^\+.* \(expected \+0\.00\)\. Its learning rate scales like width\^\+0\.00; .* mup\.MuAdam\.",
            r".*Picture: .*report\.png",
        ]
    )
    picture = next(line for line in result.stdout.lines if line.startswith("Picture: ")).removeprefix("Picture: ")
    with open(picture, "rb") as file:
        assert file.read(4) == b"\x89PNG"


def test_a_baseline_is_written_beside_the_test_and_decides_from_then_on(suite):
    pytester = suite(True)
    pytester.runpytest_subprocess("-p", "no:xdist", "--coordcheck-update").assert_outcomes(passed=1)
    baseline = pytester.path / "coordcheck_baselines/test_model/test_model.json"
    assert baseline.is_file()
    pytester.runpytest_subprocess("-p", "no:xdist").assert_outcomes(passed=1)
    result = suite(False).runpytest_subprocess("-p", "no:xdist")
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines([r".*curves changed how they scale\. .*before.*now: changed by \+.*"])
