"""Do the intervals cover, does a correct model ever fail, is a fault seen? Prints the tables of benchmarks/README.md.

    python benchmarks/calibration.py coverage looks advice family checks

coverage  synthetic curves of known slope: how often the interval of :func:`coordcheck.slopes.fit` holds it
family    hundreds of curves at once: the error rate of a whole check and of a whole comparison with a baseline,
          resampled from the slopes of 40 real seeds, with their real spread and correlation; and the power to
          see one module whose slope is 0.25
checks    100 checks of small GPTs in muP, none of which may fail, and of the same GPTs in standard
          parametrization, all of which must; and checks of GPTs with one faulty layer of exponent 0.25
"""

import random
import sys
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch

from coordcheck.check import check_config
from coordcheck.config.load import default_gate, load
from coordcheck.config.schema import CheckConfig
from coordcheck.judge.baseline import TOLERANCE
from coordcheck.judge.slopes import fit, seed_slopes
from coordcheck.judge.statistics import holm, welch
from coordcheck.judge.verdict import FAILURES, judge, overall
from coordcheck.models.families import make_cell
from coordcheck.models.gpt import GPTCell
from coordcheck.records.schema import RECORD_COLUMNS
from coordcheck.report.tables import markdown_table
from coordcheck.run.queue import RunQueue, share_cores
from coordcheck.run.train import RunPlan

REPLICATES = 2000


# coverage


def curves(widths: tuple[int, ...], seeds: int, case: str, rng: np.random.Generator) -> tuple[pd.DataFrame, float]:
    """Records of REPLICATES curves of a known slope, and that slope."""
    x = np.log2(np.array(widths) / widths[0])
    shape = (REPLICATES, seeds, len(widths))
    slope = np.full((REPLICATES, seeds, 1), 0.1)
    if case != "independent noise":
        slope = slope + rng.normal(0, 0.05, slope.shape)
    logs = slope * x + rng.normal(0, 0.02, shape)
    if case == "offsets vary by seed":
        logs += rng.normal(0, 1.0, (REPLICATES, seeds, 1))
    if case == "heavy-tailed noise":
        logs += 0.05 * rng.standard_t(3, shape)
    true = 0.1
    if case == "curvature":
        logs += 0.05 * x**2
        # the exponent that a straight line has on this curve at these widths
        true += np.polyfit(x, 0.05 * x**2, 1)[0]
    index = pd.MultiIndex.from_product([range(REPLICATES), range(seeds), widths], names=["order", "seed", "width"])
    records = pd.DataFrame({"l1": 2 ** logs.ravel()}, index=index).reset_index()
    records = records.assign(step=0, module=records["order"].astype(str), role="hidden", kind="activation")
    records = records.assign(rms=records["l1"], max=records["l1"], nonfinite=0, count=1)
    return records[list(RECORD_COLUMNS)], true


def coverage() -> pd.DataFrame:
    """Share of intervals that hold the true slope."""
    rng = np.random.default_rng(0)
    rows = []
    for case in (
        "slope varies by seed",
        "offsets vary by seed",
        "heavy-tailed noise",
        "curvature",
        "independent noise",
    ):
        for seeds in (3, 5):
            row = {"case": case, "seeds": str(seeds), "nominal": "95 %"}
            for n in (4, 5, 6):
                records, true = curves(tuple(64 * 2**i for i in range(n)), seeds, case, rng)
                slopes = fit(records)
                share = ((slopes["ci_low"] <= true) & (true <= slopes["ci_high"])).mean()
                row[f"{n} widths"] = f"{100 * share:.1f} %"
            rows.append(row)
    return pd.DataFrame(rows)


# family


def records_of(config: CheckConfig, seeds: int) -> pd.DataFrame:
    """Records of many seeds of a cell."""
    device = torch.device("cpu")
    plan = RunPlan(config.steps, config.kinds, config.modules, device, config.precision)
    queue = RunQueue(
        make_cell(config), plan, config.widths, range(seeds), workers=share_cores(device, seeds)[0], title="seeds"
    )
    return queue.finish().records


