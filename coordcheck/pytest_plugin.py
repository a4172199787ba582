"""Coordinate checks in a test suite: the fixture ``coord_check``.

    def test_my_model_is_in_mup(coord_check):
        coord_check(build, batch, widths=(64, 128, 256)).assert_passes()

A check is held against theory, or, where one is stored, against a baseline beside the test file; ``pytest
--coordcheck-update`` writes it. Torch is imported when the fixture is used.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from coordcheck.judge.ruling import Ruling
    from coordcheck.result import CoordCheck

BASELINES = "coordcheck_baselines"
SAID = "coordcheck"  # the user property under which a test's report carries what the summary says


@dataclasses.dataclass(frozen=True)
class CheckedModel:
    """A check made in a test.

    Attributes:
        check: Its records, slopes, verdict and findings.
        directory: Where its files lie, the picture among them.
        baseline: Where its baseline lies, or would.
        update: Whether to write the baseline.
        accept_failing: Whether to write that of a failing check too.
        allow_inconclusive: Whether an inconclusive check passes.
        say: Takes a sentence for the summary at the end of the test run.
    """

    check: "CoordCheck"
    directory: Path
    baseline: Path
    update: bool
    accept_failing: bool
    allow_inconclusive: bool
    say: Callable[[str], None]

    def assert_passes(self, allow_inconclusive: bool = False) -> None:
        """Fails the test unless the check passes, and says what is at fault and where the picture is.

        Args:
            allow_inconclusive: Whether a check that is undecided passes, with a sentence in the summary.

        Raises:
            pytest.fail.Exception: naming the first parameter at fault, its slope and what was expected, the cause and
                what to do, or the curve that changed most since the baseline.
        """
        __tracebackhide__ = True
        from coordcheck.judge.baseline import TOLERANCE, Baseline
        from coordcheck.judge.ruling import rule_by_baseline, rule_by_theory

        if self.update:
            self._update()
            return
        if self.baseline.is_file():
            ruling = rule_by_baseline(self.check, Baseline.read(self.baseline), TOLERANCE)
            if self.check.verdict != "pass":
                self.say(f"{ruling.verdict.upper()} by its baseline; {ruling.theory}")
        else:
            ruling = rule_by_theory(self.check)
        if ruling.verdict == "inconclusive" and (allow_inconclusive or self.allow_inconclusive):
            self.say(f"allowed although undecided. {ruling.sentence}")
        elif ruling.verdict != "pass":
            pytest.fail(self._describe(ruling), pytrace=False)

    def _update(self) -> None:
        """Stores the baseline, unless the check fails and nobody accepted that."""
        __tracebackhide__ = True
        from coordcheck.judge.baseline import Baseline, refuse_failing

        try:
            refuse_failing(self.check, self.accept_failing, "--coordcheck-accept-failing")
        except ValueError as error:
            pytest.fail(f"{error}{self._picture()}", pytrace=False)
        baseline = Baseline.of(self.check)
        baseline.write(self.baseline)
        self.say(f"baseline of {len(baseline.curves)} curves written to {self.baseline}. {self.check.sentence()}")

    def _describe(self, ruling: "Ruling") -> str:
        first = "".join(map(str, self.check.findings[:1]))
        sentences = [ruling.sentence, *([ruling.theory] if ruling.theory else [])]
        if not any(first in sentence for sentence in sentences):
            sentences.append(first)
        return "\n".join(sentences) + self._picture()

    def _picture(self) -> str:
        from coordcheck.records.files import REPORT_PICTURE

        return f"\nPicture: {self.directory / REPORT_PICTURE}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options of coordinate checks."""
    group = parser.getgroup("coordcheck")
    group.addoption(
        "--coordcheck-update",
        action="store_true",
        help="write the baselines of coordinate checks, beside their test files, instead of comparing with them",
    )
    group.addoption(
        "--coordcheck-accept-failing",
        action="store_true",
        help="with --coordcheck-update: write the baseline of a failing check too",
    )
    group.addoption(
        "--coordcheck-allow-inconclusive",
        action="store_true",
        help="let coordinate checks pass that are undecided; the summary names them",
    )
    group.addoption(
        "--coordcheck-dir",
        metavar="DIR",
        help="where the reports and pictures of coordinate checks go, one directory each; default: pytest's tmp_path",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuses an option that would do nothing."""
    if config.getoption("--coordcheck-accept-failing") and not config.getoption("--coordcheck-update"):
        raise pytest.UsageError(
            "`--coordcheck-accept-failing` says which baselines are written, so it needs `--coordcheck-update`. "
            "For example pytest --coordcheck-update --coordcheck-accept-failing."
        )


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says what was stored, what was allowed, and where theory disagrees with a baseline."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    said = [
        f"{report.nodeid}: {sentence}"
        for report in reports
        if getattr(report, "when", None) == "call"
        for key, sentence in report.user_properties
        if key == SAID
    ]
    if said:
        terminalreporter.section("coordinate checks")
        for line in said:
            terminalreporter.write_line(line)


def unique_name(text: str) -> str:
    """A file name for a test, readable, and another one for every other test.

    What stands for itself in any file system keeps its name; where characters had to go, or differ only in case, a
    hash keeps tests apart.

    >>> unique_name("test_model")
    'test_model'
    >>> unique_name("TestRelu::test_model[a/b]")
    'TestRelu-test_model-a-b-8fa5e5e4'
    """
    from coordcheck.config.load import file_name

    name = re.sub(r"[^\w.]+", "-", text, flags=re.ASCII).strip("-.")
    if name != text or name != name.lower():
        name = f"{name}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:8]}"
    return file_name(name)


@pytest.fixture
def coord_check(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., CheckedModel]:
    """A function with the arguments of :func:`coordcheck.coord_check`, whose result has ``assert_passes()``.

    Several calls in one test are numbered; each has its own files and its own baseline.
    """
    calls = 0
    option = request.config.getoption
    node: pytest.Item = request.node
    _, _, test = node.nodeid.partition("::")

    def checked(*arguments: Any, **keywords: Any) -> CheckedModel:
        nonlocal calls
        calls += 1
        from coordcheck.check import coord_check as run

        number = f"-{calls}" if calls > 1 else ""
        check = run(*arguments, **keywords)
        if option("--coordcheck-dir"):
            home = request.config.invocation_params.dir / option("--coordcheck-dir")
            directory = home / f"{unique_name(node.nodeid)}{number}"
        else:
            directory = tmp_path / f"coordcheck{number}"
        check.save(directory)
        return CheckedModel(
            check,
            directory,
            request.path.parent / BASELINES / request.path.stem / f"{unique_name(test)}{number}.json",
            option("--coordcheck-update"),
            option("--coordcheck-accept-failing"),
            option("--coordcheck-allow-inconclusive"),
            lambda sentence: node.user_properties.append((SAID, sentence)),
        )

    return checked
