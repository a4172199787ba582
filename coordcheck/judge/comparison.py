"""Two checks side by side: which curves changed how they scale, and by how much."""

from dataclasses import dataclass

import pandas as pd

from coordcheck.judge.baseline import TOLERANCE, Baseline, beside, what_differs
from coordcheck.judge.ruling import describe_change


@dataclass(frozen=True, eq=False)
class Comparison:
    """What became of each curve from one check to another.

    Attributes:
        before: The name of the first.
        after: The name of the second.
        changes: One row per curve of either, see :func:`coordcheck.judge.baseline.compare`.
        differing: In which settings they differ, as sentences.
    """

    before: str
    after: str
    changes: pd.DataFrame
    differing: list[str]

    @classmethod
    def of(
        cls, before: Baseline, after: Baseline, names: tuple[str, str] = ("A", "B"), tolerance: float = TOLERANCE
    ) -> "Comparison":
        """Compares stored slopes, whatever they are of.

        Raises:
            ValueError: if they have no curve in common.
        """
        return cls(*names, beside(before, after, tolerance), what_differs(before, after, "before", "after"))

    @property
    def changed(self) -> pd.DataFrame:
        """The curves that changed, largest change first."""
        return self.changes[self.changes["status"] != "same"]

    @property
    def verdict(self) -> str:
        """Of the change: "fail" if a curve scales otherwise, "inconclusive" if some cannot be compared, or "pass"."""
        found = set(self.changes["status"])
        return "fail" if "regressed" in found else "pass" if found == {"same"} else "inconclusive"

    def sentence(self) -> str:
        """What changed, in one line."""
        counts = self.changes["status"].value_counts()
        moved, all_of_them = counts.get("regressed", 0), len(self.changes)
        if self.verdict == "pass":
            return f"SAME: all {all_of_them} curves scale in {self.after} as in {self.before}."
        words = {"regressed": "scale otherwise", "undecided": "cannot be compared"}
        words |= {"new": f"are in {self.after} alone", "vanished": f"are in {self.before} alone"}
        told = ", ".join(f"{counts[name]} {said}" for name, said in words.items() if counts.get(name))
        worst = self.changes.iloc[0]
        where = f"{worst['module']}, {worst['kind']}, step {worst['step']}: {describe_change(worst)}"
        return f"{'CHANGED' if moved else 'INCONCLUSIVE'}: of {all_of_them} curves {told}. {where}"
