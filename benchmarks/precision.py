"""How well is a slope known for the time that it took, beside ``mup.coord_check``?

    python benchmarks/precision.py             # 10 repetitions, 6 min on an idle core
    python benchmarks/precision.py --repetitions 3

Both train the same GPT in muP at the same widths for the same 4 steps with Adam, on one batch, again and again with
other weights and another batch, in turns. mup's recorder runs 5 seeds at each width and records outputs; its slope is
that of the line through the logarithms of their means, which its picture shows. coordcheck runs a default check does,
with activations alone and with all default kinds, without the audit and the control, which mup has not; its slope is
that of the activation. Precision per second is 1 / (variance of a slope over the repetitions x seconds of the
processor).
"""

import argparse
import time
from typing import Any

import numpy as np
import pandas as pd
import torch

from coordcheck.check import check_config
from coordcheck.config.load import load
from coordcheck.models.families import make_cell
from coordcheck.records.schema import ROOT
from coordcheck.report.tables import markdown_table

WIDTHS = [64, 128, 256, 512]
SEEDS = 5
STEPS = 4
CPU = torch.device("cpu")
OURS = {
    "coordcheck, activations": "kinds=[activation]",
    "coordcheck, default kinds": "kinds=[activation,delta,effective_update]",
}
SETTINGS = [f"widths={WIDTHS}", f"steps={STEPS}", "control=false", "audit=false", "resume=false", "workers=1"]


def by_mup(cell: Any, repetition: int) -> pd.DataFrame:
    """The frame of mup's recorder, whose seeds are those of the repetition."""
    import mup
    from mup.coord_check import get_coord_data

    built: dict[int, int] = dict.fromkeys(WIDTHS, 0)
    base, delta = (cell.on_meta(factor * cell.config.base_width) for factor in (1, 2))

    def lazy(width: int) -> Any:
        def build() -> torch.nn.Module:
            built[width] += 1
            model = cell.build(width, 1000 * repetition + built[width], CPU)
            return mup.set_base_shapes(model, base, delta=delta, rescale_params=False)

        return build

    inputs, targets = cell.batch(repetition, CPU)
    frame: pd.DataFrame = get_coord_data(
        {width: lazy(width) for width in WIDTHS},
        [(inputs, targets.flatten())],
        optimizer="adam",
        lr=cell.config.optimizer.lr,
        nsteps=STEPS,
        nseeds=SEEDS,
        cuda=False,
        flatten_output=True,
        lossfn="xent",
        show_progress=False,
    )
    return frame


def lines(frame: pd.DataFrame) -> pd.Series:
    """Slope of each (module, step): of the line through the logarithms of the means over seeds."""
    steps = frame.assign(step=frame["t"] - 1, module=frame["module"].replace("", ROOT))
    sizes = steps[steps["l1"] > 0].groupby(["module", "step", "width"])["l1"].mean()
    means = np.log2(sizes.unstack("width"))
    x = np.log2(means.columns.to_numpy(dtype=float))
    x -= x.mean()
    means = means[np.isfinite(means).all(axis=1)]  # a readout of zeros has no slope at first
    return pd.Series(means.to_numpy() @ x / (x @ x), means.index)


def measure(repetitions: int) -> pd.DataFrame:
    """Slopes and seconds of both, by contender and repetition."""
    torch.set_num_threads(1)
    cell = make_cell(load([]))
    _ = cell.roles
    rows = []
    for repetition in range(repetitions):
        before = time.process_time()
        slopes = lines(by_mup(cell, repetition))
        rows.append(slopes.rename("slope").reset_index().assign(of="mup", seconds=time.process_time() - before))
        for name, kinds in OURS.items():
            before = time.process_time()
            check = check_config(load([*SETTINGS, kinds, f"first_seed={1000 * repetition}"]))
            seconds = time.process_time() - before
            curves = check.slopes[check.slopes["kind"] == "activation"]
            rows.append(curves[["module", "step", "slope"]].assign(of=name, seconds=seconds))
        told = ", ".join(f"{row['of'].iloc[0]} {row['seconds'].iloc[0]:.1f} s" for row in rows[-1 - len(OURS) :])
        print(f"repetition {repetition}: {told}", flush=True)
    return pd.concat(rows)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=10)
    measured = measure(parser.parse_args().repetitions)
    variance = measured.groupby(["of", "module", "step"])["slope"].var().unstack("of").dropna()
    variance = variance[(variance > 0).all(axis=1)]
    seconds = measured.groupby("of")["seconds"].median()
    rows = []
    for name in ("mup", *OURS):
        gain = variance["mup"] * seconds["mup"] / (variance[name] * seconds[name])
        rows.append(
            {
                "recorder": name,
                "curves": str(len(gain)),
                "seconds of the processor": f"{seconds[name]:.1f}",
                "median spread of a slope": f"{np.sqrt(variance[name]).median():.4f}",
                "precision per second, times mup's (median over curves)": f"{gain.median():.1f}",
                "quartiles": f"{gain.quantile(0.25):.1f} to {gain.quantile(0.75):.1f}",
            }
        )
    print(markdown_table(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
