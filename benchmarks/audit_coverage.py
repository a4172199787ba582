"""How often the audit's interval of an init exponent holds the exponent, from one entry to a million.

Parameters of a known exponent, 0, drawn anew for each trial, with as many entries at each of three widths::

    python benchmarks/audit_coverage.py
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from coordcheck.config.load import default_gate
from coordcheck.observe.parameters import _error, _exponents
from coordcheck.observe.writes import root_mean_square

WIDTHS = [64, 128, 256]
TRIALS = {1: 1000, 2: 4000, 3: 4000, 5: 4000, 10: 4000, 30: 4000, 100: 4000, 1000: 4000}
TRIALS |= {10_000: 2000, 100_000: 1000, 1_000_000: 200}
DRAWS: dict[str, Callable[[int], Tensor]] = {
    "normal": torch.randn,
    "uniform": lambda n: torch.rand(n) - 0.5,
    "truncated normal": lambda n: torch.nn.init.trunc_normal_(torch.empty(n)),
}


def facts(draw: Callable[[int], Tensor], entries: int, trials: int) -> pd.DataFrame:
    """What an audit knows of as many parameters of one width."""
    drawn = [draw(entries) for _ in range(trials)]
    sizes = [root_mean_square(x) for x in drawn]
    errors = [_error(x, size) for x, size in zip(drawn, sizes, strict=True)]
    return pd.DataFrame({"init_std": sizes, "error": errors, "lr": np.nan, "decay": np.nan, "eps": np.nan})


def main() -> None:
    """Prints a row for each number of entries."""
    torch.manual_seed(0)
    tolerance = default_gate().tolerance.exponent
    print(f"| entries | trials | {' | '.join(DRAWS)} | median half width | called a fault |")
    print(f"| ---: | ---: |{' ---: |' * len(DRAWS)} ---: | ---: |")
    for entries, trials in TRIALS.items():
        found = [_exponents(WIDTHS, [facts(draw, entries, trials) for _ in WIDTHS]) for draw in DRAWS.values()]
        covered = [100 * ((of["std_low"] <= 0) & (of["std_high"] >= 0)).mean() for of in found]
        every = pd.concat(found)
        half = (every["std_high"] - every["std_low"]).median() / 2
        fault = 100 * ((every["std_low"] > tolerance) | (every["std_high"] < -tolerance)).mean()
        shares = " | ".join(f"{share:.1f} %" for share in covered)
        print(f"| {entries} | {trials} | {shares} | {half:.4f} | {fault:.2f} % |", flush=True)


if __name__ == "__main__":
    main()
