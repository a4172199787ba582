"""The loss before training, beside that of a model that knows nothing: ln V.

Logits of a readout whose std does not shrink with width grow, and with them the initial loss, like E[max of V normals]
times the size of the logits: Hugging Face's T5 starts at 32.7 with width 64 and at 112.6 with width 768, where ln V is
10.4 (https://github.com/google-research/t5x/issues/1477).
"""

import math
from dataclasses import dataclass

import pandas as pd

from coordcheck.records.schema import CLASSES, LOSS


@dataclass(frozen=True)
class InitialLoss:
    """The mean loss over seeds at step 0.

    Attributes:
        narrowest: At the smallest width.
        widest: At the largest width.
        chance: ln V, where V is the last dimension of the last readout's output; NaN if no readout was recorded.
    """

    narrowest: float
    widest: float
    chance: float

    @classmethod
    def of(cls, records: pd.DataFrame) -> "InitialLoss | None":
        """That of a check's records; None if they hold no loss."""
        rows = records[(records["role"] == LOSS) & (records["step"] == 0)]
        means = rows.groupby("width")["l1"].mean()
        if not len(means):
            return None
        return cls(float(means.iloc[0]), float(means.iloc[-1]), math.log(records.attrs.get(CLASSES, math.nan)))

    def exceeds_chance(self, nats: float) -> bool:
        """Whether the widest model starts more than so much above chance."""
        return self.widest > self.chance + nats

    def numbers(self) -> str:
        """At the smallest and the largest width, and by chance."""
        chance = "" if math.isnan(self.chance) else f", ln V = {self.chance:.2f}"
        return f"{self.narrowest:.2f} (narrowest) to {self.widest:.2f} (widest){chance}."

    def __str__(self) -> str:
        return f"Initial loss: {self.numbers()}"

    def excess(self) -> str:
        """How far one that is too high is from chance."""
        return f"initial loss {self.widest:.1f} where ln V = {self.chance:.1f}"
