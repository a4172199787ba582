"""Advice that was tried: what is tried together and what alone, and what is said of it."""

from types import SimpleNamespace

import pandas as pd
import pytest

from coordcheck.judge.audit import AuditResult
from coordcheck.judge.audit_findings import AuditFinding
from coordcheck.judge.cure import Exponents
from coordcheck.judge.finding import Change, Finding, Quantity
from coordcheck.judge.trial import Trial, told, trials_of

WIDTHS = [64, 128, 256]
RATE, STD = Change("learning_rate", -1.0), Change("init_std", -0.5)


def finding(fault, name, change=None):
    return Finding(fault, name, f"{name}.weight", "Why.", "Do this.", parameters=(f"{name}.weight",), change=change)


def audit(*findings):
    """Of parameters that need what findings advise."""
    names = [f.parameter for f in findings]
    parameters = pd.DataFrame({"parameter": names, "role": "hidden", "std_low": -0.1, "std_high": 0.1})
    parameters["std_exponent"] = 0.0
    found = [AuditFinding(f.fault, f.module, f.parameter, "", "", Quantity(""), f.change) for f in findings]
    return AuditResult(parameters, found, "fail", "mup", WIDTHS)


def seen(*findings, undecided=0):
    """What a check of a changed model says."""
    verdict = "fail" if findings else "inconclusive" if undecided else "pass"
    slopes = pd.DataFrame({"verdict": ["pass", *["inconclusive"] * undecided]})
    runs = pd.DataFrame({"width": [64, 64, 128, 128], "seed": [1, 1, 2, 3]})
    return SimpleNamespace(verdict=verdict, findings=list(findings), slopes=slopes, records=runs)


def tried(findings, *answers):
    """Trials, and the tables that were tried; `answers` are what the checks say in turn."""
    tables, answers = [], iter(answers)

    def check_with(table):
        tables.append(table)
        return next(answers)

    return trials_of(findings, audit(*findings), WIDTHS, check_with), tables


RATE_OF_Q, STD_OF_V = finding("learning_rate", "q", RATE), finding("init", "v", STD)


def test_all_changes_are_made_together_first():
    trials, (table,) = tried([RATE_OF_Q, STD_OF_V], seen())
    assert table.exponents("q.weight") == Exponents(lr=-1.0) and table.exponents("v.weight") == Exponents(std=-0.5)
    assert table.base_width == 64
    assert [(t.fault, t.others, t.helped) for t in trials] == [("learning_rate", 1, True), ("init", 1, True)]
    assert str(trials[0]) == "Tried: with this change and that of the other findings the check passes."


def test_what_is_still_told_is_tried_alone_before_its_advice_is_withdrawn():
    trials, tables = tried([RATE_OF_Q, STD_OF_V], seen(STD_OF_V), seen(RATE_OF_Q, STD_OF_V))
    assert len(tables) == 2 and not tables[1].exponents("q.weight")
    assert [(t.others, t.helped) for t in trials] == [(1, True), (0, False)]
    rate, std = told([RATE_OF_Q, STD_OF_V], trials)
    assert rate.advice == "Do this." and rate.change == RATE
    assert "something else is at fault" in rate.tried
    assert (std.advice, std.change) == ("", None)
    assert str(std) == "v.weight: Why. Tried: std / sqrt(width_mult) does not help, so that is not the advice."


def test_alone_it_may_help():
    trials, _ = tried([RATE_OF_Q, STD_OF_V], seen(STD_OF_V), seen(RATE_OF_Q))
    assert trials[1].helped and trials[1].others == 0


def test_another_fault_in_the_same_place_is_no_help():
    trials, _ = tried([RATE_OF_Q], seen(finding("unexplained", "q")))
    assert not trials[0].helped
    trials, _ = tried([RATE_OF_Q, finding("dead", "q")], seen(finding("dead", "q")))
    assert trials[0].helped  # that was there before


def test_undecided_curves_are_told():
    trials, _ = tried([RATE_OF_Q], seen(undecided=2))
    assert str(trials[0]) == (
        "Tried: with this change nothing is at fault; 3 runs at widths 64, 128, 256 leave 2 curves undecided."
    )


def test_what_is_no_number_is_not_tried():
    assert tried([finding("untrained", "q"), finding("", "q")]) == ([], [])
    assert trials_of([RATE_OF_Q], None, WIDTHS, lambda table: pytest.fail("tried")) == []


def test_too_large_an_epsilon_is_tried_once():
    findings = [finding("epsilon", "q"), finding("epsilon", "v"), finding("untrained", "q")]
    known = audit(finding("large_epsilon", "q"))
    known.parameters["gradient_exponent"], known.parameters["eps_exponent"] = -1.0, 0.0
    known.parameters["gradient"] = 1e-3
    tables = []
    trials = trials_of(findings, known, WIDTHS, lambda table: tables.append(table) or seen())
    assert [table.exponents("q.weight") for table in tables] == [Exponents(eps=-1.0)]
    assert [trial.helped for trial in trials] == [True, True]


def test_a_rate_that_only_its_curve_tells_is_tried():
    of_curve = finding("learning_rate", "q", Change("learning_rate", -0.52))
    tables = []
    trials_of([of_curve], audit(STD_OF_V), WIDTHS, lambda table: tables.append(table) or seen())
    assert tables[0].exponents("q.weight") == Exponents(lr=-0.5)


def test_no_more_than_three_are_tried_alone():
    findings = [finding("init", name, STD) for name in "abcd"]
    trials, tables = tried(findings, *[seen(*findings)] * 4)
    assert len(tables) == 4 and [trial.module for trial in trials] == ["a", "b", "c"]
    assert told(findings, trials)[3] == findings[3]


def test_facts_are_what_they_were():
    trials, _ = tried([RATE_OF_Q], seen())
    assert Trial.of_facts(trials[0].facts()) == trials[0]
