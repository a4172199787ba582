"""Doctests of what needs JAX are collected where JAX is."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("flax") else ["coordcheck/jax/*", "tests/jax/*"]
