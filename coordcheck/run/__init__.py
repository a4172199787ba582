"""Runs: one cell at one width and one seed, trained for a few steps while it is recorded."""
