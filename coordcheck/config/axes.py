"""What every check varies and records: widths, seeds, steps, kinds and modules, whoever builds the model."""

import math
from dataclasses import dataclass
from typing import Any

from coordcheck.config.arguments import MOST_SEEDS, MOST_STEPS, is_whole, texts, whole, whole_numbers
from coordcheck.config.schema import AUTO, Axis
from coordcheck.records.names import shown
from coordcheck.records.schema import KINDS

WIDEST = 2**31 - 1
DEEPEST = 10_000


@dataclass(frozen=True)
class Axes:
    """What every check varies and records.

    Attributes:
        widths: d_model, in the order in which they were given.
        seeds: One run at each width for each; "auto" for as many as it needs.
        steps: Recorded forward passes.
        kinds: What is recorded.
    """

    widths: list[int]
    seeds: list[int] | str
    steps: int
    kinds: list[str]


def check_axes(widths: Any, seeds: Any, steps: Any, kinds: Any, axis: str = Axis.width) -> Axes:
    """What every check needs, whoever builds the model; generators are used up here.

    Args:
        widths: d_model, or depths.
        seeds: How many, or which, or "auto".
        steps: Recorded forward passes.
        kinds: What is recorded.
        axis: "width" or "depth".

    Raises:
        ValueError: naming the value, the rule and a working example.
    """
    axes = Axes(
        check_depths(widths) if axis == Axis.depth else check_widths(widths),
        check_seeds(seeds),
        check_steps(steps),
        check_kinds(kinds),
    )
    if axes.steps == 1 and not {"activation", "weight"} & {*axes.kinds}:
        raise ValueError(
            f"`steps` is at least 2 where only changes since step 0 or gradients are recorded; got steps=1 "
            f"kinds={axes.kinds}. For example steps=4."
        )
    return axes


def check_widths(widths: Any) -> list[int]:
    """At least three distinct widths.

    Raises:
        ValueError: if they are none.
    """
    return _at_least_three("widths", widths, WIDEST, "widths=[64,128,256]")


def check_depths(depths: Any) -> list[int]:
    """At least three distinct depths.

    Raises:
        ValueError: if they are none.
    """
    return _at_least_three("depths", depths, DEEPEST, "depths=[2,4,8,16]")


def _at_least_three(name: str, numbers: Any, most: int, example: str) -> list[int]:
    rule = "needs at least 3 distinct positive whole numbers to fit a slope with an interval"
    found = whole_numbers(name, numbers, rule, example)
    if len(set(found)) < max(3, len(found)) or min(found) < 1:
        raise ValueError(f"`{name}` {rule}; got {shown(found)}. For example {example}.")
    if max(found) > most:
        raise ValueError(f"`{name}` are at most {most}; got {shown(found)}. For example {example}.")
    return found


def check_budget(budget: Any) -> float:
    """What a check may spend, in pilots.

    Raises:
        ValueError: if it is no number from 1 on.
    """
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 1 <= budget < math.inf:
        raise ValueError(
            f"`budget` is a number from 1 on, in multiples of the runs that seeds=auto begins with; got "
            f"{shown(budget)}. For example budget=3."
        )
    return float(budget)


def check_seeds(seeds: Any) -> list[int] | str:
    """The seeds: that many from zero on, or those that are listed; or "auto" as it is.

    Raises:
        ValueError: if they are none.
    """
    if isinstance(seeds, str) and seeds == AUTO:
        return AUTO
    if is_whole(seeds):
        return list(range(whole("seeds", seeds, 5, at_most=MOST_SEEDS)))
    rule = f"is 'auto', a whole number, how many, or at most {MOST_SEEDS} distinct whole numbers from 0 to 2^63 - 1"
    found = whole_numbers("seeds", seeds, rule, "seeds=5")
    if len(set(found)) < max(1, len(found)) or min(found) < 0:
        raise ValueError(f"`seeds` {rule}; got {shown(found)}. For example seeds=5.")
    return found


def check_steps(steps: Any) -> int:
    """The number of recorded forward passes.

    Raises:
        ValueError: if it is none.
    """
    if is_whole(steps) and steps < 1:
        raise ValueError(
            f"`steps` counts recorded forward passes, a whole number from 1 on; got {steps}. For example steps=4."
        )
    return whole("steps", steps, 4, at_most=MOST_STEPS)


def check_kinds(kinds: Any) -> list[str]:
    """The kinds that are recorded.

    Raises:
        ValueError: if one is unknown or there twice, or there is none.
    """
    example = "kinds=['activation','delta']"
    found = texts("kinds", kinds, example)
    if not found or len({*found} & {*KINDS}) < len(found):
        raise ValueError(
            f"`kinds` is a selection of {list(KINDS)}, distinct ones; got {shown(found)}. For example {example}."
        )
    return found


def check_modules(modules: Any) -> list[str] | None:
    """Names or patterns of modules; None for all of them.

    Raises:
        ValueError: if they are none.
    """
    if modules is None:
        return None
    found = texts("modules", modules, "modules=['blocks.0.*']")
    if not found:
        raise ValueError("`modules` needs at least one name or pattern; got []. For example modules=['blocks.0.*'].")
    return found
