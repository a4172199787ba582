"""A cure: what to change about a model's parameters so that it is in muP or another parametrization, as exponents.

Under Adam (a+t, b-t, c-t) is the same training: what a forward multiplier does, the init std and the learning rate do
as well (Tensor Programs IVb, arXiv 2308.01814, and V, arXiv 2203.03466). So a factor on each initial weight and a
learning rate for each parameter put nearly any model into muP, without a line of it changed. An exception is a weight
that is embedding and readout at once: what the readout reads is multiplied.

This is data, without torch; :mod:`coordcheck.models.cured` applies it to a model and its optimizer.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from coordcheck.judge.audit import AuditResult
from coordcheck.judge.audit_findings import AuditFinding
from coordcheck.judge.parametrizations import TABLES

VERSION = 1
# the power in a table of what a finding changes
POWERS = {"init_std": "std", "learning_rate": "lr", "weight_decay": "weight_decay", "epsilon": "eps"}
FOLDED = {"sgd": 2.0}  # of a multiplier's exponent, what the learning rate takes over; 1 under Adam
UNSURE = 1.5  # of a 95 % interval, three standard errors: of hundreds of weights some lie beyond two
ROUNDING = 1e-5  # of the median gradient, below which one is zero but for rounding: a key's bias has 1e-7
SAME = 0.08  # how far an exponent may be from a multiple of a quarter and mean it


@dataclass(frozen=True)
class Exponents:
    """Powers of width_mult by which to multiply what belongs to a parameter; 0 leaves it alone.

    Attributes:
        std: Of each initial entry.
        lr: Of the learning rate.
        weight_decay: Of the weight decay.
        eps: Of the optimizer's epsilon.
    """

    std: float = 0.0
    lr: float = 0.0
    weight_decay: float = 0.0
    eps: float = 0.0

    def __add__(self, other: "Exponents") -> "Exponents":
        return Exponents(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __bool__(self) -> bool:
        return any(asdict(self).values())

    def __str__(self) -> str:
        names = {"std": "std", "lr": "lr", "weight_decay": "weight decay", "eps": "epsilon"}
        return ", ".join(f"{names[name]} {times(power)}" for name, power in asdict(self).items() if power)


@dataclass(frozen=True)
class Entry:
    """Parameters that need the same change.

    Attributes:
        parameters: Names; ``*`` stands for any number between dots, such as that of a block.
        role: What they are.
        exponents: What to change.
    """

    parameters: tuple[str, ...]
    role: str
    exponents: Exponents

    def covers(self, name: str) -> bool:
        """Whether a parameter of that name is meant."""
        return any(re.fullmatch(re.escape(pattern).replace(r"\*", r"\d+"), name) for pattern in self.parameters)


@dataclass(frozen=True)
class CureTable:
    """A cure.

    Attributes:
        base_width: Where it changes nothing.
        entries: What to change about parameters.
        multipliers: By module, the exponent of width_mult by which to multiply what it reads.
        notes: What no table can mend, one sentence each.
        target: The parametrization that it leads to.
    """

    base_width: int
    entries: tuple[Entry, ...] = ()
    multipliers: Mapping[str, float] | None = None
    notes: tuple[str, ...] = ()
    target: str = "mup"

    def __bool__(self) -> bool:
        return bool(self.entries or self.multipliers)

    def exponents(self, name: str) -> Exponents:
        """What to change about the parameter of that name."""
        return next((entry.exponents for entry in self.entries if entry.covers(name)), Exponents())

    @property
    def changes(self) -> int:
        """How many exponents it changes, each once for all parameters of an entry."""
        numbers = [power for entry in self.entries for power in asdict(entry.exponents).values()]
        return len([power for power in numbers if power]) + len(self.multipliers or {})

    def describe(self) -> str:
        """The table in words, a line for each entry."""
        lines = [f"{_plural(entry)}: {entry.exponents}" for entry in self.entries]
        lines += [f"what {module} reads: {times(power)}" for module, power in (self.multipliers or {}).items()]
        return "\n".join([*(lines or ["nothing to change"]), *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """What ``cure.yaml`` holds."""
        entries = [
            {
                "parameters": list(entry.parameters),
                "role": entry.role,
                **{name: power for name, power in asdict(entry.exponents).items() if power},
            }
            for entry in self.entries
        ]
        return {
            "version": VERSION,
            "target": self.target,
            "base_width": self.base_width,
            "entries": entries,
            "multipliers": dict(self.multipliers or {}),
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, content: Any, source: str = "a cure") -> Self:
        """A table from what :meth:`to_dict` returned.

        Raises:
            ValueError: naming the source, the place and the rule.
        """
        allowed = {"version", "target", "base_width", "entries", "multipliers", "notes"}
        if not isinstance(content, dict) or not {"version", "base_width"} <= content.keys() <= allowed:
            raise ValueError(f"{source} is a mapping with the keys {sorted(allowed)}, as coordcheck-cure writes it.")
        if content["version"] != VERSION:
            raise ValueError(f"{source} has version {content['version']!r}; this coordcheck reads version {VERSION}.")
        base = content["base_width"]
        if isinstance(base, bool) or not isinstance(base, int) or base < 1:
            raise ValueError(f"{source}: `base_width` is a positive integer; got {base!r}. For example 64.")
        entries = tuple(_entry(row, f"{source}: entry {i}") for i, row in enumerate(content.get("entries") or []))
        multipliers = content.get("multipliers") or {}
        if not isinstance(multipliers, dict):
            raise ValueError(f"{source}: `multipliers` are exponents by module; got {multipliers!r}.")
        numbers = {str(name): _number(power, f"{source}: {name}") for name, power in multipliers.items()}
        if (target := content.get("target", "mup")) not in TABLES:
            raise ValueError(f"{source}: `target` is one of {list(TABLES)}; got {target!r}. For example mup.")
        return cls(base, entries, numbers, tuple(map(str, content.get("notes") or ())), target)

    def plus(self, other: "CureTable") -> Self:
        """This cure and then another one of the same model, as one.

        `other` was found on the model that this one had changed, and both name its parameters.
        """
        names = [name for table in (self, other) for entry in table.entries for name in entry.parameters]
        roles = {name: entry.role for table in (other, self) for entry in table.entries for name in entry.parameters}
        changes = {name: self.exponents(name) + other.exponents(name) for name in names}
        multipliers = dict(self.multipliers or {})
        for module, power in (other.multipliers or {}).items():
            multipliers[module] = multipliers.get(module, 0.0) + power
        entries = _grouped({name: (roles[name], power) for name, power in changes.items()})
        return replace(self, entries=entries, multipliers=multipliers, notes=other.notes)

    def generalized(self, names: Iterable[str]) -> Self:
        """The same with patterns in the place of numbered names, where all parameters of a pattern agree.

        Args:
            names: Of all parameters of the model.
        """
        families: dict[str, list[str]] = {}
        for name in names:
            families.setdefault(_pattern(name), []).append(name)
        whole = {
            name: pattern
            for pattern, members in families.items()
            if len({self.exponents(name) for name in members}) == 1
            for name in members
        }
        entries = [
            replace(entry, parameters=tuple(dict.fromkeys(whole.get(name, name) for name in entry.parameters)))
            for entry in self.entries
        ]
        return replace(self, entries=tuple(entries))


def cure_of(audit: AuditResult, base_width: int) -> CureTable:
    """What an audit's findings ask for, multipliers folded into std and learning rate where that can be.

    Args:
        audit: Under the parametrization that it shall be, with a forward pass, so that multipliers were read.
        base_width: Where nothing is to change.
    """
    rows = {row["parameter"]: row for row in audit.parameters.to_dict("records")}
    changes: dict[str, tuple[str, Exponents]] = {}
    multipliers: dict[str, float] = {}
    notes = []
    for finding in audit.findings:
        row = rows.get(finding.parameter, {})
        if finding.verdict == "large_epsilon" and row["gradient"] < ROUNDING * audit.parameters["gradient"].median():
            continue
        power = _exponents_of(finding, row)
        if power is not None:
            role, before = changes.get(finding.parameter, (row["role"], Exponents()))
            changes[finding.parameter] = role, before + power
        elif finding.change is not None and finding.change.quantity == "multiplier":
            module = row["readout_used_in"].rpartition(" in ")[2]
            multipliers[module] = rounded(finding.change.exponent)
        elif finding.verdict in ("uninitialized", "ungrouped", "regrouped", "unknown"):
            notes.append(f"not mended: {finding}")
    return CureTable(base_width, _grouped(changes), multipliers, tuple(notes))


def _exponents_of(finding: AuditFinding, row: Mapping[Any, Any]) -> Exponents | None:
    """What a finding asks of a parameter; None if it is not that."""
    if finding.verdict == "large_epsilon":
        return Exponents(eps=rounded(min(0.0, row["gradient_exponent"] - row["eps_exponent"])))
    if finding.change is None:
        return None
    power = rounded(finding.change.exponent)
    if finding.change.quantity == "multiplier":
        if not math.isnan(row["readout_multiplier_exponent"]):
            return None  # a weight of two uses
        rate = FOLDED.get(row["update"], 1.0) * power
        if row["role"] != "readout":
            return Exponents(std=power, lr=rate)
        # what makes it smaller may leave out its init: logits need not start as large as they may
        allowed = row["expected_std_exponent"] - row["std_exponent"] if row["init_std"] > 0 else 0.0
        return Exponents(std=rounded(min(max(power, 0.0), allowed)), lr=rate)
    if finding.change.quantity == "init_std":
        low, high = (UNSURE * (row[end] - row["std_exponent"]) for end in ("std_low", "std_high"))
        power = rounded(finding.change.exponent, finding.change.exponent - high, finding.change.exponent - low)
    return Exponents(**{POWERS[finding.change.quantity]: power})


def rounded(exponent: float, low: float = math.inf, high: float = -math.inf) -> float:
    """A measured exponent as the one that it means: the simplest within its interval, or close by.

    Of a weight of few entries the std is known roughly, so that two that one rule wrote would get two exponents.

    >>> rounded(-0.4971), rounded(0.38), rounded(-0.34, -0.55, -0.13), rounded(0.2, 0.15, 0.25)
    (-0.5, 0.38, -0.5, 0.25)
    """
    half, quarter = round(2 * exponent) / 2, round(4 * exponent) / 4
    if low <= half <= high:
        return half
    return quarter if abs(quarter - exponent) < SAME or low <= quarter <= high else round(exponent, 2)


def times(exponent: float) -> str:
    """A power of width_mult as what to do with a number.

    >>> times(-1.0), times(0.5), times(-0.38)
    ('/ width_mult', '* width_mult^0.5', '* width_mult^-0.38')
    """
    known = {1.0: "* width_mult", -1.0: "/ width_mult", -0.5: "/ sqrt(width_mult)"}
    return known.get(exponent, f"* width_mult^{exponent:g}")


def _grouped(changes: Mapping[str, tuple[str, Exponents]]) -> tuple[Entry, ...]:
    """Parameters with their role and change, those that share both together."""
    groups: dict[tuple[str, Exponents], list[str]] = {}
    for name, (role, power) in changes.items():
        if power:
            groups.setdefault((role, power), []).append(name)
    return tuple(Entry(tuple(names), role, power) for (role, power), names in groups.items())


def _pattern(name: str) -> str:
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def _plural(entry: Entry) -> str:
    """How many parameters an entry names, and which."""
    shown = ", ".join(entry.parameters[:3]) + (", ..." if len(entry.parameters) > 3 else "")
    return f"{entry.role} ({shown})"


def _entry(row: Any, place: str) -> Entry:
    powers = {f.name for f in fields(Exponents)}
    if not isinstance(row, dict) or not {"parameters", "role"} <= row.keys() <= {"parameters", "role", *powers}:
        raise ValueError(f"{place} is a mapping with `parameters`, `role` and some of {sorted(powers)}.")
    names = row["parameters"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{place}: `parameters` is a list of names; got {names!r}.")
    return Entry(
        tuple(names),
        str(row["role"]),
        Exponents(**{name: _number(row[name], f"{place}: `{name}`") for name in powers & row.keys()}),
    )


def _number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{place} is an exponent, a finite number; got {value!r}. For example -0.5.")
    return float(value)
