"""Whether a check can see: a twin with a known fault, which must fail."""

from dataclasses import dataclass, field

import pandas as pd

from coordcheck.config.schema import Expect, GateConfig
from coordcheck.judge.finding import describe
from coordcheck.judge.slopes import fit
from coordcheck.judge.verdict import judge, worst_first
from coordcheck.records.names import over
from coordcheck.records.schema import WIDTH, axis_of

MORE = "Use more seeds, for example seeds=5, or a larger learning rate."


@dataclass(frozen=True)
class Control:
    """Whether the check can see: a twin with a known fault, which must fail.

    Attributes:
        twin: What it was, in words; "none" if it was turned off.
        widths: At which it ran.
        seeds: How many at each width.
        saw: Whether its fault was seen; None without a control.
        evidence: The curve that shows it best, in words; where it was not run for a reason, that reason.
        undecided: Whether a slope lies beyond its limit where none does so for certain; `saw` is then False.
        axis: What `widths` are: "width" or "depth".
    """

    twin: str = "none"
    widths: list[int] = field(default_factory=list)
    seeds: int = 0
    saw: bool | None = None
    evidence: str = ""
    undecided: bool = False
    axis: str = WIDTH

    def outcome(self) -> str:
        """What it showed."""
        if self.saw is None:
            return self.evidence or "none, so a pass does not show that a fault would have been seen."
        if self.saw:
            return f"fails as it must; {self.evidence}"
        if self.undecided:
            return f"its fault shows, but not for certain; {self.evidence} {MORE}"
        return "its fault was not seen. The learning rate or the number of steps is too small to see a fault."

    def __str__(self) -> str:
        seeds = f"{self.seeds} {'seed' if self.seeds == 1 else 'seeds'}"
        ran = "" if self.saw is None else f" ({self.twin}; {self.axis}s {self.widths}, {seeds})"
        return f"Control{ran}: {self.outcome()}"


def judge_control(records: pd.DataFrame, gate: GateConfig, twin: str) -> Control:
    """Whether a control's fault shows.

    In what training did to it: a fault at step 0 would show without any training, so it says nothing of the learning
    rate. Where changes are recorded only they count, else activations after step 0. A check that expects standard
    parametrization has its control's fault in the initialization: there every curve counts.
    """
    judged = judge(fit(records, gate.confidence), gate)
    if gate.expect != Expect.sp:
        changes = judged["kind"].isin(("delta", "effective_update", "update"))
        judged = judged[changes if changes.any() else judged["step"] > 0]
    seen = judged[judged["verdict"].isin(("explodes", "nonfinite"))]
    beyond = judged[(judged["verdict"] == "inconclusive") & (judged["slope"] > judged["expected_high"])]
    beyond = beyond[beyond["excess"] > 0]
    evidence, axis = "", axis_of(records)
    if len(seen) or len(beyond):
        worst = worst_first(seen if len(seen) else beyond).iloc[0]
        evidence = f"{worst['module']}, {worst['kind']}, step {worst['step']}: {over(axis, describe(worst))}"
    return Control(
        twin=over(axis, twin),
        widths=sorted(int(width) for width in records["width"].unique()),
        seeds=int(records.groupby("width")["seed"].nunique().min()),
        saw=bool(len(seen)),
        evidence=evidence,
        undecided=not len(seen) and bool(len(beyond)),
        axis=axis,
    )
