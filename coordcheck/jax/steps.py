"""What an optax transformation does with each parameter: tried, with stand-ins of the same shapes."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from coordcheck.jax.told import names_of

WARMUP = 3  # updates before one counts
HEAVY = 1000.0  # as large as a weight gets, where a light one is 1
SAME = 1e-3  # how much equal steps may differ
FLAT = 0.9  # part of the singular values that a step of unit operator norm has in common
MOST = 512  # entries of a matrix dimension that is tried for equal singular values


class Step(NamedTuple):
    """What a step of an optimizer does.

    Attributes:
        rule: "adam" for a size that does not depend on the gradient, "sgd" for one proportional to it, "adafactor" for
            one proportional to the weight, "muon" for one of equal singular values; empty where it is none of these.
        size: Root mean square of a step, by "sgd" of its ratio to the gradient, by "muon" its operator norm; NaN where
            it is not known.
        decay: By how much of itself a weight shrinks, learning rate times weight decay.
    """

    rule: str
    size: float
    decay: float


def try_steps(transformation: optax.GradientTransformation, parameters: Any) -> dict[str, Step]:
    """How a step depends on what it is given, by parameter.

    Args:
        transformation: Of these parameters.
        parameters: Arrays, or their shapes.
    """
    leaves, tree = jax.tree.flatten(parameters)
    generator = np.random.default_rng(0)
    signs = [generator.choice([-1.0, 1.0], leaf.shape) for leaf in leaves]
    # away from zero, where Adam's epsilon would count
    gradients = [(0.5 + generator.random(leaf.shape)) * s for leaf, s in zip(leaves, signs, strict=True)]
    update = jax.jit(transformation.update)

    def moved(weight: float) -> list[Any]:
        of = tree.unflatten([np.full(leaf.shape, weight, np.float32) for leaf in leaves])
        given = tree.unflatten([g.astype(np.float32) for g in gradients])
        state = transformation.init(of)
        for _ in range(WARMUP):
            steps, state = update(given, state, of)
        return [np.asarray(step, np.float64) for step in jax.tree.leaves(steps)]

    try:
        light, heavy = moved(1.0), moved(HEAVY)
    except Exception:  # whatever a transformation raises that wants more than these, the value of the loss for example
        return {name: Step("", math.nan, math.nan) for name in names_of(parameters)}
    rows = zip(names_of(parameters), gradients, light, heavy, strict=True)
    return {name: _step(gradient, one, other) for name, gradient, one, other in rows}


def _step(gradient: Any, light: Any, heavy: Any) -> Step:
    """Of two steps with the same gradients: what grows with the weight alone is decay, or Adafactor's."""
    if not gradient.size or not np.isfinite(light).all() or not np.isfinite(heavy).all():
        return Step("", math.nan, math.nan)
    grown = (heavy - light) / (HEAVY - 1)  # of a step, for each unit of weight
    decay = -grown.mean()
    own = light - grown  # what a weight of zero would get
    if _rms(own) < SAME * _rms(light) and _rms(light) > 0:
        return Step("adafactor", _rms(light), 0.0)
    decay = float(decay) if abs(decay) > 1e-3 * SAME * _rms(light) else 0.0
    size, ratio = np.abs(own), np.abs(own / gradient)
    if not size.max() > 0:
        return Step("", math.nan, decay)
    if size.std() < SAME * size.mean():
        return Step("adam", _rms(own), decay)
    if ratio.std() < SAME * ratio.mean():
        return Step("sgd", float(ratio.mean()), decay)
    if own.ndim == 2 and _is_flat(own):
        return Step("muon", float(np.linalg.norm(own[:MOST, :MOST], 2)), decay)
    return Step("", math.nan, decay)


def _rms(x: Any) -> float:
    return float(np.sqrt(np.square(x).mean()))


def _is_flat(step: Any) -> bool:
    values = np.linalg.svd(step, compute_uv=False)
    return bool(values[0] > 0 and (values > values[0] / 2).mean() > FLAT)
