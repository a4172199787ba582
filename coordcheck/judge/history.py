"""A check over time: stored slopes in the order in which they were stored, each beside the one before."""

from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

from coordcheck.judge.baseline import KEYS, TOLERANCE, Baseline
from coordcheck.judge.comparison import Comparison


@dataclass(frozen=True, eq=False)
class History:
    """The slopes of one check as it was run again and again.

    Attributes:
        slopes: One row per entry and curve: ``entry module kind step slope low high``.
        steps: What changed from each entry to the next.
        latest: What changed to the last entry from the one that it is held against; None if there is but one.
    """

    slopes: pd.DataFrame
    steps: list[Comparison]
    latest: Comparison | None

    @classmethod
    def of(cls, entries: dict[str, Baseline], since: str | None = None, tolerance: float = TOLERANCE) -> "History":
        """The history of stored slopes.

        Args:
            entries: By name, oldest first.
            since: The entry that the last one is held against; None for the one before it.
            tolerance: Smallest change of an exponent that matters.

        Raises:
            ValueError: if there is no entry, none of that name, or two that are compared have no curve in common.
        """
        names = [*entries]
        if not names:
            raise ValueError("this history is empty. For example coordcheck-history history --add checks/mine.")
        if since is not None and since not in names[:-1]:
            raise ValueError(
                f"`--since` is an entry before the last; got {since!r}. "
                + (f"For example --since {names[0]}." if len(names) > 1 else "This history has one entry.")
            )

        def compared(before: str, after: str) -> Comparison:
            try:
                return Comparison.of(entries[before], entries[after], (before, after), tolerance)
            except ValueError as error:
                raise ValueError(f"{before} and {after}: {error}") from error

        steps = [compared(*pair) for pair in pairwise(names)]
        latest = compared(since, names[-1]) if since is not None else steps[-1] if steps else None
        measured = [baseline.measured().assign(entry=name) for name, baseline in entries.items()]
        return cls(pd.concat(measured, ignore_index=True)[["entry", *KEYS, "slope", "low", "high"]], steps, latest)

    @property
    def verdict(self) -> str:
        """Of the latest change, as :attr:`Comparison.verdict`; "pass" where there is one entry."""
        return "pass" if self.latest is None else self.latest.verdict

    def sentence(self) -> str:
        """What the latest change is, in one line."""
        if self.latest is None:
            return f"FIRST: {len(self.slopes)} curves of {self.slopes['entry'].iloc[0]}, and nothing to compare with."
        return self.latest.sentence()

    def moving(self, most: int) -> pd.DataFrame:
        """The rows of the curve of each module whose slopes lie farthest apart, farthest first.

        Args:
            most: Modules at most.
        """
        spread = self.slopes.groupby(KEYS, sort=False)["slope"].agg(lambda slope: slope.max() - slope.min())
        farthest = spread.sort_values(ascending=False, kind="stable").reset_index().drop_duplicates("module")
        return farthest[KEYS].head(most).merge(self.slopes, on=KEYS)
