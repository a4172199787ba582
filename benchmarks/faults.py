"""Is a planted fault seen, is its place named first, and its cause? Prints the tables of benchmarks/README.md.

    python benchmarks/faults.py run first     # trains: seeds 0 to 2, base width 64
    python benchmarks/faults.py run second    # seeds 10 to 12, base width 128
    python benchmarks/faults.py run third     # seeds 30 to 32, faults that were planted when the rules stood
    python benchmarks/faults.py run fourth    # seeds 40 to 42, other people's architectures
    python benchmarks/faults.py run fourth "Llama, Muon"             # one case of a set, by name
    python benchmarks/faults.py table         # diagnoses the stored checks anew and prints
    python benchmarks/faults.py advice fourth # does what the first finding says, and checks again
    python benchmarks/faults.py cure fourth   # cures what a table can mend, lists the rest; correct models need none

The models and their faults are in benchmarks/planted/.
"""

import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from planted.advice import about, changes_of, followed, parameters_of
from planted.case import Case
from planted.cured import cure_case, find, reason
from planted.others import correct_others
from planted.others_faulty import faulty_others
from planted.ours import correct
from planted.ours_faulty import faulty, held_out, invisible

import coordcheck
from coordcheck.judge.diagnose import diagnose
from coordcheck.report.tables import markdown_table

WIDTHS = (64, 128, 256)
KINDS = ("activation", "delta", "effective_update")
SETS = {
    "first": (range(3), 64),
    "second": (range(10, 13), 128),
    "third": (range(30, 33), 64),
    "fourth": (range(40, 43), 64),
}
GENERATORS = {
    "first": (faulty, correct, invisible),
    "second": (faulty, correct, invisible),
    "third": (held_out,),
    "fourth": (faulty_others, correct_others),
}
STORE = Path("checks/faults")
PROCESSES = 2


def cases(base: int) -> dict[str, Case]:
    """All cases, by name."""
    generators = (faulty, correct, held_out, invisible, faulty_others, correct_others)
    return {case.name: case for of in generators for case in of(base)}


