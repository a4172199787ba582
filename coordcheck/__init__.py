"""Coordinate checks with a verdict: did every activation and every update keep its size when the width changed?"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coordcheck.auditing import audit
    from coordcheck.check import coord_check
    from coordcheck.curing import Cure, cure
    from coordcheck.judge.finding import Finding
    from coordcheck.observe.before_wrapping import roles
    from coordcheck.observe.recorder import Recorder
    from coordcheck.records.merge import merge
    from coordcheck.result import Audit, CoordCheck
    from coordcheck.transferring import Transfer, transfer

__all__ = [
    "Audit",
    "CoordCheck",
    "Cure",
    "Finding",
    "Recorder",
    "Transfer",
    "audit",
    "coord_check",
    "cure",
    "merge",
    "roles",
    "transfer",
]
__version__ = version("coordcheck")

_HOMES = {
    "Audit": "coordcheck.result",
    "CoordCheck": "coordcheck.result",
    "Cure": "coordcheck.curing",
    "Finding": "coordcheck.judge.finding",
    "Recorder": "coordcheck.observe.recorder",
    "Transfer": "coordcheck.transferring",
    "audit": "coordcheck.auditing",
    "coord_check": "coordcheck.check",
    "cure": "coordcheck.curing",
    "merge": "coordcheck.records.merge",
    "roles": "coordcheck.observe.before_wrapping",
    "transfer": "coordcheck.transferring",
}
_MODULES = ("callbacks", "loggers")


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: ``coordcheck --help`` and stored reports need no torch."""
    if name in _MODULES:
        return import_module(f"coordcheck.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'coordcheck' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
