"""Does the output of a router keep still when the width changes? Prints the table of benchmarks/README.md.

    python benchmarks/router.py

A Mixtral in muP, whose routers start with a std of width^-1/2, of width^-1, or of width^-1/2 with an input through
which no gradient goes back. Slopes of what the routers' logits (0) and the shares of the experts (1) change by.
"""

import dataclasses
import warnings
from functools import partial

import pandas as pd
import torch
from planted.by_hand import Rule, put
from planted.case import Case
from planted.others import LLAMA, adamw, mixtral, tokens
from torch import nn

import coordcheck
from coordcheck.report.tables import markdown_table

WIDTHS, BASE = (128, 256, 512, 1024), 64
ROUTER = r"mlp\.gate\.weight"


def deaf(width: int) -> nn.Module:
    """A Mixtral whose routers send no gradient back."""
    model = mixtral(width)
    for name, module in model.named_modules():
        if name.endswith("mlp.gate"):
            module.register_forward_pre_hook(lambda _, args: tuple(arg.detach() for arg in args))
    return model


def cases() -> dict[str, Case]:
    """What is compared."""
    usual, small = (Rule(ROUTER, "projection", power) for power in (-0.5, -1.0))
    one = partial(Case, batch=tokens, optimizer=adamw())
    return {
        "std width^-1/2": one("usual", put(mixtral, usual, *LLAMA, base=BASE)),
        "std width^-1/2, input detached": one("deaf", put(deaf, usual, *LLAMA, base=BASE)),
        "std width^-1": one("small", put(mixtral, small, *LLAMA, base=BASE)),
    }


def row(name: str, case: Case) -> list[dict[str, str]]:
    """The verdict of a check, and the slopes of its routers."""
    check = coordcheck.coord_check(case.build, case.batch, WIDTHS, optimizer=case.optimizer, try_advice=False)
    slopes = check.slopes
    routers = slopes[slopes["module"].str.contains(r"mlp\.gate\[") & (slopes["kind"] == "delta")]
    said = routers.assign(
        said=[f"{r.slope:+.2f} [{r.ci_low:+.2f}, {r.ci_high:+.2f}]" for r in routers.itertuples()],
        at=[f"step {step}" for step in routers["step"]],
    )
    table = said.pivot(index="module", columns="at", values="said").reset_index()
    table.insert(0, "router", name)
    table.insert(1, "check", check.verdict)
    return table.astype(str).to_dict("records")


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = [line for name, case in cases().items() for line in row(name, dataclasses.replace(case, name=name))]
    print(markdown_table(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
