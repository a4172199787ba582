"""Roles of parameters from how they are used and how that grows with width."""

from collections.abc import Mapping, Sequence

from coordcheck.jax.uses import Use

Shape = tuple[int, ...]


def roles_of(uses: Sequence[Sequence[Use]], shapes: Sequence[Mapping[str, Shape]]) -> dict[str, str]:
    """The role of each parameter; an embedding that is a readout too is an "input".

    Args:
        uses: At each width, the same ones in the same order.
        shapes: Of the parameters, at each width.
    """
    narrow, wide = shapes[0], shapes[-1]
    found: dict[str, str] = {}
    for name in narrow:
        roles = {role for role, *_ in by_role(name, uses)}
        order = ("input", "hidden", "readout", "projection", "vector", "fixed")
        found[name] = next((role for role in order if role in roles), role_of_shape(narrow[name], wide[name]))
    return found


def by_role(name: str, uses: Sequence[Sequence[Use]]) -> list[tuple[str, list[Use]]]:
    """The uses of a parameter, each with its role and as it is at every width."""
    together = list(zip(*uses, strict=True)) if len({len(of) for of in uses}) == 1 else []
    mine = [list(use) for use in together if {one.parameter for one in use} == {name}]
    matrices = [use for use in mine if not use[0].entrywise]
    return [(_role(use), use) for use in matrices or mine]


def _role(use: Sequence[Use]) -> str:
    into, out = (len({getattr(one, fan) for one in use}) > 1 for fan in ("fan_in", "fan_out"))
    if use[0].entrywise:
        return "vector" if out else "fixed"
    if into and out:
        return "hidden"
    if out:
        return "input"
    return ("readout" if use[0].returned else "projection") if into else "fixed"


def role_of_shape(narrow: Shape, wide: Shape) -> str:
    """The role of a parameter whose uses were not read; the last dimension is taken for the fan-out."""
    grows = [a != b for a, b in zip(narrow, wide, strict=True)]
    if not any(grows):
        return "fixed"
    if len(grows) == 1:
        return "vector"
    return "hidden" if sum(grows) > 1 else "input" if grows[-1] else "readout"
