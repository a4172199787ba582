"""Models that benchmarks/faults.py checks, correct ones and ones with a planted fault."""
