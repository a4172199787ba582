"""Sentences of findings in other words: for JAX users, and where depth varies in the place of width."""

import dataclasses
import re
from typing import TypeVar

from coordcheck.judge.audit_findings import AuditFinding
from coordcheck.judge.finding import Finding
from coordcheck.records.names import over

Told = TypeVar("Told", Finding, AuditFinding)

# patterns of torch's sentences, and what stands there for JAX
OF_JAX = (
    (
        r"Put it in a parameter group with lr ([^,]*?)(, for example mup\.\w+)?\.(?= |$)",
        r"Give it lr \1, for example by coordcheck.jax.scale_by_width behind the optimizer.",
    ),
    (r"Use mup\.MuReadout, or multiply its input", "Multiply its input"),
    (r"Divide once: by mup\.MuReadout or by hand\.", "Divide once."),
    (r",? as mup\.MuAdamW (does|has it)", ""),
    (
        r"Set requires_grad=True and put it in a parameter group, or leave it out with `modules` if that is meant\.",
        "Let the optimizer update it, which optax.set_to_zero and a mask do not, or leave it out with `modules` if "
        "that is meant.",
    ),
    (
        r"the base shapes take this dimension for finite\.",
        "what scales them takes this dimension for finite.",
    ),
    (
        r"Let it differ between the base and the delta model that are given to mup\.set_base_shapes\.",
        "Scale them too, as coordcheck.jax.scale_by_width does.",
    ),
)


def over_axis(finding: Told, axis: str) -> Told:
    """A finding about widths in the words of what varies."""
    return dataclasses.replace(finding, cause=over(axis, finding.cause), advice=over(axis, finding.advice))


def of_jax(finding: Told) -> Told:
    """A finding in the words of JAX's libraries; one that is in them already stays as it is."""
    cause, advice = finding.cause, finding.advice
    for pattern, words in OF_JAX:
        cause, advice = re.sub(pattern, words, cause), re.sub(pattern, words, advice)
    return dataclasses.replace(finding, cause=cause, advice=advice)