def check_case(case: Case, seeds: Sequence[int]) -> coordcheck.CoordCheck:
    """Checks one case on one thread."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an evaluation within the step has one of its own
        return coordcheck.coord_check(
            case.build,
            case.batch,
            widths=WIDTHS,
            seeds=seeds,
            optimizer=case.optimizer,  # type: ignore[arg-type]
            loss=case.loss,
            kinds=KINDS,
            device="cpu",
            decay=case.decay,
            try_advice=False,
        )


def run(name: str, chosen: str) -> str:
    """Checks one case and stores the check with the seconds it took."""
    seeds, base = SETS[chosen]
    begin = time.perf_counter()
    check = check_case(cases(base)[name], seeds)
    seconds = time.perf_counter() - begin
    directory = directory_of(name, chosen)
    check.save(directory)
    (directory / "seconds.json").write_text(json.dumps(seconds))
    return f"{seconds:5.1f} s  {check.verdict:12}  {name}"


def directory_of(name: str, chosen: str) -> Path:
    """Where a check is stored."""
    return STORE / chosen / re.sub(r"[^\w]+", "-", name)


def first_fault(findings: Sequence[coordcheck.Finding]) -> coordcheck.Finding | None:
    """What is named first."""
    return next((finding for finding in findings if finding.fault), None)


def outcome(case: Case, chosen: str) -> dict[str, Any]:
    """A stored check, diagnosed anew and held against what was planted; "alone" is by the curves without the audit."""
    directory = directory_of(case.name, chosen)
    check = coordcheck.CoordCheck.load(directory)
    first = first_fault(check.findings)
    alone = first_fault(diagnose(check.records, check.slopes, check.gate, None, check.control.saw))
    return {
        "case": case.name,
        "planted": f"{' or '.join(case.causes)} at {' or '.join(case.places)}",
        "verdict": check.verdict,
        "named first": f"{first.fault} at {first.module}" if first else "",
        "detected": first is not None,
        "place": _is_at(first, case),
        "cause": first is not None and first.fault in case.causes,
        "detected alone": alone is not None,
        "place alone": _is_at(alone, case),
        "cause alone": alone is not None and alone.fault in case.causes,
        "said": str(first) if first else "",
        "seconds": f"{json.loads((directory / 'seconds.json').read_text()):.1f}",
    }


def _is_at(finding: coordcheck.Finding | None, case: Case) -> bool:
    return finding is not None and finding.module.partition("[")[0] in case.places


def percent(share: pd.Series) -> str:
    """A mean of booleans, with its counts."""
    return f"{int(share.sum())} of {len(share)} ({100 * share.mean():.0f} %)" if len(share) else "0 of 0"


def table_of(of: Callable[[int], Iterator[Case]], chosen: str) -> str:
    """Some cases of one set as Markdown, with the rates before the table."""
    rows = pd.DataFrame([outcome(case, chosen) for case in of(SETS[chosen][1])])
    if of in (correct, correct_others):
        failed = percent(rows["detected"] | (rows["verdict"] == "fail"))
        rates, columns = f"fail {failed}", ["case", "verdict", "named first", "seconds"]
    else:
        marks = ["detected", "place", "cause"]
        rates = ", ".join(f"{name} {percent(rows[name])}" for name in marks)
        rates += "; without the audit " + ", ".join(f"{name} {percent(rows[f'{name} alone'])}" for name in marks)
        columns = ["case", "planted", "named first", "verdict", *marks, "seconds"]
        rows[marks] = rows[marks].replace({True: "yes", False: "**no**"}).astype(str)
    table = markdown_table(rows[columns]).replace(r"\*\*no\*\*", "**no**")
    return f"### {of.__name__}: {rates}\n\n{table}"


def follow(name: str, chosen: str) -> dict[str, Any] | None:
    """Does what the first finding of a stored check says, and checks again.

    Changes that later findings give for the same parameters are made with it: a person makes them together.

    Returns:
        What was changed and what is said now; None if there is no finding or it carries no change that can be made
        without thought.
    """
    seeds, base = SETS[chosen]
    case = cases(base)[name]
    check = coordcheck.CoordCheck.load(directory_of(name, chosen))
    first = first_fault(check.findings)
    changes = [] if first is None else changes_of(first, check.findings)
    if first is None or not changes:
        return None
    after = check_case(followed(case, changes, base), seeds)
    left = [finding for finding in after.findings if finding.fault and about(finding, first)]
    named = parameters_of(first) or (first.module,)
    return {
        "case": name,
        "done": ", ".join(str(change) for change in changes),
        "at": f"{named[0]} and {len(named) - 1} more" if len(named) > 1 else named[0],
        "verdict": after.verdict,
        "succeeded": not left,
        "still said": str(left[0]) if left else "",
    }


def advice_of(chosen: str, names: Sequence[str]) -> str:
    """How often advice that is followed leaves nothing to say of the same parameters, and where it does not."""
    with ProcessPoolExecutor(PROCESSES) as pool:
        rows = pd.DataFrame([row for row in pool.map(partial(follow, chosen=chosen), names) if row is not None])
    if rows.empty:
        return f"{chosen}: of {len(names)} planted faults, no first finding carries a change"
    lines = [f"{chosen}: of {len(names)} planted faults, {len(rows)} first findings carry a change"]
    lines.append(f"followed and succeeded: {percent(rows['succeeded'])}\n")
    columns = ["case", "done", "at", "verdict", "succeeded"]
    lines.append(markdown_table(rows[columns].replace({True: "yes", False: "**no**"}).astype(str)))
    lines += [f"\n{row['case']}: {row['still said']}" for _, row in rows[~rows["succeeded"]].iterrows()]
    return "\n".join(lines)


def cured(name: str, chosen: str) -> tuple[str, bool]:
    """A row on a planted fault, its cure, and the check with it; and whether that passes."""
    base = SETS[chosen][1]
    case = cases(base)[name]
    outcome = cure_case(case, WIDTHS, base)
    verdict, left, said = "not tried", "", ""
    if outcome.after is not None:
        open_curves = int((outcome.after.slopes["verdict"] != "pass").sum())
        first = first_fault(outcome.after.findings)
        widest = max(outcome.after.records["width"])
        verdict = f"{outcome.after.verdict} up to width {widest}"
        left = f"{open_curves} curves" if open_curves else ""
        said = "" if first is None else f"{first.fault} at {first.module}"
    cells = [name, " or ".join(case.causes), outcome.cure.describe().replace("\n", "; "), verdict, left, said]
    return f"| {' | '.join(cells)} |", verdict.startswith("pass")


def needed(name: str, chosen: str) -> tuple[str, bool]:
    """A row on a correct model whose cure is not empty; and whether it is."""
    base = SETS[chosen][1]
    table = find(cases(base)[name], WIDTHS, base)
    return f"| {name} | {table.describe().replace(chr(10), '; ')} |", not table


def print_cures(chosen: str, names: Sequence[str]) -> None:
    """Prints what the cure makes of the planted faults of a set, and of its correct models, a row at a time."""
    of_set = [case for of in GENERATORS[chosen] for case in of(SETS[chosen][1]) if of is not invisible]
    asked = [case for case in of_set if case.name in names or not names]
    faults = [case for case in asked if case.places]
    mendable = [case.name for case in faults if not reason(case)]
    right = [case.name for case in asked if not case.places]
    print(
        f"## {chosen}\n\n| case | planted | cure | check with it | undecided or at fault | first said |\n"
        + "| --- " * 6
        + "|"
    )
    passed, empty = [], []
    with ProcessPoolExecutor(PROCESSES) as pool:
        for line, passes in pool.map(partial(cured, chosen=chosen), mendable):
            print(line, flush=True)
            passed.append(passes)
        print(f"\nWith the cure the check passes: {percent(pd.Series(passed, dtype=bool))}. No table mends:\n")
        print("\n".join(f"* {case.name}: {reason(case)}" for case in faults if reason(case)))
        print("\n| correct model | what its cure changes |\n| --- | --- |")
        for line, is_empty in pool.map(partial(needed, chosen=chosen), right):
            empty.append(is_empty)
            if not is_empty:
                print(line, flush=True)
    print(f"\nCorrect models whose cure is empty: {percent(pd.Series(empty, dtype=bool))}.\n", flush=True)


def main(command: str, *arguments: str) -> None:
    """Runs a set in two processes, prints the tables of all that are stored, or follows the advice that a set got."""
    if command == "table":
        for chosen, (seeds, base) in SETS.items():
            if not (STORE / chosen).is_dir():
                continue
            print(f"## {chosen}: seeds {seeds[0]} to {seeds[-1]}, base width {base}\n")
            print("\n\n".join(table_of(of, chosen) for of in GENERATORS[chosen]) + "\n")
        return
    chosen, *names = arguments
    base = SETS[chosen][1]
    if command == "advice":
        planted = [case.name for of in GENERATORS[chosen] for case in of(base) if case.places]
        print(advice_of(chosen, names or planted))
        return
    if command == "cure":
        print_cures(chosen, names)
        return
    wanted = names or [case.name for of in GENERATORS[chosen] for case in of(base)]
    with ProcessPoolExecutor(PROCESSES) as pool:
        for line in pool.map(partial(run, chosen=chosen), wanted):
            print(line, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
