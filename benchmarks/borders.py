"""Where correct models lie and where faults do: the evidence for the borders, as one table in configs/gate/.

    nice python benchmarks/borders.py                 # 200 correct models and all planted faults
    nice python benchmarks/borders.py --seconds 1200  # as many as that allows, correct ones and faults in turn

Every check is made with the defaults: what a user meets. For each kind and role the table says how far the slopes of
correct models lie beyond what theory expects at infinite width, how far those of the nearest fault that shows there,
and the border between. What correct models do beyond their border, and which of them do not pass, is printed.
"""

import argparse
import random
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from planted.case import Case
from planted.others import correct_others
from planted.others_faulty import faulty_others
from planted.ours import correct
from planted.ours_faulty import faulty, held_out

import coordcheck
from coordcheck.check import check_config
from coordcheck.config.load import default_gate, load
from coordcheck.judge.verdict import FAILURES
from coordcheck.report.tables import markdown_table

TABLE = Path(__file__).parents[1] / "configs" / "gate" / "evidence.csv"
WIDTHS = (64, 128, 256)
BASE = 64
FIRST_SEED = 500  # neither those of the tests nor those of benchmarks/faults.py
PROCESSES = 2


def configured(n: int) -> Iterator[list[str]]:
    """Overrides of correct models of this package: families, heads, depth, ties, norms, optimizers and rates."""
    rng = random.Random(1)
    for i in range(n):
        optimizer = rng.choice(["adam", "adam", "adamw", "sgd"])
        rate = rng.choice([1e-4, 3e-4, 1e-3, 3e-3, 1e-2])
        heads = rng.choice(["model.head_size=16", "model.head_size=32", "model.heads=4 model.head_size=null"])
        family = rng.choice(["gpt", "gpt", "gpt", "t5"])
        special = {
            "gpt": rng.choice(
                ["", "model.qk_norm=true", "model.norm=rms", "model.feed_forward=swiglu", "model.depth=6"]
            ),
            "t5": "",
        }[family]
        embedding, readout = rng.choice(["untied", "tied"]), rng.choice(["zero", "constant"])
        if family == "t5" and embedding == "tied":
            readout = "constant"  # it has no positions, and all of a zero embedding would be zero
        yield [
            f"model={family}",
            f"embedding={embedding}",
            f"readout={readout}",
            f"optimizer={optimizer}",
            f"optimizer.lr={rate * 100 if optimizer == 'sgd' else rate}",
            *heads.split(),
            *special.split(),
            "widths=[64,128,256,512]",
            "data.batch=4",
            f"first_seed={FIRST_SEED + i}",
            "plots=null",
            "resume=false",
            "runs=checks/borders",
        ]


def planted(of: str) -> list[Case]:
    """The cases of benchmarks/planted/: "correct" or "faulty"."""
    groups = {"correct": (correct, correct_others), "faulty": (faulty, held_out, faulty_others)}[of]
    return [case for group in groups for case in group(BASE)]


def check_of(job: tuple[str, Any]) -> coordcheck.CoordCheck:
    """The check of a job: a configuration, or a case by name."""
    group, what = job
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if group == "configured":
            return check_config(load([*what, "try_advice=false"]))
        case = next(case for case in planted(group) if case.name == what)
        return coordcheck.coord_check(
            case.build,
            case.batch,
            widths=WIDTHS,
            optimizer=case.optimizer,  # type: ignore[arg-type]
            loss=case.loss,
            device="cpu",
            decay=case.decay,
            first_seed=FIRST_SEED,
            try_advice=False,
        )


def measure(job: tuple[str, Any]) -> tuple[tuple[str, Any], str, str, float, pd.DataFrame]:
    """A job, its verdict and sentence, its seconds, and the curves that have a slope."""
    start = time.perf_counter()
    check = check_of(job)
    curves = check.slopes.dropna(subset="slope")
    curves = curves[np.isfinite(curves["expected_low"]) | np.isfinite(curves["expected_high"])]
    beyond = curves["slope"] - curves["slope"].clip(curves["expected_low"], curves["expected_high"])
    kept = curves[["module", "role", "kind", "step", "verdict"]].assign(beyond=beyond, place=_at_fault(job, curves))
    return job, check.verdict, check.sentence(), time.perf_counter() - start, kept


