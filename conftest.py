"""Doctests of what needs JAX, or somebody's trainer, are collected where that is."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("flax") else ["coordcheck/jax/*", "tests/jax/*"]
collect_ignore_glob += [f"coordcheck/callbacks/{n}.py" for n in ("transformers", "lightning") if not find_spec(n)]
