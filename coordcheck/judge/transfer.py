"""Whether a learning rate transfers: where the loss is lowest at each width, and how that place moves with width.

Of runs that trained at several learning rates, widths and seeds. The lowest loss is first sought with one seed, on a
coarse grid and then on finer ones around it (:func:`missing_runs`); there all seeds run. A parabola in the log of the
learning rate gives each seed its own optimum. Runs share their batches and no two widths share a seed, so the optima
are independent points, of which the exponent of width and its interval are those of :mod:`coordcheck.judge.slopes`.

Learning rates are written as octaves: log2 of the factor on every learning rate of the model.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from coordcheck.judge.looks import SEEDS_APART
from coordcheck.judge.slopes import MIN_WIDTHS, Sample
from coordcheck.judge.statistics import Array, Measured, difference

COARSE = 2.0  # octaves between learning rates at first
FINE = 1.0  # and around the lowest loss
WINDOW = 2.0  # octaves to either side of the lowest loss, to which a parabola is fitted
REACH = 20.0  # octaves from the given learning rates, beyond which nobody looks
TAIL = 5  # the last of so many parts of training is what learning rates are compared by
TOLERANCE = 0.15  # of the exponent, within which a learning rate transfers
MOST_AT_NARROWEST = 8  # seeds, fewer at wider widths, whose optima scatter less and cost more
FEWEST = 2  # seeds at a width: one says nothing of the noise


def seeds_for(widths: Sequence[int], count: int | None, first: int = 0) -> dict[int, list[int]]:
    """Seeds of the runs at each width, no two widths with the same one.

    Args:
        widths: d_model.
        count: At each width; None for 8, 6, 4, 3 at widths that double.
        first: Of the seeds; another one repeats everything with fresh weights.
    """
    least = min(widths)
    counts = {
        w: max(FEWEST, round(MOST_AT_NARROWEST * (w / least) ** -0.5)) if count is None else count for w in widths
    }
    return {w: list(range(first + SEEDS_APART * w, first + SEEDS_APART * w + n)) for w, n in sorted(counts.items())}


def outcome(losses: Array, steps: int) -> float:
    """What a run comes to: the mean loss of the last fifth of its steps; infinite where it diverged.

    It did where a loss is not finite, or the last ones are above the first.

    Args:
        losses: Of each step, up to one that is not finite.
        steps: That a run has unless it diverged.
    """
    if not np.isfinite(losses).all():
        return math.inf
    last = float(losses[steps - max(1, steps // TAIL) :].mean())
    return last if last <= losses[0] else math.inf


def losses_of(outcomes: Mapping[tuple[float, int, int], float]) -> pd.DataFrame:
    """One row per run: ``octave width seed loss``.

    Args:
        outcomes: By octave, width and seed, see :func:`outcome`.
    """
    rows = [(*run, loss) for run, loss in outcomes.items()]
    table = pd.DataFrame(rows, columns=["octave", "width", "seed", "loss"])
    return table.sort_values(["width", "octave", "seed"], ignore_index=True)


def missing_runs(
    losses: pd.DataFrame, width: int, seeds: Sequence[int], start: float
) -> tuple[list[float], Sequence[int]]:
    """What to run next at a width: octaves, and the seeds to run them with; nothing where the lowest loss is known.

    Args:
        losses: So far, see :func:`losses_of`.
        width: d_model.
        seeds: Of that width; the first one searches.
        start: Where to look first.
    """
    here = losses[losses["width"] == width]
    searched = here[here["seed"] == seeds[0]].set_index("octave")["loss"].sort_index()
    if wanted := _search(searched, start):
        return wanted, seeds[:1]
    if _lowest_at(searched) in (searched.index[0], searched.index[-1]):
        return [], seeds
    of_all = here.groupby("octave").agg(loss=("loss", "mean"), runs=("seed", "size"))
    complete = of_all.loc[of_all["runs"] == len(seeds), "loss"]
    best = _lowest_at(complete if len(complete) else searched)
    steps = round(WINDOW / FINE)
    around = [best + step * FINE for step in range(-steps, steps + 1)]
    return [octave for octave in around if octave not in complete.index and abs(octave) <= REACH], seeds


def _lowest_at(losses: pd.Series) -> float:
    """The octave of the lowest loss."""
    return float(losses.index[int(np.argmin(losses.to_numpy(dtype=float)))])


def _search(searched: pd.Series, start: float) -> list[float]:
    """Octaves that the search for the lowest loss wants next."""
    if not len(searched):
        return [start - COARSE, start, start + COARSE]
    octaves = [float(octave) for octave in searched.index]
    best = _lowest_at(searched)
    if best in (octaves[0], octaves[-1]):
        further = best - COARSE if best == octaves[0] else best + COARSE
        return [further] if abs(further) <= REACH else []
    below, above = (octaves[octaves.index(best) + side] for side in (-1, 1))
    return [(best + other) / 2 for other in (below, above) if abs(best - other) > FINE]


def optima_of(losses: pd.DataFrame) -> pd.DataFrame:
    """Where each seed's loss is lowest.

    Returns:
        One row per width and seed that ran around the lowest mean loss of its width: ``width seed octave loss``, the
        lowest point of a parabola through its losses there. A width whose lowest loss is at the edge of what was tried
        has none.
    """
    found = []
    for width in sorted({*losses["width"]}):
        here = losses[losses["width"] == width]
        table = here.pivot(index="octave", columns="seed", values="loss").sort_index()
        mean = table.dropna().mean(axis=1) if len(table.dropna()) else table.mean(axis=1)
        best = _lowest_at(mean)
        if not table.index.min() < best < table.index.max() or not math.isfinite(mean[best]):
            continue
        near = table[(table.index >= best - WINDOW) & (table.index <= best + WINDOW)]
        for seed, values in near.items():
            known = values[np.isfinite(values)]
            if len(known) >= MIN_WIDTHS:
                octave, loss = _vertex(known.index.to_numpy(dtype=float), known.to_numpy())
                found.append({"width": width, "seed": seed, "octave": octave, "loss": loss})
    return pd.DataFrame(found, columns=["width", "seed", "octave", "loss"])


def _vertex(octaves: Array, losses: Array) -> tuple[float, float]:
    """The lowest point of a parabola through the points, within them; the lowest of them where it has none."""
    best = int(losses.argmin())
    square, linear, _ = coefficients = np.polyfit(octaves - octaves[best], losses, 2)
    if square <= 0:
        return float(octaves[best]), float(losses[best])
    at = float(np.clip(-linear / (2 * square), octaves[0] - octaves[best], octaves[-1] - octaves[best]))
    return float(octaves[best]) + at, max(0.0, float(np.polyval(coefficients, at)))


@dataclass(frozen=True, eq=False)
class TransferCurves:
    """Losses of one model at several learning rates and widths, and what they say.

    Attributes:
        name: Of the model.
        losses: One row per run: ``octave width seed loss lr``; infinite where it diverged.
        optima: One row per width and seed: ``width seed octave loss lr``.
        exponent: By which power of width the best learning rate moves; NaN if fewer than three widths have one.
        ci_low: Of its interval.
        ci_high: Likewise.
        verdict: "pass" if the interval lies within 0.15 of 0, "fail" if all of it lies beyond, else "inconclusive".
    """

    name: str
    losses: pd.DataFrame
    optima: pd.DataFrame
    exponent: float
    ci_low: float
    ci_high: float
    verdict: str

    @classmethod
    def of(cls, name: str, losses: pd.DataFrame, lr: float, confidence: float = 0.95) -> "TransferCurves":
        """Judges losses.

        Args:
            name: Of the model.
            losses: See :func:`losses_of`.
            lr: The learning rate at octave 0.
            confidence: Of the interval.
        """
        losses = losses.assign(lr=lr * 2.0 ** losses["octave"])
        optima = optima_of(losses)
        optima["lr"] = lr * 2.0 ** optima["octave"]
        exponent, half = _exponent(optima, confidence)
        low, high = exponent - half, exponent + half
        if math.isnan(exponent) or not math.isfinite(half):
            verdict = "inconclusive"
        elif low > TOLERANCE or high < -TOLERANCE:
            verdict = "fail"
        else:
            verdict = "pass" if low >= -TOLERANCE and high <= TOLERANCE else "inconclusive"
        return cls(name, losses, optima, exponent, low, high, verdict)

    @property
    def widths(self) -> list[int]:
        """At which it was trained."""
        return sorted(int(width) for width in self.losses["width"].unique())

    @property
    def best(self) -> pd.DataFrame:
        """By width, the geometric mean of the best learning rates of its seeds, and the mean of their losses."""
        table = self.optima.groupby("width").agg(octave=("octave", "mean"), loss=("loss", "mean"))
        scale = float(self.losses["lr"].iloc[0] / 2.0 ** self.losses["octave"].iloc[0])
        return table.assign(lr=scale * 2.0 ** table["octave"])

    def wider_is_better(self, confidence: float = 0.95) -> bool | None:
        """Whether at its best learning rate the loss falls from each width to the next; None where noise hides it."""
        by_width = [np.asarray(of["loss"], dtype=float) for _, of in self.optima.groupby("width")]
        said: bool | None = True
        for narrow, wide in itertools.pairwise(by_width):
            change, half, _ = difference(Measured.of(narrow), Measured.of(wide), confidence)
            if change > half:
                return False
            said = said if change < -half else None
        return said

    def sentence(self) -> str:
        """The verdict, with its numbers."""
        missing = sorted({*self.widths} - {*self.optima["width"]})
        if math.isnan(self.exponent):
            return (
                f"inconclusive: the loss has no lowest point among the learning rates that were tried at "
                f"{_widths(missing)}; a best learning rate must be known at {MIN_WIDTHS} widths."
            )
        scales = f"width^{self.exponent:+.2f} [{self.ci_low:+.2f}, {self.ci_high:+.2f}]"
        if self.verdict == "pass":
            return f"transfers: the best learning rate moves like {scales}."
        if self.verdict == "inconclusive":
            return (
                f"inconclusive: the best learning rate moves like {scales}, and transfer means within {TOLERANCE} of "
                f"0. More seeds narrow that."
            )
        first, last = min(self.optima["width"]), max(self.optima["width"])
        times = float(self.best.loc[first, "lr"] / self.best.loc[last, "lr"])
        off = f"{times:.2g} times too large" if times > 1 else f"{1 / times:.2g} times too small"
        verb = "falls" if self.exponent < 0 else "grows"
        return (
            f"does not transfer: the best learning rate {verb} like {scales}. Tuned at {first}, it is {off} at {last}."
        )

    def wider_sentence(self) -> str:
        """Whether wider is better, with the losses."""
        numbers = ", ".join(f"{loss:.3f}" for loss in self.best["loss"])
        said = {True: "Wider is better", False: "Wider is not always better", None: "Whether wider is better is open"}
        return (
            f"{said[self.wider_is_better()]} at the best learning rate: loss {numbers} at {_widths(self.best.index)}."
        )


def _widths(widths: Sequence[int] | pd.Index) -> str:
    listed = ", ".join(str(width) for width in widths)
    return f"width{'s' * (len(widths) != 1)} {listed}"


def _exponent(optima: pd.DataFrame, confidence: float) -> tuple[float, float]:
    """The slope of log2 of the best learning rate over log2 of width, and half its interval."""
    table = optima.pivot(index="seed", columns="width", values="octave")
    if table.shape[1] < MIN_WIDTHS:
        return math.nan, math.nan
    curve = pd.MultiIndex.from_tuples([("optimum",)])
    sample = Sample(curve, np.log2(table.columns.to_numpy(dtype=float)), table.to_numpy(dtype=float)[None])
    slope = sample.slopes()
    return float(slope.value[0]), float(slope.half_width(confidence)[0])
