"""What the cure makes of a case: the table, and the check of the model with it."""

import dataclasses
import warnings
from dataclasses import dataclass

import torch

from coordcheck.check import in_training
from coordcheck.config.load import default_gate
from coordcheck.config.schema import AUTO, Expect, GateConfig, Precision
from coordcheck.curing import Cure, cure_cell, find_cure
from coordcheck.judge.looks import Auto
from coordcheck.models.own import OwnCell
from coordcheck.result import CoordCheck
from coordcheck.run.train import RunPlan
from planted.case import Case

KINDS = ["activation", "delta", "effective_update"]
# why no factor on a weight or a rate mends a fault
NO_TABLE = {
    "width": "a size does not grow",
    "untrained": "no optimizer has it, or no gradient reaches it",
    "dead": "nothing passes, or the rate is zero",
    "nonfinite": "a narrow type overflows",
    "gentle": "the training is too gentle to see anything",
    "harness": "the runs differ in what they must share",
}
NO_TABLE_OF = {
    "scheduler overwrites": "a scheduler sets the rates after every step",
    "schedule overwrites": "a scheduler sets the rates after every step",
    "attention divided twice": "the factor is between queries and keys, which no parameter's use shows",
    "growing heads": "the factor is between queries and keys, which no parameter's use shows",
    "nobody writes": "memory that nothing wrote",
    "tie lost": "memory that nothing wrote",
}


@dataclass(frozen=True)
class Outcome:
    """The table of a case, and the check with it; None where the table is empty."""

    cure: Cure
    after: CoordCheck | None


def reason(case: Case) -> str:
    """Why no table mends what is planted in a case; empty where one can."""
    named = [why for part, why in NO_TABLE_OF.items() if part in case.name]
    return next(iter([*named, *(NO_TABLE[cause] for cause in case.causes if cause in NO_TABLE)]), "")


def find(case: Case, widths: tuple[int, ...], base: int) -> Cure:
    """The cure of a case, without a check."""
    cell, gate = _cell(case, widths)
    with in_training(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return find_cure(cell, gate, widths, base)[0]


def cure_case(case: Case, widths: tuple[int, ...], base: int) -> Outcome:
    """The cure of a case, and the check with it: seeds=auto, and controls.

    Where that leaves curves undecided it is made again with one more width, twice as wide.
    """
    torch.set_num_threads(1)
    plan = RunPlan(4, KINDS, None, torch.device("cpu"), Precision.fp32)
    with in_training(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an evaluation within the step has one of its own
        for at in (widths, (*widths, 2 * widths[-1])):
            cell, gate = _cell(case, at)
            cured = cure_cell(cell, plan, gate, at, Auto(3.0), base, {"seeds": AUTO}, workers=1)
            if cured.after.verdict != "inconclusive":
                break
    return Outcome(cured.cure, cured.after if cured.cure else None)


def _cell(case: Case, widths: tuple[int, ...]) -> tuple[OwnCell, GateConfig]:
    gate = dataclasses.replace(default_gate(), expect=Expect.mup, decay=case.decay)
    return OwnCell(case.build, case.batch, case.optimizer, case.loss, widths, name=case.name), gate
