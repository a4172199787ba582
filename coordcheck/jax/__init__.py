"""Coordinate checks of JAX models: flax.linen, flax.nnx, or a pair (init, apply). Without torch.

Installed by ``pip install 'coordcheck[jax]'``.
"""

from coordcheck.jax.check import audit, coord_check
from coordcheck.jax.marks import tap
from coordcheck.jax.records import records
from coordcheck.jax.scale import scale_by_width
from coordcheck.jax.told import value_and_grad

__all__ = ["audit", "coord_check", "records", "scale_by_width", "tap", "value_and_grad"]
