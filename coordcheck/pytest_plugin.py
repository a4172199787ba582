"""Coordinate checks in a test suite: the fixture ``coord_check``.

    def test_my_model_is_in_mup(coord_check):
        coord_check(build, batch, widths=(64, 128, 256)).assert_passes()

A check is held against theory, or, where one is stored, against a baseline beside the test file; ``pytest
--coordcheck-update`` writes it. Torch is imported when the fixture is used.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from coordcheck.check import CoordCheck

BASELINES = "coordcheck_baselines"


@dataclasses.dataclass(frozen=True)
class CheckedModel:
    """A check made in a test.

    Attributes:
        check: Its records, slopes, verdict and findings.
        directory: Where its files lie, the picture among them.
        baseline: Where its baseline lies, or would.
        update: Whether to write the baseline.
    """

    check: "CoordCheck"
    directory: Path
    baseline: Path
    update: bool

    def assert_passes(self) -> None:
        """Fails the test unless the check passes, and says what is at fault and where the picture is.

        Raises:
            pytest.fail.Exception: naming the first parameter at fault, its slope and what was expected, the cause and
                what to do, or the curve that changed most since the baseline.
        """
        __tracebackhide__ = True
        from coordcheck.judge.baseline import TOLERANCE, Baseline
        from coordcheck.judge.ruling import rule_by_baseline, rule_by_theory
        from coordcheck.records.files import REPORT_PICTURE

        if self.update:
            Baseline.of(self.check).write(self.baseline)
            return
        if self.baseline.is_file():
            ruling = rule_by_baseline(self.check, Baseline.read(self.baseline), TOLERANCE)
        else:
            ruling = rule_by_theory(self.check)
        if ruling.verdict != "pass":
            first = "".join(map(str, self.check.findings[:1]))
            said = ruling.sentence if first in ruling.sentence else f"{ruling.sentence}\n{first}"
            pytest.fail(f"{said}\nPicture: {self.directory / REPORT_PICTURE}", pytrace=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds ``--coordcheck-update``."""
    parser.getgroup("coordcheck").addoption(
        "--coordcheck-update",
        action="store_true",
        help="write the baselines of coordinate checks, beside their test files, instead of comparing with them",
    )


@pytest.fixture
def coord_check(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., CheckedModel]:
    """A function with the arguments of :func:`coordcheck.coord_check`, whose result has ``assert_passes()``.

    Several calls in one test are numbered; each has its own files and its own baseline.
    """
    calls = 0

    def checked(*arguments: Any, **keywords: Any) -> CheckedModel:
        nonlocal calls
        calls += 1
        from coordcheck.check import coord_check as run

        name = re.sub(r"[^\w.-]+", "-", request.node.name) + (f"-{calls}" if calls > 1 else "")
        check = run(*arguments, **keywords)
        directory = tmp_path / f"coordcheck-{name}"
        check.save(directory)
        home = request.path.parent / BASELINES / request.path.stem
        return CheckedModel(check, directory, home / f"{name}.json", request.config.getoption("--coordcheck-update"))

    return checked
