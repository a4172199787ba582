"""What a diagnosis would need that was not recorded, so that a few narrow runs can record it."""

from collections.abc import Sequence

from coordcheck.judge.finding import Finding

PLACE = "effective_update"  # the kind that tells a layer's own update from what arrives at it
ENOUGH_STEPS = 3  # while a readout is zero no gradient passes it, so a hidden layer's first update shows at step 2


def lacking(findings: Sequence[Finding], kinds: Sequence[str], steps: int) -> tuple[list[str], int] | None:
    """The kinds and the number of steps that would tell more of a fault whose cause is not known.

    Args:
        findings: Of a check.
        kinds: That it recorded.
        steps: Likewise.

    Returns:
        Both, those that were recorded included; None if no cause is missing, or nothing is.
    """
    if not any(finding.fault == "unexplained" for finding in findings):
        return None
    more = [*kinds, *([] if PLACE in kinds else [PLACE])]
    enough = max(steps, ENOUGH_STEPS)
    return None if (more, enough) == ([*kinds], steps) else (more, enough)