def _at_fault(job: tuple[str, Any], curves: pd.DataFrame) -> pd.Series:
    """Which curves are of the module where a fault was planted."""
    places = next((case.places for case in planted("faulty") if job == ("faulty", case.name)), ())
    own: pd.Series = curves["module"].str.partition("[")[0].isin(places)
    return own


def table_of(results: list[tuple[tuple[str, Any], str, str, float, pd.DataFrame]]) -> pd.DataFrame:
    """The evidence: one row for each kind and role."""
    gate = default_gate()
    right = pd.concat([curves for job, *_, curves in results if job[0] != "faulty"])
    wrong = [curves for job, *_, curves in results if job[0] == "faulty"]
    rows = []
    for (kind, role), mine in right.groupby(["kind", "role"]):
        low, high = -gate.tolerance.vanishes[kind], gate.tolerance.explodes[kind]
        # a fault shows where a curve of its place fails; the one that does so by least is the nearest
        worst = [c[c["place"] & (c["kind"] == kind) & (c["role"] == role)] for c in wrong]
        worst = [c[c["verdict"].isin(FAILURES)]["beyond"] for c in worst]
        above = [c.max() for c in worst if len(c) and c.max() > 0]
        below = [c.min() for c in worst if len(c) and c.min() < 0]
        rows.append(
            {
                "kind": kind,
                "role": role,
                "correct_curves": len(mine),
                "correct_lowest": mine["beyond"].min(),
                "correct_0.1%": mine["beyond"].quantile(0.001),
                "correct_99.9%": mine["beyond"].quantile(0.999),
                "correct_highest": mine["beyond"].max(),
                "border_low": low,
                "border_high": high,
                "nearest_fault_below": max(below, default=np.nan),
                "nearest_fault_above": min(above, default=np.nan),
                "faults_seen_here": len(above) + len(below),
            }
        )
    return pd.DataFrame(rows).round(3)


def main() -> None:
    """Runs what there is time for and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=np.inf, help="stop starting checks after so long")
    parser.add_argument("--models", type=int, default=200, help="correct models, planted ones included (default 200)")
    arguments = parser.parse_args()
    given = [("correct", case.name) for case in planted("correct")]
    ours = [("configured", overrides) for overrides in configured(max(0, arguments.models - len(given)))]
    faults = [("faulty", case.name) for case in planted("faulty")]
    for jobs in (given, ours, faults):
        random.Random(0).shuffle(jobs)
    turns = [job for job in chain.from_iterable(zip_longest(given, ours, faults)) if job is not None]
    end = time.perf_counter() + arguments.seconds
    results = []
    with ProcessPoolExecutor(PROCESSES) as pool:
        todo = iter(turns)
        running = {pool.submit(measure, job) for job in (next(todo), next(todo))}
        while running:
            done = next(as_completed(running))
            running.remove(done)
            results.append(done.result())
            job, verdict, sentence, seconds, _ = results[-1]
            if (verdict == "fail") != (job[0] == "faulty") or verdict == "inconclusive":
                print(f"{seconds:5.1f} s  {job}: {sentence}", flush=True)
            job = next(todo, None) if time.perf_counter() < end else None
            if job is not None:
                running.add(pool.submit(measure, job))
    counts = pd.DataFrame([{"group": job[0], "verdict": verdict} for job, verdict, *_ in results])
    table = counts.value_counts(["group", "verdict"]).unstack(fill_value=0).reset_index()
    print(markdown_table(table.astype(str)))
    evidence = table_of(results)
    print(markdown_table(evidence.astype(str)))
    right = sum(job[0] != "faulty" for job, *_ in results)
    head = f"# {right} correct models, {len(results) - right} faults; exponents of width beyond what theory expects\n"
    TABLE.write_text(head + evidence.to_csv(index=False), encoding="utf-8")


if __name__ == "__main__":
    main()
