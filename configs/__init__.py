"""Hydra's configuration tree; installed as the package ``coordcheck.configs``."""
