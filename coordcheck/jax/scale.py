"""muP for optax: the learning rates of the table of exponents, as a transformation that is chained behind any other."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import optax

from coordcheck.config.arguments import whole
from coordcheck.jax.told import names_of
from coordcheck.judge.parametrizations import RULES
from coordcheck.judge.theory import forms
from coordcheck.records.names import shown

ROLES = ("input", "hidden", "readout", "projection", "vector", "fixed")


def scale_by_width(
    width: int,
    roles: Mapping[str, str],
    base_width: int = 64,
    update: str = "adam",
    multipliers: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """Multiplies the steps of each parameter by the power of width / base_width that muP wants for its role.

    Args:
        width: d_model.
        roles: By the names of parameters, as `optimizer` of :func:`coordcheck.jax.coord_check` gets them.
        base_width: Where all factors are one.
        update: How the steps before depend on the gradient: "adam", "sgd" or "muon".
        multipliers: By role the exponent of what its product is multiplied by in the forward pass, for example
            {"readout": -1.0} for logits that are divided by width / base_width; 0 for the others.

    Returns:
        An optax transformation, to be chained behind the optimizer.

    Raises:
        ValueError: naming the value, the rule and a working example.

    Example:
        >>> roles = {"up.kernel": "input", "mid.kernel": "hidden"}
        >>> tx = optax.chain(optax.sgd(1.0), scale_by_width(256, roles))
        >>> ones = {"up": {"kernel": 1.0}, "mid": {"kernel": 1.0}}
        >>> updates, _ = tx.update(ones, tx.init(ones))
        >>> float(updates["up"]["kernel"]), float(updates["mid"]["kernel"])
        (-1.0, -0.25)

    Source: Tensor Programs V, arXiv 2203.03466, tables 3, 8 and 9, by :func:`coordcheck.judge.theory.forms`.
    """
    mult = whole("width", width, 256) / whole("base_width", base_width, 64)
    if update not in RULES or update == "adafactor":
        raise ValueError(f"`update` is 'adam', 'sgd' or 'muon'; got {shown(update)}. For example update='adam'.")
    if not isinstance(roles, Mapping) or (unknown := sorted({*map(str, roles.values())} - {*ROLES})):
        got = shown(roles) if not isinstance(roles, Mapping) else ", ".join(unknown)
        raise ValueError(
            f"`roles` is a dict from names of parameters to {', '.join(ROLES)}; got {got}. For example "
            f"optimizer=lambda width, roles: optax.chain(optax.adam(1e-3), scale_by_width(width, roles))."
        )
    shifts = multipliers or {}
    known = isinstance(shifts, Mapping) and {*shifts} <= {*ROLES}
    if not known or not all(isinstance(power, int | float) and math.isfinite(power) for power in shifts.values()):
        raise ValueError(
            f"`multipliers` is a dict from some of {', '.join(ROLES)} to exponents of width; got {shown(multipliers)}. "
            f"For example multipliers={{'readout': -1.0}}."
        )
    factors = {role: mult ** forms("mup", role, update, multiplier=shifts.get(role, 0.0))[0].lr for role in ROLES}

    def labels(parameters: Any) -> Any:
        names = names_of(parameters)
        if lacking := [name for name in names if name not in roles]:
            raise ValueError(
                f"`roles` has no role for {shown(lacking)}. For example roles={{'{lacking[0]}': 'hidden'}}."
            )
        return jax.tree.unflatten(jax.tree.structure(parameters), [roles[name] for name in names])

    return optax.multi_transform({role: optax.scale(factor) for role, factor in factors.items()}, labels)
