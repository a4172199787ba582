"""Verdicts in words, tables and pictures. Nothing is computed here, and no torch imported."""
