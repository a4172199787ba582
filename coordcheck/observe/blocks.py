"""Models of different depths: which blocks of theirs stand at the same place, and names that say so.

What the k-th of L blocks receives has passed k branches, each of which CompleteP divides by L. So it is the share k/L
that models have in common: 0 for the first block, 1/2 for the one behind half of the others, 1 for what the last one
returns. Records of these are named by their place, those of other blocks are left out.
"""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

import pandas as pd
from torch import nn

from coordcheck.records.names import shown
from coordcheck.records.schema import FIRST, LAST, LOSS_MODULE, MIDDLE, ROOT

MODEL = "For example nn.ModuleList(Block() for _ in range(depth))."


def growing_lists(shallow: nn.Module, deep: nn.Module) -> tuple[str, ...]:
    """Names of the lists of blocks, such as an ``nn.ModuleList``, that are longer in the deeper of two models.

    Raises:
        ValueError: if there is none, one is too short, or the models differ in anything else.
    """
    short, long = _lengths(shallow), _lengths(deep)
    growing = [name for name in short if long.get(name, 0) != short[name]]
    lists = tuple(name for name in growing if not any(name.startswith(f"{outer}.") for outer in growing))
    if not lists:
        raise ValueError(
            f"no list of blocks grows with depth: `build` must return a model of more blocks for a larger one. {MODEL}"
        )
    if few := {name: short[name] for name in lists if short[name] < 2}:
        raise ValueError(
            f"the shallowest model needs at least 2 blocks, so that one stands in the middle; got {few}. "
            f"For example depths=[2,4,8,16]."
        )
    names = [
        {place for n, _ in model.named_parameters() for place in _places(n, lists, model)} for model in (shallow, deep)
    ]
    if strange := sorted(names[0] ^ names[1]):
        raise ValueError(
            f"a model must have the same parameters at every depth, but for its lists of blocks; these are not in both "
            f"of two depths: {shown(strange)}. {MODEL}"
        )
    return lists


def by_place(
    records: pd.DataFrame, model: nn.Module, lists: Sequence[str], patterns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Records of one run, named by the place of their block.

    Args:
        records: Under the names that the model has for its modules.
        model: Whose records these are.
        lists: Names of its lists of blocks.
        patterns: Of names to keep, see `modules` of a check; None for all.

    Raises:
        ValueError: if the patterns select nothing.
    """
    places = {name: _places(name, lists, model) for name in records["module"].unique()}
    if patterns is not None:
        every = {place for found in places.values() for place in found if place != LOSS_MODULE}
        wanted = {place for place in every if any(fnmatchcase(place.partition("[")[0], p) for p in patterns)}
        if not wanted:
            raise ValueError(
                f"`modules` selects none of {shown(sorted(every))}; got {shown(list(patterns))}. For example "
                f"modules=['*{LAST}']."
            )
        places = {name: [p for p in found if p in wanted or p == LOSS_MODULE] for name, found in places.items()}
    named = records.assign(module=records["module"].map(places)).explode("module").dropna(subset="module")
    named["module"] = named["module"].astype(records["module"].dtype)
    named.attrs.update(records.attrs)
    return named.reset_index(drop=True)


def _lengths(model: nn.Module) -> dict[str, int]:
    """How many children a module has whose children are numbered, by its name."""
    return {
        name or ROOT: len(module._modules)
        for name, module in model.named_modules()
        if module._modules and all(child.isdigit() for child in module._modules)
    }


def _places(name: str, lists: Sequence[str], model: nn.Module) -> list[str]:
    """What a module, an output of it or a parameter is called by its place: nothing, one name, or two."""
    for blocks in lists:
        before = "" if blocks == ROOT else f"{blocks}."
        found = re.fullmatch(rf"{re.escape(before)}(\d+)([.\[].*)?", name, re.DOTALL)
        if found is None:
            continue
        number, rest = int(found[1]), found[2] or ""
        count = len(model.get_submodule(before.rstrip("."))._modules)
        places = [FIRST] * (number == 0) + [MIDDLE] * (number == count // 2)
        places += [LAST] * (
            number == count - 1 and not rest.startswith(".")
        )  # what is inside has passed fewer branches
        return [f"{before}{place}{rest}" for place in places]
    return [name]
