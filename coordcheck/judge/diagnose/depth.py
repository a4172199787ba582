"""What is at fault where sizes do not keep over depths: the residual stream, or a layer's own updates."""

from coordcheck.judge.diagnose.evidence import Evidence, by_locality, symptom
from coordcheck.judge.finding import Curve, Finding
from coordcheck.judge.undecided import weights
from coordcheck.records.schema import FIRST, LAST

ADAM = "Where branches are multiplied by 1/depth, Adam's learning rates do not depend on depth."
MULTIPLY = "Multiply what each residual branch adds to the stream by base depth / depth."


def fault_in_depth(evidence: Evidence) -> list[Finding]:
    """Where sizes begin to change with depth, and why where that is known; nothing where no curve fails."""
    failing = by_locality(evidence.failing)
    if not len(failing):
        return []
    first = failing.iloc[0]
    of_updates = (failing["kind"] == "effective_update") & failing["verdict"].isin(("explodes", "vanishes"))
    # up to the end of the first block nothing depends on depth: what scales there is the layer's own
    curves = evidence.curves
    begins = curves["order"][curves["module"].str.contains(FIRST, regex=False)].max()
    own = failing[of_updates & (failing["order"] <= begins)]
    explodes = failing["verdict"] == "explodes"
    stream = failing[failing["module"].str.partition("[")[0].str.endswith(LAST) & explodes]
    fault, why, advice = "unexplained", "", ""
    if first["verdict"] in ("nonfinite", "dead"):
        fault = str(first["verdict"])
    elif len(own) and own["step"].iloc[0] <= first["step"]:
        first, fault, advice = own.iloc[0], "learning_rate", ADAM
        why = "What it receives is the same at every depth, so its learning rate is not, or its gradient under SGD."
    elif len(stream):
        first, fault, advice = stream.iloc[0], "multiplier", MULTIPLY
        why = "It is the residual stream behind all blocks, and what they add to it together grows with their number."
    name = str(first["module"])
    cause = f"{symptom(first)} {why}".strip()
    return [
        Finding(fault, name, weights(evidence.records).get(name), cause, advice, Curve.of(first), explains=len(failing))
    ]
