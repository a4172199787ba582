"""Faults of the check itself: runs that differ in what they must share, training too gentle to see anything."""

import numpy as np

from coordcheck.judge.diagnose.evidence import Evidence
from coordcheck.judge.finding import Finding
from coordcheck.records.schema import ROOT


def harness(evidence: Evidence) -> Finding | None:
    """A batch or a number of calls that differs where it must not makes every slope that of something else."""
    counts = evidence.records.dropna(subset="count").query("kind == 'activation'")
    # what the model returns: experts inside it may have other shares of the batch each time
    counts = counts[counts["module"].str.startswith(ROOT)]
    if not len(counts):
        return None
    size = counts.groupby(["module", "width", "step"])["count"].max().unstack("step")
    varying = size[size.gt(size[size.columns[0]], axis=0).any(axis=1)].index.get_level_values("module").unique()
    if len(varying):
        return _whole(
            evidence,
            "harness",
            f"{varying[0]} gave more entries at a later step than at step 0: one forward pass more is pooled with the "
            f"one that is trained.",
            "Run the same forward passes in every step, for example evaluate outside the recorder.",
        )
    by_width = size[size.columns[0]].unstack("width")
    growth = by_width.iloc[:, -1] / by_width.iloc[:, 0]
    exponents = np.log(growth) / np.log(float(by_width.columns[-1]) / float(by_width.columns[0]))
    strange = exponents[(exponents < -evidence.limits.certain) | (exponents > 1 + evidence.limits.certain)]
    if not len(strange):
        return None
    return _whole(
        evidence,
        "harness",
        f"the number of entries of {strange.index[0]} scales like width^{strange.iloc[0]:+.2f}, so the batch is not "
        f"the same at every width.",
        "Train all widths on the same batch; split it into micro-batches where memory is short.",
    )


def gentle(evidence: Evidence) -> Finding:
    """Nothing can be said of training that moves too little."""
    seen = "outputs change by less than a rounding error" if evidence.drowned else "not even the control's fault shows"
    return _whole(
        evidence,
        "gentle",
        f"{seen}, so training is too gentle to see a fault of any learning rate.",
        "Use a larger learning rate, no warmup, and at least 3 steps.",
    )


def motionless(evidence: Evidence) -> Finding:
    """Training that changes nothing at all, whatever the learning rate."""
    rows = evidence.parameters
    trained: list[str] = []
    if len(rows):
        matrices = rows[(rows["init_std"] == 0) & rows["trained"] & ~rows["role"].isin(("vector", "fixed"))]
        trained = [str(name) for name in matrices.index]
    why = ""
    if len(trained) > 1:
        why = (
            f" {len(trained)} trained matrices start at zero ({', '.join(trained[:2])}, ...): where one multiplies the "
            "other, neither has a gradient."
        )
    return _whole(
        evidence,
        "dead",
        f"nothing trains: every change is exactly zero, and the loss is the same bit for bit at every step.{why}",
        "Look for parameters without gradient, a loss that does not depend on them, or two factors that are both zero; "
        "a larger learning rate cannot help.",
    )


def _whole(evidence: Evidence, fault: str, cause: str, advice: str) -> Finding:
    """A finding about the whole check."""
    return Finding(fault, ROOT, None, cause, advice, explains=len(evidence.failing))
