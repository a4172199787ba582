"""Are spectral norms judged rightly, and what are alignment exponents? Prints the tables of benchmarks/README.md.

    python benchmarks/norms.py run              # all correct models of benchmarks/planted, and faults in one parameter
    python benchmarks/norms.py run "an MLP"     # one case, by name
    python benchmarks/norms.py table            # from the stored checks

Seeds 50 to 52, widths 64 to 256, kinds weight, update and effective_update.
"""

import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import mup
import pandas as pd
import torch
from faults import WIDTHS, first_fault
from planted.case import Case, scaled
from planted.others import correct_others
from planted.others_faulty import faulty_others
from planted.ours import correct
from planted.ours_faulty import faulty
from torch import Tensor, nn

import coordcheck
from coordcheck.judge.alignment import alignments
from coordcheck.judge.verdict import FAILURES
from coordcheck.records.schema import WEIGHTS
from coordcheck.report.tables import markdown_table

BASE = 64
SEEDS = range(50, 53)
KINDS = ("activation", "effective_update", "weight", "update")
STORE = Path("checks/norms")
PROCESSES = 2
SHOWN_BY_WEIGHTS = ("init", "learning_rate", "shared_readout", "reinitialized", "untrained")


def perceptron(width: int) -> nn.Module:
    """Two hidden layers with biases, and a readout of the mup package."""
    model = nn.Sequential(
        *(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
        *(nn.Linear(width, width), nn.ReLU(), mup.MuReadout(width, 10)),
    )
    for layer in (model[0], model[2], model[4]):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(layer.bias)
    nn.init.normal_(model[6].weight, std=0.1)
    nn.init.zeros_(model[6].bias)
    return model


def points(seed: int) -> tuple[Tensor, Tensor]:
    """128 points and their classes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(128, 16, generator=generator), torch.randint(0, 10, (128,), generator=generator)


def perceptrons() -> Iterator[Case]:
    """A multilayer perceptron in muP with Adam, and with one fault."""

    def built(width: int, exponent: float = 0.0) -> nn.Module:
        model = perceptron(width)
        mup.set_base_shapes(model, perceptron(BASE), delta=perceptron(2 * BASE), rescale_params=False)
        scaled(r"^2\.", exponent)(model, width / BASE)
        return model

    def adam(model: nn.Module, plain: bool = False) -> torch.optim.Optimizer:
        of = torch.optim.Adam if plain else mup.MuAdam
        optimizer: torch.optim.Optimizer = of(model.parameters(), lr=3e-3)
        return optimizer

    yield Case("an MLP", built, points, adam)
    places = ("0", "2", "4", "6")
    yield Case("an MLP, one rate", built, points, partial(adam, plain=True), None, places, "learning_rate")
    yield Case("an MLP, one std", partial(built, exponent=0.5), points, adam, None, ("2",), "init")


def cases() -> dict[str, Case]:
    """Correct models, and those with a fault that is one of weights."""
    found = [*correct(BASE), *correct_others(BASE), *perceptrons()]
    found += [case for of in (faulty, faulty_others) for case in of(BASE) if {*case.causes} & {*SHOWN_BY_WEIGHTS}]
    return {case.name: case for case in found}


def run(name: str) -> str:
    """Checks one case and stores the check."""
    torch.set_num_threads(1)
    case = cases()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check = coordcheck.coord_check(
            case.build,
            case.batch,
            widths=WIDTHS,
            seeds=list(SEEDS),
            optimizer=case.optimizer,  # type: ignore[arg-type]
            loss=case.loss,
            kinds=KINDS,
            device="cpu",
            decay=case.decay,
            control=False,
            try_advice=False,
        )
    check.save(STORE / "".join(c if c.isalnum() else "-" for c in name))
    return f"{check.verdict:12}  {name}"


def row(case: Case) -> dict[str, object]:
    """What the stored check of a case says."""
    check = coordcheck.CoordCheck.load(STORE / "".join(c if c.isalnum() else "-" for c in case.name))
    curves = check.slopes[check.slopes["kind"].isin(WEIGHTS)]
    judged = curves[curves["expected_low"] > -float("inf")]
    distance = judged["slope"] - judged["slope"].clip(judged["expected_low"], judged["expected_high"])
    said = {kind: distance[judged["kind"] == kind].dropna() for kind in WEIGHTS}
    last = alignments(check.records)
    last = last[last["step"] == last["step"].max()]["alignment"]
    first = first_fault(check.findings)
    return {
        "case": case.name,
        "planted": " or ".join(case.causes),
        "curves": f"{len(judged)}",
        "at fault": f"{int(judged['verdict'].isin(FAILURES).sum())}",
        "undecided": f"{int((judged['verdict'] == 'inconclusive').sum())}",
        **{f"{kind}, off by": f"{x.min():+.2f} to {x.max():+.2f}" if len(x) else "" for kind, x in said.items()},
        "alignment": f"{last.min():.2f} to {last.max():.2f}" if len(last) else "",
        "first finding": "" if first is None else f"{first.fault} at {first.parameter or first.module}",
    }


def main() -> None:
    """Runs or prints."""
    what, *names = sys.argv[1:]
    if what == "run":
        chosen = names or [*cases()]
        with ProcessPoolExecutor(PROCESSES) as pool:
            for line in pool.map(run, chosen):
                print(line, flush=True)
        return
    rows = []
    for case in cases().values():
        rows.append(row(case))
    table = pd.DataFrame(rows)
    for title, part in (("correct", table[table["planted"] == ""]), ("with a fault", table[table["planted"] != ""])):
        print(f"\n{len(part)} models, {title}\n\n{markdown_table(part)}")


if __name__ == "__main__":
    main()
