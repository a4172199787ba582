"""Which rows a picture has: a module each where that can be read, else neighbours of one name together.

Names are a tree (``blocks.3.attn.q``), and the tree is opened where it matters until the picture is full: first where
faults start, then where most modules are. What stays closed is one row, which shows the worst of its curves.
"""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pandas as pd

MOST_ROWS = 60


@dataclass(frozen=True)
class Row:
    """Modules that one row of a picture stands for.

    Attributes:
        modules: In forward order.
        name: Of the one module, or what the names begin with; empty for a gap, which has no module.
    """

    modules: tuple[str, ...]
    name: str

    def label(self) -> str:
        """The name, and of how many modules."""
        return self.name if len(self.modules) < 2 else f"{self.name}  ({len(self.modules)} modules)"


def rows_of(modules: Sequence[str], first: Collection[str] = (), most: int = MOST_ROWS) -> list[Row]:
    """At most `most` rows for modules in forward order; those named in `first` have one of their own if there is room.

    >>> [row.label() for row in rows_of(["wte", "h.0.fc", "h.0.act", "h.1.fc", "h.1.act", "head"], ["h.1.fc"], most=5)]
    ['wte', 'h.0  (2 modules)', 'h.1.fc', 'h.1.act', 'head']
    """
    if len(modules) <= most:
        return [Row((module,), module) for module in modules]
    place = {module: i for i, module in enumerate(modules)}
    groups = [tuple(modules)]
    closed: set[tuple[str, ...]] = set()
    while openable := [group for group in groups if len(group) > 1 and group not in closed]:
        group = max(openable, key=lambda group: (not {*group}.isdisjoint(first), len(group)))
        parts = _opened(group, most - len(groups) + 1, many=most // 3)
        if len(parts) == 1:
            closed.add(group)
        else:
            groups.remove(group)
            groups += parts
    groups.sort(key=lambda group: place[group[0]])
    return [Row(group, _name(group, modules)) for group in groups]


def worst_of_rows(ranked: pd.DataFrame, rows: Sequence[Row]) -> pd.DataFrame:
    """The first curve of each row, kind and step, of curves that stand worst first; ``row`` is the row's number."""
    row_of = {module: i for i, row in enumerate(rows) for module in row.modules}
    known = ranked[ranked["module"].isin(list(row_of))]
    return known.assign(row=known["module"].map(row_of)).drop_duplicates(["row", "kind", "step"])


def _opened(group: Sequence[str], room: int, many: int) -> list[tuple[str, ...]]:
    """A group by the next part of its names; where these are many, neighbours share half the room, else none opens."""
    children: dict[str, list[str]] = {}
    depth = len(_shared(group)) + 1
    for module in group:
        children.setdefault(_beginning(module, depth), []).append(module)
    parts = list(children.values())
    if len(parts) > room and (len(parts) <= many or room < 4):
        return [tuple(group)]
    size = 1 if len(parts) <= room else -(-len(parts) // (room // 2))
    return [tuple(module for part in parts[i : i + size] for module in part) for i in range(0, len(parts), size)]


def _shared(group: Sequence[str]) -> list[str]:
    """The parts with which all names begin."""
    split = [module.split(".") for module in group]
    return [parts[0] for parts in itertools.takewhile(lambda parts: len({*parts}) == 1, zip(*split, strict=False))]


def _beginning(module: str, depth: int) -> str:
    return ".".join(module.split(".")[:depth])


def _name(group: Sequence[str], modules: Sequence[str]) -> str:
    """What names a group: the beginning that no other module has, else its first part and its last."""
    if len(group) == 1:
        return group[0]
    shared = _shared(group)
    depth = len(shared)
    if sum(module.split(".")[:depth] == shared for module in modules) == len(group):
        return ".".join(shared)
    first, last = (_beginning(module, depth + 1) for module in (group[0], group[-1]))
    return f"{first} … {last.removeprefix('.'.join([*shared, '']))}"
