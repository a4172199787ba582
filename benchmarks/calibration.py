"""Do the intervals cover, does a correct model ever fail, is a fault seen? Prints the tables of benchmarks/README.md.

    python benchmarks/calibration.py coverage looks advice family checks

coverage  synthetic curves of known slope: how often the interval of :func:`coordcheck.judge.slopes.fit` holds it
looks     simulated checks that look until they are decided: how often they err, whatever the number of looks
advice    whether the number of runs that is told for an undecided curve would decide it
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
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
import torch

from coordcheck.check import check_config
from coordcheck.config.load import default_gate, load
from coordcheck.config.schema import CheckConfig, GateConfig
from coordcheck.judge.baseline import TOLERANCE
from coordcheck.judge.looks import Auto, look_confidence, look_until_decided, pilot, seeds_at
from coordcheck.judge.slopes import fit, seed_slopes
from coordcheck.judge.statistics import holm, welch
from coordcheck.judge.undecided import runs_to_decide
from coordcheck.judge.verdict import FAILURES, judge, overall
from coordcheck.models.families import make_cell
from coordcheck.models.gpt import GPTCell
from coordcheck.records.schema import RECORD_COLUMNS
from coordcheck.report.tables import markdown_table
from coordcheck.run.cell import cost
from coordcheck.run.queue import RunQueue, share_cores
from coordcheck.run.train import RunPlan

REPLICATES = 2000


# coverage


def curves(widths: tuple[int, ...], seeds: int, case: str, rng: np.random.Generator) -> tuple[pd.DataFrame, float]:
    """Records of REPLICATES curves of a known slope, and that slope; seeds run at every width."""
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
    return as_records(pd.DataFrame({"l1": 2 ** logs.ravel()}, index=index).reset_index()), true


def as_records(table: pd.DataFrame) -> pd.DataFrame:
    """Records of a table of ``order seed width l1``, a curve for each order."""
    records = table.assign(step=0, module=table["order"].astype(str), role="hidden", kind="activation")
    records = records.assign(rms=records["l1"], max=records["l1"], nonfinite=0, count=1)
    return records[list(RECORD_COLUMNS)]


NOISES = {
    "spread falls like width^-1/2": lambda rng, shape, x: rng.normal(0, 1.0, shape) * 2 ** (-x / 2),
    "the same spread at all widths": lambda rng, shape, x: rng.normal(0, 1.0, shape),
    "spread grows like width^1/2": lambda rng, shape, x: rng.normal(0, 1.0, shape) * 2 ** (x / 2),
    "heavy tails": lambda rng, shape, x: rng.standard_t(3, shape) * 2 ** (-x / 2),
}


def independent_curves(
    counts: Mapping[int, int], rng: np.random.Generator, noise: str, slope: float = 0.1, std: float = 0.03, n: int = 1
) -> pd.DataFrame:
    """Records of n curves of independent runs, so many at each width."""
    tables = []
    for width, seeds in seeds_at(counts).items():
        x = float(np.log2(width / min(counts)))
        logs = slope * x + std * NOISES[noise](rng, (n, len(seeds)), x)
        index = pd.MultiIndex.from_product([range(n), seeds], names=["order", "seed"])
        tables.append(pd.DataFrame({"l1": 2 ** logs.ravel()}, index=index).reset_index().assign(width=width))
    return as_records(pd.concat(tables, ignore_index=True))


def covers(slopes: pd.DataFrame, true: float) -> float:
    """Share of intervals that hold the true slope."""
    return float(((slopes["ci_low"] <= true) & (true <= slopes["ci_high"])).mean())


def coverage() -> pd.DataFrame:
    """Share of intervals that hold the true slope: of seeds that ran at every width, and of independent runs."""
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
            row = {"case": case, "runs": f"{seeds} seeds at each", "nominal": "95 %"}
            for n in (3, 4, 5, 6):
                records, true = curves(tuple(64 * 2**i for i in range(n)), seeds, case, rng)
                row[f"{n} widths"] = f"{100 * covers(fit(records), true):.1f} %"
            rows.append(row)
    for noise in NOISES:
        for times in (1, 2):
            row = {"case": noise, "runs": "a pilot" if times == 1 else "twice a pilot", "nominal": "95 %"}
            for n in (3, 4, 5, 6):
                counts = {width: times * count for width, count in pilot([64 * 2**i for i in range(n)]).items()}
                records = independent_curves(counts, rng, noise, n=REPLICATES)
                row[f"{n} widths"] = f"{100 * covers(fit(records), 0.1):.1f} %"
            rows.append(row)
    return pd.DataFrame(rows)


# looks


def looks(checks: int = 300) -> pd.DataFrame:
    """What looking more than once does: one curve, decided by as many runs as its border makes necessary.

    The harder the slope is to tell from its border, the more often a check looks. "wrong side": it passes though its
    slope lies beyond the border, or fails though it lies within; on the border itself either counts.
    """
    gate, widths = default_gate(), [64, 128, 256, 512]
    border = gate.tolerance.explodes["activation"]
    rows = []
    for away in (-0.05, -0.02, 0.0, 0.02):
        rng = np.random.default_rng(1)
        seen: Counter[str] = Counter()
        for _ in range(checks):
            records, last = decided(rng, border + away, gate, widths)
            row = judge(fit(records, last), gate).iloc[0]
            seen["looks"] += int(records.attrs["looks"])
            seen["runs"] += len(records)
            seen["covers"] += row["ci_low"] <= border + away <= row["ci_high"]
            seen[row["verdict"]] += 1
        wrong = seen["pass"] * (away >= 0) + seen["explodes"] * (away <= 0)
        rows.append(
            {
                "slope, from its border": f"{away:+.2f}",
                "looks": f"{seen['looks'] / checks:.2f}",
                "runs": f"{seen['runs'] / checks:.0f}",
                "undecided": f"{100 * seen['inconclusive'] / checks:.1f} %",
                "wrong side": f"{100 * wrong / checks:.1f} %",
                "interval covers at the end": f"{100 * seen['covers'] / checks:.1f} %",
            }
        )
    return pd.DataFrame(rows)


def decided(rng: np.random.Generator, slope: float, gate: GateConfig, widths: list[int]) -> tuple[pd.DataFrame, float]:
    """Records of one simulated check, and the confidence of its last look."""
    every = independent_curves(dict.fromkeys(widths, 200), rng, "spread falls like width^-1/2", slope, std=0.1)
    count = 0

    def finish(seeds: dict[int, list[int]], _: str) -> pd.DataFrame:
        nonlocal count
        count += 1
        return every[every["seed"].isin([seed for of in seeds.values() for seed in of])]

    def judged(records: pd.DataFrame, confidence: float) -> pd.DataFrame:
        return judge(fit(records, confidence), gate)

    records = look_until_decided(finish, judged, gate, widths, Auto(3.0), cost)
    records.attrs["looks"] = count
    return records, look_confidence(gate)


def advice(curves_each: int = 400) -> pd.DataFrame:
    """Whether the number of runs that is told for an undecided curve would decide it.

    Right: within a factor of two of the number of runs that decide a curve of this true slope and spread as often as
    not, found by trying.
    """
    gate = default_gate()
    border = gate.tolerance.explodes["activation"]
    counts = pilot([64, 128, 256, 512])
    rows = []
    for away in (0.01, 0.02, 0.03, 0.05):
        rng = np.random.default_rng(2)
        noise = "spread falls like width^-1/2"
        needed = runs_that_decide(border - away, counts, gate, rng)
        table = judge(fit(independent_curves(counts, rng, noise, border - away, 0.1, curves_each * 5)), gate)
        table = table[table["verdict"] == "inconclusive"]
        told = [runs_to_decide(row, gate) for _, row in table.iterrows()]
        numbers = np.array([number for number in told if number is not None])
        right = (numbers >= needed / 2) & (numbers <= needed * 2)
        rows.append(
            {
                "slope, below its border": f"{away:.2f}",
                "runs that decide": str(needed),
                "undecided after a pilot": str(len(table)),
                "a number is told": f"{100 * len(numbers) / max(1, len(table)):.0f} %",
                "of these right within 2": f"{100 * right.mean():.0f} %" if len(numbers) else "",
            }
        )
    return pd.DataFrame(rows)


def runs_that_decide(slope: float, counts: Mapping[int, int], gate: GateConfig, rng: np.random.Generator) -> int:
    """Runs with which half of all curves are decided, spread over widths as `counts` are."""
    for times in np.geomspace(1, 60, 40):
        more = {width: round(times * count) for width, count in counts.items()}
        table = judge(fit(independent_curves(more, rng, "spread falls like width^-1/2", slope, 0.1, 300)), gate)
        if (table["verdict"] != "inconclusive").mean() >= 0.5:
            return sum(more.values())
    return sum(more.values())


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
            check = check_config(load([*setting, *overrides, "try_advice=false"]))
            verdicts[check.verdict] += 1
            if check.verdict != ("fail" if overrides else "pass"):
                worst = check.findings[0] if check.findings else None
                print(name, check.verdict, " ".join(setting[:6]), worst, flush=True)
                if worst is not None and not overrides:
                    undecided[f"{worst.kind} of {role_of(check.slopes, worst.module)}: {classed(worst.advice)}"] += 1
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


def classed(text: str) -> str:
    """An advice with its number of runs in classes."""
    number = next((int(word) for word in text.split() if word.isdigit()), None)
    if number is None:
        return text
    return next(f"at most {limit} runs would decide" for limit in (10, 20, 50, 1000) if number <= limit)


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
        config = load(["widths=[64,128,256,384,512]", "data.batch=4", "seeds=5"])
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
    parts = {"coverage": coverage, "looks": looks, "advice": advice, "family": family, "checks": checks}
    for name in sys.argv[1:] or parts:
        start = time.perf_counter()
        print(markdown_table(parts[name]()))
        print(f"{name}: {time.perf_counter() - start:.0f} s\n", flush=True)


if __name__ == "__main__":
    main()
