"""Deviations that a user accepts by name: "PARAMETER: QUANTITY", for example "wte.weight: lr"."""

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from coordcheck.config.arguments import texts
from coordcheck.records.names import shown

# what an audit looks at, by the word that an entry has for it
QUANTITIES = {
    "init": "init_std",
    "lr": "learning_rate",
    "multiplier": "multiplier",
    "decay": "weight_decay",
    "epsilon": "epsilon",
    "writes": "writes",
    "groups": "groups",
    "shape": "shape",
}
NEAREST = 5  # names that a message lists
EXAMPLE = '["wte.weight: lr"]'


class Entry(NamedTuple):
    """One accepted deviation: a parameter's name, or a shell pattern of names, and what deviates."""

    pattern: str
    word: str

    def names(self, names: Collection[str]) -> bool:
        """Whether it is one of these, the names of one parameter."""
        return any(name == self.pattern or fnmatchcase(name, self.pattern) for name in names)


def entries(accept: Any, name: str = "accept") -> list[Entry]:
    """The accepted deviations that a user lists, in an argument or a key of this name.

    Raises:
        ValueError: if an entry is no "PARAMETER: QUANTITY", or there is no such quantity.
    """
    found = []
    for text in texts(name, accept, f"{name}={EXAMPLE}"):
        pattern, colon, word = map(str.strip, text.rpartition(":"))
        if not colon or not pattern or word not in QUANTITIES:
            raise ValueError(
                f"`{name}` lists PARAMETER: QUANTITY, the quantity one of {list(QUANTITIES)}; got {shown(text)}. "
                f"For example {name}={EXAMPLE}."
            )
        found.append(Entry(pattern, word))
    return found


def accepted_quantities(accept: Sequence[str], parameters: Mapping[str, Collection[str]]) -> dict[str, set[str]]:
    """What is accepted of each parameter.

    Args:
        accept: The entries.
        parameters: All names of each parameter, its own and tied ones.

    Returns:
        Names of quantities as findings have them, by parameter.

    Raises:
        ValueError: if an entry names no parameter; it names those that there are.
    """
    accepted: dict[str, set[str]] = {name: set() for name in parameters}
    for entry in entries(accept):
        mine = [name for name, names in parameters.items() if entry.names(names)]
        if not mine:
            near = get_close_matches(entry.pattern, parameters, NEAREST, cutoff=0.0)
            raise ValueError(
                f"an accepted deviation names a parameter of the model, or a pattern; {shown(entry.pattern)} is none "
                f"of its {len(parameters)}, the nearest of which are {near}. "
                f"For example {shown(f'{near[0]}: {entry.word}')} in its place."
            )
        for name in mine:
            accepted[name].add(QUANTITIES[entry.word])
    return accepted
