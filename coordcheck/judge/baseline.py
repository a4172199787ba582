"""Slopes of a check held against slopes stored earlier: did this change how the model scales?

A curve regressed if its change is beyond noise and beyond a tolerance. Beyond noise: Welch's t test of the
seeds' slopes, with Holm's correction for the number of curves, so that a comparison of hundreds of them raises a
false alarm as seldom as one; where it rejects, Welch's interval of the difference excludes 0 too.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from coordcheck.config.load import flatten
from coordcheck.config.schema import NO_NUMBERS
from coordcheck.judge.judgement import Judgement
from coordcheck.judge.slopes import seed_slopes
from coordcheck.judge.statistics import Measured, difference, holm
from coordcheck.records.files import write_text
from coordcheck.records.names import shown
from coordcheck.records.read import read_json
from coordcheck.records.schema import KINDS, independent

KEYS = ["module", "kind", "step"]
TOLERANCE = 0.05
FORMAT = 1
DIGITS = 6
LARGEST = (
    1e4  # of an exponent: from the smallest to the largest float64 are 2098 doublings, over widths 1 to 2 at least
)
Slope = list[float] | Measured | str  # of each seed; or of independent runs; or what a curve without one is
SCHEMA = {
    "type": "object",
    "required": ["format", "config", "corpus_sha256", "versions", "curves"],
    "properties": {
        "format": {"const": FORMAT},
        "config": {"type": "object"},
        "corpus_sha256": {"type": ["string", "null"]},
        "versions": {"type": "object", "additionalProperties": {"type": "string"}},
        "curves": {"type": "array"},
    },
}
STATES = ("nonfinite", "zero", "unknown")  # what a curve without a slope is


@dataclass(frozen=True, eq=False)
class Baseline:
    """Stored slopes.

    Attributes:
        curves: For each (module, kind, step) its slope per seed, or of independent runs its slope with its error; a
            word instead where there is none.
        config: What was run, flat, without what does not bear on slopes.
        corpus_sha256: Of the text.
        versions: Of the packages.
    """

    curves: dict[tuple[str, str, int], Slope]
    config: dict[str, Any]
    corpus_sha256: str | None
    versions: dict[str, str]

    @classmethod
    def of(cls, check: Judgement) -> "Baseline":
        """The slopes of a check."""
        alone = independent(check.records)
        per_seed = seed_slopes(check.records).groupby(KEYS)["slope"].agg(lambda s: s.dropna().tolist())
        curves: dict[tuple[str, str, int], Slope] = {}
        for _, row in check.slopes.iterrows():
            key = (str(row["module"]), str(row["kind"]), int(row["step"]))
            known = np.isfinite(row["error"])
            noise = (round(float(row[name]), DIGITS) if known else 0.0 for name in ("error", "df"))
            measured = Measured(round(float(row["slope"]), DIGITS), *noise)
            curves[key] = _state(row) or (measured if alone else [round(slope, DIGITS) for slope in per_seed[key]])
        return cls(curves, flatten(check.config, without=NO_NUMBERS), check.corpus_sha256, check.versions)

    def measured(self) -> pd.DataFrame:
        """The slope of each curve: ``module kind step slope low high``, with its 95 % interval; NaN where none is."""
        rows = []
        for key, slopes in self.curves.items():
            known = None if isinstance(slopes, str) else _measured(slopes)
            value, half = (np.nan, np.nan) if known is None else (known.value, known.half_width(0.95))
            rows.append([*key, value, value - half, value + half])
        return pd.DataFrame(rows, columns=[*KEYS, "slope", "low", "high"])

    def write(self, path: Path) -> None:
        """Writes JSON with one line per curve, sorted, so that a diff shows what changed."""
        config = json.dumps(self.config, sort_keys=True, default=str)
        head = {
            "format": FORMAT,
            "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
            "corpus_sha256": self.corpus_sha256,
            "versions": self.versions,
            "config": json.loads(config),
        }
        lines = [json.dumps(_line(key, self.curves[key])) for key in sorted(self.curves)]
        text = json.dumps(head, indent=1)[:-2] + ',\n "curves": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"
        write_text(path, text)

    @classmethod
    def read(cls, path: Path) -> "Baseline":
        """Reads what :meth:`write` wrote.

        Raises:
            ValueError: if the file is missing or no baseline, or a curve has no numbers; naming file and curve.
        """
        example = f"coordcheck-gate DIR --baseline {path} --update writes a baseline."
        content = read_json(path, SCHEMA, example, strict=False)  # below, what is no number is told with its curve
        curves: dict[tuple[str, str, int], Slope] = {}
        for number, line in enumerate(content["curves"], 1):
            key, slopes = _read_line(line, f"{path}, curve {number}")
            if key in curves:
                raise ValueError(f"{path}, {_name(key)}: it is there twice. Keep one, or write the baseline anew.")
            curves[key] = slopes
        return cls(curves, content["config"], content["corpus_sha256"], content["versions"])


def _read_line(line: Any, where: str) -> tuple[tuple[str, str, int], Slope]:
    """A curve of a stored baseline, with its slopes or its state.

    Raises:
        ValueError: naming file, curve and rule.
    """
    module, kind, step = (line.get(name) for name in KEYS) if isinstance(line, dict) else (None, None, None)
    if not isinstance(module, str) or kind not in KINDS or type(step) is not int or step < 0:
        raise ValueError(
            f"{where}: a curve has a module, a kind of {list(KINDS)} and a step from 0; got {shown(line)}. "
            f'For example {{"module": "head", "kind": "delta", "step": 1, "seeds": [0.01, -0.02]}}.'
        )
    key, seeds, state = (module, kind, step), line.get("seeds"), line.get("state")
    if state in STATES and seeds == []:
        return key, str(state)
    if state is None and isinstance(seeds, list) and seeds and all(map(_is_slope, seeds)):
        return key, [round(float(slope), DIGITS) for slope in seeds]
    measured = [line.get(name) for name in ("slope", "error", "df")]
    if state is None and seeds is None and all(map(_is_slope, measured)) and min(measured[1:]) >= 0:
        return key, Measured(*map(float, measured))
    raise ValueError(
        f"{where} ({_name(key)}): `seeds` are exponents of width, finite numbers, or none and `state` is one of "
        f'{list(STATES)}; got {shown(seeds)} and state {shown(state)}. For example "seeds": [0.01, -0.02].'
    )


def _is_slope(value: Any) -> bool:
    """Whether a value is an exponent of width that sizes in floating point can have; for Python True is a number."""
    return type(value) in (int, float) and abs(value) <= LARGEST


def _name(key: tuple[str, str, int]) -> str:
    module, kind, step = key
    return f"{shown(module)}, {kind}, step {step}"


def _state(row: pd.Series) -> str | None:
    """Why a curve has no slope, or None if it has one."""
    if row["n_nonfinite"] > 0:
        return "nonfinite"
    if row["n_zero"] > 0:
        return "zero"
    return "unknown" if np.isnan(row["slope"]) else None


def _line(key: tuple[str, str, int], slopes: Slope) -> dict[str, Any]:
    line: dict[str, Any] = dict(zip(KEYS, key, strict=True))
    if isinstance(slopes, str):
        return line | {"state": slopes, "seeds": []}
    measured = _measured(slopes)
    half = measured.half_width(0.95)
    ends = (measured.value - half, measured.value + half)
    line |= {"slope": round(measured.value, DIGITS)}
    line |= {"interval": [round(end, DIGITS) for end in ends] if np.isfinite(half) else None}
    return line | ({"seeds": slopes} if isinstance(slopes, list) else {"error": measured.error, "df": measured.df})


def _measured(slopes: list[float] | Measured) -> Measured:
    return slopes if isinstance(slopes, Measured) else Measured.of(np.asarray(slopes))


def refuse_failing(check: Judgement, accepted: bool, option: str) -> None:
    """Makes sure that no failing check becomes the truth for those to come unless somebody accepted that.

    Args:
        check: What is about to be stored.
        accepted: Whether `option` was given.
        option: That accepts it, for the message.

    Raises:
        ValueError: if the check fails.
    """
    if check.verdict == "fail" and not accepted:
        raise ValueError(
            f"the baseline was not written, for later checks would be held against a failing one. {check.sentence()} "
            f"Mend the model, or store it all the same with `{option}`."
        )


def refuse_another(baseline: Baseline, check: Judgement) -> None:
    """Makes sure that a baseline is of the same configuration and corpus as a check.

    Raises:
        ValueError: naming what differs.
    """
    differing = what_differs(baseline, Baseline.of(check), "in the baseline", "now")
    if differing:
        raise ValueError(
            f"the baseline is of another check; these differ: {'; '.join(differing)}. Compare like with like, or "
            f"write a new baseline: coordcheck-gate DIR --baseline FILE --update."
        )


def what_differs(before: Baseline, now: Baseline, there: str, here: str) -> list[str]:
    """In which settings that bear on slopes, and in which text, two differ, as sentences that say where each is."""
    settings = [json.loads(json.dumps(each.config, default=str)) for each in (before, now)]
    differing = [
        f"{key}: {settings[0].get(key)!r} {there}, {settings[1].get(key)!r} {here}"
        for key in sorted(settings[0].keys() | settings[1].keys())
        if settings[0].get(key) != settings[1].get(key)
    ]
    if before.corpus_sha256 != now.corpus_sha256:
        differing.append(
            f"corpus_sha256: {before.corpus_sha256} {there} (Python {before.versions.get('python')}), "
            f"{now.corpus_sha256} {here} (Python {now.versions.get('python')})"
        )
    return differing


def compare(
    check: Judgement, baseline: Baseline, tolerance: float = TOLERANCE, confidence: float = 0.95
) -> pd.DataFrame:
    """Each curve of a check beside the same curve of a baseline.

    Args:
        check: What the model does now.
        baseline: What it did.
        tolerance: Smallest change of an exponent that matters.
        confidence: One minus the probability of any false alarm, over all curves together.

    Returns:
        One row per curve of either, largest change first among each status: ``module kind step status before now
        change low high p note``. ``status`` is "regressed", "undecided" (changed, but a single seed
        says nothing of noise; or without a number before and now, so that there is nothing to compare), "new",
        "vanished" or "same"; ``before`` and ``now`` are mean slopes, NaN with a word in ``note`` where there is none;
        ``low high`` Welch's interval of the change and ``p`` its p-value after Holm's correction.

    Raises:
        ValueError: see :func:`refuse_another`, or if check and baseline have no curve in common.
    """
    refuse_another(baseline, check)
    return beside(baseline, Baseline.of(check), tolerance, confidence)


def beside(baseline: Baseline, now: Baseline, tolerance: float = TOLERANCE, confidence: float = 0.95) -> pd.DataFrame:
    """Each curve of stored slopes beside the same curve of others, of whatever configuration; see :func:`compare`.

    Raises:
        ValueError: if they have no curve in common.
    """
    if not now.curves.keys() & baseline.curves.keys():
        raise ValueError(
            f"the baseline has no curve in common with the check: {_first(baseline)} there, {_first(now)} here. "
            f"Compare like with like, or write a new baseline: coordcheck-gate DIR --baseline FILE --update."
        )
    keys = [*now.curves, *(key for key in baseline.curves if key not in now.curves)]
    table = pd.DataFrame([_compare_one(key, baseline.curves.get(key), now.curves.get(key)) for key in keys])
    table["p"] = holm(table["p"].to_numpy(dtype=float))
    moved = (table["change"].abs() > tolerance) & (table["p"] < 1 - confidence)
    table["status"] = table["status"].where(~moved, "regressed")
    alone = (table["change"].abs() > tolerance) & np.isinf(table["high"])
    table["status"] = table["status"].where(~alone, "undecided")
    rank = table["status"].map({"regressed": 0, "undecided": 1, "vanished": 2, "new": 3, "same": 4})
    order = pd.DataFrame({"rank": rank, "size": -table["change"].abs().fillna(np.inf)})
    return table.loc[order.sort_values(["rank", "size"], kind="stable").index].reset_index(drop=True)


def _compare_one(key: tuple[str, str, int], before: Slope | None, now: Slope | None) -> dict[str, Any]:
    row: dict[str, Any] = dict(zip(KEYS, key, strict=True))
    row |= {"status": "same", "before": _mean(before), "now": _mean(now)}
    row |= {"change": np.nan, "low": np.nan, "high": np.nan, "p": np.nan, "note": ""}
    if before is None or now is None:
        return row | {"status": "new" if before is None else "vanished"}
    if isinstance(before, str) or isinstance(now, str):
        words = [value if isinstance(value, str) else "a slope" for value in (before, now)]
        if before == now == "zero":
            return row | {"note": "zero, as in the baseline"}
        return row | {
            "status": "undecided" if before == now else "regressed",
            "note": f"was {words[0]}, is {words[1]}" + (": nothing to compare" if before == now else ""),
        }
    change, half, p = difference(_measured(before), _measured(now))
    if np.isnan(change) or np.isnan(p):
        return row | {"status": "undecided", "note": "not a number: nothing to compare"}
    return row | {"change": change, "low": change - half, "high": change + half, "p": p}


def _first(baseline: Baseline) -> str:
    """How many curves there are, and one of them."""
    first = next(iter(baseline.curves), None)
    count = len(baseline.curves)
    return f"{count} curve{'' if count == 1 else 's'}" + ("" if first is None else f" (the first is {_name(first)})")


def _mean(slopes: Slope | None) -> float:
    return np.nan if slopes is None or isinstance(slopes, str) or slopes == [] else _measured(slopes).value