def resample(records: pd.DataFrame, rng: np.random.Generator, seeds: int = 5) -> Iterator[pd.DataFrame]:
    """Records of REPLICATES / 10 checks, each of other seeds of the real ones."""
    all_seeds = records["seed"].unique()
    for _ in range(REPLICATES // 10):
        yield records[records["seed"].isin(rng.choice(all_seeds, seeds, replace=False))]


def family() -> pd.DataFrame:
    """Error rates of whole checks and comparisons, and power, by resampling real seeds."""
    rng = np.random.default_rng(0)
    rows = []
    for overrides in (
        [],
        ["optimizer.lr=0.01"],
        ["embedding=tied", "readout=constant", "optimizer.lr=0.01"],
        ["model.heads=4", "model.head_size=null"],
    ):
        config = load(overrides)
        records = records_of(config, 40)
        judged = [judge(fit(sample), config.gate, config.readout.name) for sample in resample(records, rng)]
        verdicts = Counter(overall(table, True) for table in judged)
        alarms = Counter((t["verdict"].isin(FAILURES)).any() for t in judged)
        rows.append(
            {
                "cell": " ".join(overrides) or "the default",
                "curves": str(len(judged[0])),
                "checks": str(len(judged)),
                "fail": str(alarms[True]),
                "inconclusive": str(verdicts["inconclusive"]),
                "pass": str(verdicts["pass"]),
                "fault of +0.25 seen": power(judged, config),
                **comparisons(records, rng),
            }
        )
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def power(judged: list[pd.DataFrame], config: CheckConfig) -> str:
    """How often one module would fail if the slope of its activation were 0.25 steeper from step 1 on."""
    seen = []
    for table in judged:
        moved = table[(table["kind"] == "activation") & (table["step"] > 0) & (table["role"] == "hidden")].copy()
        moved[["slope", "ci_low", "ci_high"]] += 0.25
        explodes = moved["ci_low"] > moved["expected_high"] + config.gate.tolerance.explodes["activation"]
        seen.append(explodes.groupby(moved["module"]).any())
    by_module = pd.concat(seen, axis=1).mean(axis=1)
    return f"{100 * by_module.mean():.1f} % (worst module {100 * by_module.min():.0f} %)"


def comparisons(records: pd.DataFrame, rng: np.random.Generator) -> dict[str, str]:
    """How often two checks of five other seeds each differ by mistake, with Holm's correction and without."""
    slopes = seed_slopes(records).pivot_table(index=["module", "kind", "step"], columns="seed", values="slope")
    table = slopes.dropna().to_numpy()
    alarms: Counter[str] = Counter()
    for _ in range(REPLICATES // 10):
        chosen = rng.permutation(table.shape[1])[:10]
        tests = [welch(curve[chosen[:5]], curve[chosen[5:]]) for curve in table]
        change, p = np.array([t[0] for t in tests]), np.array([t[2] for t in tests])
        alarms["holm"] += bool(((holm(p) < 0.05) & (abs(change) > TOLERANCE)).any())
        alarms["plain"] += bool(((p < 0.05) & (abs(change) > TOLERANCE)).any())
    share = {name: f"{100 * alarms[name] / (REPLICATES // 10):.1f} %" for name in ("holm", "plain")}
    return {"baseline false alarms": share["holm"], "without Holm": share["plain"]}


# checks


def settings(n: int) -> Iterator[list[str]]:
    """Small GPTs of many kinds, each with fresh seeds."""
    rng = random.Random(0)
    for i in range(n):
        yield [
            f"embedding={rng.choice(['untied', 'tied'])}",
            f"readout={rng.choice(['zero', 'constant'])}",
            f"optimizer.lr={rng.choice([1e-4, 3e-4, 1e-3, 3e-3, 1e-2])}",
            f"model.depth={rng.choice([1, 2, 3, 4])}",
            *rng.choice(
                [[f"model.head_size={size}"] for size in (16, 32, 64)] + [["model.heads=4", "model.head_size=null"]]
            ),
            f"first_seed={1000 + 5 * i}",
            "widths=[64,128,256,512]",
            "data.batch=4",
            "plots=null",
            "runs=checks/calibration",
        ]


def checks(n: int = 100) -> pd.DataFrame:
    """Verdicts of many checks of correct and of wrong models."""
    rows, undecided = [], Counter()
    for name, overrides, must in (
        ("muP", [], "no fail"),
        ("standard parametrization", ["parametrization=sp"], "all fail"),
    ):
        verdicts: Counter[str] = Counter()
        for setting in settings(n):
            check = check_config(load([*setting, *overrides]))
            verdicts[check.verdict] += 1
            if check.verdict != ("fail" if overrides else "pass"):
                worst = check.findings[0] if check.findings else None
                print(name, check.verdict, " ".join(setting[:6]), worst, flush=True)
                if worst is not None and not overrides:
                    undecided[f"{worst.kind} of {role_of(check.slopes, worst.module)}: {advice(worst.advice)}"] += 1
        rows.append({"models": name, "checks": str(n), "must": must, **{v: str(verdicts[v]) for v in VERDICTS}})
    rows += faulty_layers()
    reasons = pd.DataFrame(
        {"worst curve of an inconclusive muP check, advice": list(undecided), "checks": undecided.values()}
    )
    print(markdown_table(reasons.sort_values("checks", ascending=False).astype(str)), "\n")
    return pd.DataFrame(rows)


VERDICTS = ("fail", "inconclusive", "pass")


def role_of(slopes: pd.DataFrame, module: str) -> str:
    """The role of a module."""
    return str(slopes.loc[slopes["module"] == module, "role"].iloc[0])


def advice(text: str) -> str:
    """An advice with its number of seeds in classes."""
    number = next((int(word) for word in text.split() if word.isdigit()), None)
    if number is None:
        return text
    return next(f"at most {limit} seeds would decide" for limit in (10, 20, 50, 1000) if number <= limit)


class FaultyLayer(GPTCell):
    """One weight matrix in the middle whose init std grows like width^(exponent - 1/2)."""

    exponent = 0.25

    def build(self, width: int, seed: int, device: torch.device) -> torch.nn.Module:
        """The cell's model with one matrix scaled."""
        model = super().build(width, seed, device)
        with torch.no_grad():
            model.get_parameter("blocks.1.mlp.fc.weight").mul_((width / self.config.base_width) ** self.exponent)
        return model


def faulty_layers(n: int = 20) -> list[dict[str, str]]:
    """Checks of a model with one faulty layer, 5 seeds and 5 widths."""
    verdicts: Counter[str] = Counter()
    device = torch.device("cpu")
    for i in range(n):
        config = load(["widths=[64,128,256,384,512]", "data.batch=4"])
        plan = RunPlan(config.steps, config.kinds, config.modules, device, config.precision)
        seeds = range(5000 + 5 * i, 5005 + 5 * i)
        queue = RunQueue(FaultyLayer(config), plan, config.widths, seeds, workers=share_cores(device, len(seeds))[0])
        judged = judge(fit(queue.finish().records), default_gate(), config.readout.name)
        at_fault = judged[judged["verdict"].isin(FAILURES)].sort_values(["step", "order"])
        named = len(at_fault) > 0 and at_fault["module"].iloc[0] == "blocks.1.mlp.fc"
        verdicts["fail" if named else "inconclusive"] += 1
    row = {"models": "muP, one layer's init std times width^+0.25, that layer named first", "checks": str(n)}
    return [row | {"must": "all fail"} | {v: str(verdicts[v]) for v in VERDICTS}]


def main() -> None:
    """Runs the parts that are named, or all."""
    torch.set_num_threads(1)
    parts = {"coverage": coverage, "family": family, "checks": checks}
    for name in sys.argv[1:] or parts:
        start = time.perf_counter()
        print(markdown_table(parts[name]()))
        print(f"{name}: {time.perf_counter() - start:.0f} s\n", flush=True)


if __name__ == "__main__":
    main()
