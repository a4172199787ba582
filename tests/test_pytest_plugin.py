"""The plugin in a pytest of its own, on a passing and on a broken model."""

import pandas.core.arrays.arrow.extension_types  # noqa: F401 registers with pyarrow, which can be done once in a process
import pytest

import coordcheck.check
import coordcheck.report.figures.check  # noqa: F401 a pytest inside this one forgets what it imported itself

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


# a check that is made of an exponent in the place of a model, so that tests of the plugin train nothing
CONFTEST = """
import numpy as np
import pandas as pd
import pytest
import coordcheck.check as c
from coordcheck.config.load import default_gate

def made(exponent, noise=0.001, module="fc"):
    rows = [
        dict(width=w, seed=s, step=0, module=module, order=0, role="hidden", kind="activation",
             l1=(1 + s) * w ** (exponent + noise * (s - 2)), rms=1.0, max=1.0, nonfinite=0, count=w)
        for w in (64, 128, 256, 512) for s in range(5)
    ]
    records = pd.DataFrame(rows).astype({"role": "string"})
    return c.CoordCheck.from_records(records, default_gate(), control=c.Control("a twin", [64, 128, 256], 3, True))

@pytest.fixture(autouse=True)
def made_of_exponents(monkeypatch):
    monkeypatch.setattr(c, "coord_check", made)
"""
UPDATE, ACCEPT, ALLOW = "--coordcheck-update", "--coordcheck-accept-failing", "--coordcheck-allow-inconclusive"


@pytest.fixture
def quick(pytester):
    """Runs a suite of tests, given as text, with options."""

    def suite(text, *options, **outcomes):
        pytester.makeconftest(CONFTEST)
        pytester.makepyfile(test_model=text)
        result = pytester.runpytest_inprocess("-p", "no:xdist", "-p", "no:cacheprovider", *options)
        result.assert_outcomes(**outcomes)
        return result.stdout.str()

    return suite


def passing(exponent, arguments="", **kwargs):
    made = ", ".join([str(exponent), *(f"{key}={value}" for key, value in kwargs.items())])
    return f"def test_model(coord_check):\n    coord_check({made}).assert_passes({arguments})\n"


def test_an_update_says_what_it_stored_and_refuses_a_failing_check_unless_told(quick, pytester):
    baseline = pytester.path / "coordcheck_baselines/test_model/test_model.json"
    out = quick(passing(0.4), UPDATE, failed=1)
    assert "the baseline was not written" in out and "First at fault: fc.weight" in out and ACCEPT in out
    assert "Picture: " in out and not baseline.exists()
    out = quick(passing(0.4), UPDATE, ACCEPT, passed=1)
    said = f"test_model.py::test_model: baseline of 1 curves written to {baseline}. FAIL: 1 of 1 curves is at fault."
    assert said in out and baseline.exists()
    assert f"written to {baseline}. PASS: all 1 curves" in quick(passing(0.0), UPDATE, passed=1)


def test_theory_is_heard_beside_a_baseline(quick):
    quick(passing(0.4), UPDATE, ACCEPT, passed=1)
    out = quick(passing(0.4), passed=1)
    assert "test_model.py::test_model: PASS by its baseline; Theory, without the baseline: FAIL: 1 of 1" in out
    out = quick(passing(0.8), failed=1)
    assert "FAIL: 1 of 1 curves changed how they scale. fc, activation, step 0: slope +0.400 before, +0.800 now" in out
    assert "Theory, without the baseline: FAIL: 1 of 1 curves is at fault" in out
    quick(passing(0.0), UPDATE, passed=1)
    assert "coordinate checks" not in quick(passing(0.0), passed=1)


def test_accepting_without_an_update_is_refused(pytester):
    pytester.makepyfile("def test_nothing(): pass")
    result = pytester.runpytest_inprocess(ACCEPT)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*`--coordcheck-accept-failing` says which baselines are written, so it needs*"])


def test_an_inconclusive_check_may_be_allowed_and_is_named(quick):
    undecided = {"noise": 0.1}
    assert "INCONCLUSIVE: 1 of 1 curves are undecided" in quick(passing(0.0, **undecided), failed=1)
    for out in (
        quick(passing(0.0, **undecided), ALLOW, passed=1),
        quick(passing(0.0, "allow_inconclusive=True", **undecided), passed=1),
    ):
        assert "test_model.py::test_model: allowed although undecided. INCONCLUSIVE: 1 of 1 curves" in out
    quick(passing(0.4, "allow_inconclusive=True"), ALLOW, failed=1)


def test_pictures_go_where_ci_can_upload_them(quick, pytester):
    text = passing(0.4) + "\ndef test_chdir(coord_check, monkeypatch, tmp_path):\n    monkeypatch.chdir(tmp_path)\n"
    out = quick(text + "    coord_check(0.0).assert_passes()\n", "--coordcheck-dir", "up/load", passed=1, failed=1)
    pictures = sorted((pytester.path / "up/load").glob("*/report.png"))
    assert [path.parent.name.rpartition("-")[0] for path in pictures] == [
        "test_model.py-test_chdir",
        "test_model.py-test_model",
    ]
    assert f"Picture: {pictures[1]}" in out
    assert all((path.parent / "report.md").is_file() for path in pictures)


def test_each_class_parameter_and_call_has_a_baseline_of_its_own(quick, pytester):
    """Each check is another one: any two that shared a file could not both be as in their baseline."""
    text = """
import pytest

class TestA:
    def test_model(self, coord_check):
        coord_check(0.00).assert_passes()

class TestB:
    def test_model(self, coord_check):
        coord_check(0.10).assert_passes()

@pytest.mark.parametrize("exponent", [0.2, 0.3, 0.4, 0.5, 0.6], ids=["a/b", "a-b", "a b", "A-b", "é" * 300])
def test_model(coord_check, exponent):
    coord_check(exponent).assert_passes()

def test_calls(coord_check):
    coord_check(0.7).assert_passes()
    coord_check(0.8).assert_passes()
    coord_check(0.9).assert_passes()
"""
    quick(text, UPDATE, ACCEPT, passed=8)
    names = [path.name for path in (pytester.path / "coordcheck_baselines/test_model").iterdir()]
    assert len({name.lower() for name in names}) == 10
    assert {"test_calls.json", "test_calls-2.json", "test_calls-3.json"} <= {*names}
    assert all(
        name.startswith(("TestA-test_model-", "TestB-test_model-", "test_model-", "test_calls")) for name in names
    )
    quick(text, passed=8)
    out = quick(text.replace("0.8", "0.7"), passed=7, failed=1)
    assert "slope +0.800 before, +0.700 now" in out
