"""From verdicts and audit to findings: where a fault starts, what it is, and what to do.

A fault spreads downstream, so most curves that fail are symptoms. The audit's faults are causes, each of one parameter,
whose curves show what they do. Of the curves that no such cause reaches, the earliest is where a fault starts that only
the forward pass or the training knows: at step 0 the first module in forward order; later first what is local to a
module (its own update's part, the attention logits), then the changes and sizes of its output, which carry what came
in. Each kind of fault is a rule, a function from evidence to a diagnosis or None; the first rule that speaks names it.

Frames in, findings out, without torch: stored checks are diagnosed anew.
"""

import pandas as pd

from coordcheck.config.schema import GateConfig
from coordcheck.judge.audit import AuditResult
from coordcheck.judge.diagnose.check import gentle, harness, motionless
from coordcheck.judge.diagnose.curves import growing_heads, origins, with_drift, with_the_loss
from coordcheck.judge.diagnose.depth import fault_in_depth
from coordcheck.judge.diagnose.evidence import Evidence
from coordcheck.judge.diagnose.parameters import audited
from coordcheck.judge.finding import Finding
from coordcheck.judge.undecided import undecided, weights
from coordcheck.records.schema import DEPTH, axis_of, independent


def diagnose(
    records: pd.DataFrame,
    judged: pd.DataFrame,
    gate: GateConfig,
    audit: AuditResult | None = None,
    seen: bool | None = None,
) -> list[Finding]:
    """What is at fault, what explains most of the failing curves first; then what is undecided.

    Args:
        records: Of one cell.
        judged: Their slopes, as :func:`coordcheck.judge.verdict.judge` returns them.
        gate: As given to it.
        audit: What was known before the first step.
        seen: Whether the control's fault was seen; None without a control.

    Returns:
        One finding for each parameter or module where a fault starts, with the class of the fault in ``fault`` and the
        number of failing curves that it may have caused in ``explains``; curves that only follow have none.
    """
    evidence = Evidence(gate, records, judged, audit, seen)
    if runs_differ := harness(evidence):
        return [runs_differ]
    in_depth = axis_of(records) == DEPTH
    known = fault_in_depth(evidence) if in_depth else [*audited(evidence)]
    # memory that nothing wrote may hold anything: no curve, however large or still, tells of anything else
    garbage = any(finding.quantity is not None and finding.quantity.name == "writes" for finding in known)
    if not garbage and not in_depth:
        known += growing_heads(evidence)
        known += origins(evidence, known)
    found = [with_the_loss(finding, evidence) for finding in known]
    found.sort(key=lambda finding: (-finding.explains, evidence.order(finding.module)))
    if garbage:
        return found
    if evidence.nothing_moves:
        found.insert(0, motionless(evidence))
    elif evidence.drowned or (seen is False and not found):
        found.insert(0, gentle(evidence))
    still_open = undecided(judged, gate, weights(records), independent(records))
    return [*found, *(with_drift(finding, evidence) for finding in still_open)]
