"""What the initialization of q, k and v does to a post-LN transformer: https://github.com/google/flax/issues/4027.

    python benchmarks/qkv_init.py size gradient training picture

size      std x sqrt(fan_in) of every kernel, as torch's own modules have it and as our table has it
gradient  norms of the gradients of every kernel of the decoder at step 0, at DETR's size: width 256, 6 + 6 blocks
training  loss and objects found by DETR's optimizer on generated scenes: width 64, 6 + 6 and 2 + 2 blocks, learning
          rate 1e-3, 400 steps, and 1200 of schemes with unit gain
picture   draws these three; nothing is computed anew

Each of the first three prints a table and keeps its numbers in qkv_init/NAME.csv, beside this file.
"""

import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from coordcheck.config.schema import Scheme
from coordcheck.models.initialize import Rule, initialize
from coordcheck.models.layers import materialize
from coordcheck.models.post_ln import PostLN, post_ln_rules
from coordcheck.models.scenes import Scenes, make_scenes, match, set_loss
from coordcheck.observe.roles import infshapes, roles, shapes
from coordcheck.report.figures.style import save_figure
from coordcheck.report.tables import markdown_table

SEEDS = range(3)
KERNELS = ("q", "k", "v", "out")
HELD_OUT = 10**6  # seed of the scenes that no training sees
# facebookresearch/detr main.py
WEIGHT_DECAY, CLIP = 1e-4, 0.1
LR = 1e-3
EVERY = 25  # steps between looks at the held-out scenes
WORKERS = 2
DATA = Path(__file__).parent / "qkv_init"
PICTURE = Path(__file__).parents[1] / "plots" / "gallery" / "attention_qkv_init-schemes.png"


def structure(width: int, depth: int, ratio: int, eps: float) -> PostLN:
    """A model for the generated scenes, with 8 heads and without memory."""
    with torch.device("meta"):
        return PostLN(
            width,
            8,
            (width / 8) ** -0.5,
            encoder_depth=depth,
            decoder_depth=depth,
            feed_forward=ratio * width,
            input_size=16,
            queries=10,
            classes=8,
            box_size=2,
            eps=eps,
            mup_multiplier=None,
        )


def build(table: list[Rule], width: int, depth: int, seed: int, *, ratio: int = 4, eps: float = 1e-5) -> PostLN:
    """An initialized model."""
    narrow, model = (structure(w, depth, ratio, eps) for w in (width // 2, width))
    role_of_each = roles(narrow, infshapes(shapes(narrow), shapes(model)))
    materialize(model, torch.device("cpu"))
    initialize(model, role_of_each, table, torch.Generator().manual_seed(seed))
    return model


def table_of(scheme: Scheme, depth: int, ratio: int = 4) -> list[Rule]:
    """The rules of a scheme."""
    return post_ln_rules(scheme, feed_forward_ratio=ratio, encoder_depth=depth, decoder_depth=depth)


def mixture(depth: int, kernels: Collection[str]) -> list[Rule]:
    """The rules of separate matrices, but `kernels` have the size that they have in a packed one."""
    separate, packed = (table_of(scheme, depth) for scheme in (Scheme.xavier_separate, Scheme.xavier_packed))
    return [
        theirs if any(rf".{kernel}\.weight" in theirs.name for kernel in kernels) else ours
        for ours, theirs in zip(separate, packed, strict=True)
    ]


def loss_of(model: PostLN, scenes: Scenes) -> Tensor:
    """The sum of the losses of every decoder block's predictions, as DETR trains."""
    return torch.stack([set_loss(*predicted, scenes) for predicted in zip(*model(scenes.features), strict=True)]).sum()


# size


def size() -> pd.DataFrame:
    """Of torch's own modules and of our table; a row for each, a column per kernel."""
    return pd.DataFrame([*torch_sizes(), *table_sizes()])


def torch_sizes() -> Iterator[dict[str, str | float]]:
    """Nothing of ours."""
    for width in (64, 128, 256, 512, 1024):
        torch.manual_seed(0)
        yield size_row(f"torch MultiheadAttention, d={width}", of_attention(nn.MultiheadAttention(width, 8)))
        apart = nn.MultiheadAttention(width, 8, kdim=width, vdim=width + 1)  # unequal sizes make it keep three matrices
        yield size_row(f"torch MultiheadAttention of three matrices, d={width}", of_attention(apart))
        layer = nn.Transformer(width, 8, 1, 1, batch_first=True).encoder.layers[0]
        feed_forward = {"fc": layer.linear1.weight, "proj": layer.linear2.weight}
        yield size_row(f"torch Transformer, F=2048, d={width}", of_attention(layer.self_attn) | feed_forward)


def of_attention(attention: nn.MultiheadAttention) -> dict[str, Tensor]:
    """Its four kernels, packed or not."""
    packed = attention.in_proj_weight
    apart = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
    kernels = apart if packed is None else packed.chunk(3)
    return dict(zip(KERNELS, (*kernels, attention.out_proj.weight), strict=True))


def table_sizes() -> Iterator[dict[str, str | float]]:
    """A decoder block of a model of 6 + 6 blocks, F = 2048."""
    for scheme in Scheme:
        block = build(table_of(scheme, 6, 8), 256, 6, 0, ratio=8).decoder[3]
        weights = {kernel: block.self_attn.get_submodule(kernel).weight for kernel in KERNELS}
        yield size_row(scheme.name, weights | {"fc": block.mlp.fc.weight, "proj": block.mlp.proj.weight})


def size_row(name: str, weights: Mapping[str, Tensor]) -> dict[str, str | float]:
    """Std x sqrt(fan_in) of each weight."""
    return {"kernels": name, **{kernel: float(w.detach().std() * w.shape[-1] ** 0.5) for kernel, w in weights.items()}}


# gradient


def gradient() -> pd.DataFrame:
    """Norms at step 0, mean over seeds, the loss being that of the last block alone."""
    cases = [(scheme, 1e-5) for scheme in Scheme] + [(Scheme.xavier_separate, 1e-6)]
    return pd.DataFrame([entry for case in cases for entry in norms(*case)])


def norms(scheme: Scheme, eps: float) -> Iterator[dict[str, str | float]]:
    """A row per decoder block's self-attention."""
    models = [build(table_of(scheme, 6, 8), 256, 6, seed, ratio=8, eps=eps) for seed in SEEDS]
    for seed, model in zip(SEEDS, models, strict=True):
        scenes = make_scenes(seed, 16)
        set_loss(*(predicted[-1] for predicted in model(scenes.features)), scenes).backward()
    for i in range(6):
        names = [*(f"{kernel}.weight" for kernel in KERNELS), "v.bias", "out.bias"]
        of_name = {name: mean(norm(m.decoder[i].self_attn.get_parameter(name)) for m in models) for name in names}
        yield {"scheme": scheme.name, "eps": eps, "block": i, **of_name}


def norm(parameter: nn.Parameter) -> float:
    """Of its gradient."""
    assert parameter.grad is not None
    return float(parameter.grad.norm())


# training


def training() -> pd.DataFrame:
    """Loss and share of objects found on held-out scenes, a row for each look."""
    with ProcessPoolExecutor(WORKERS) as pool:
        return pd.concat(pool.map(train, RUNS), ignore_index=True)


def ends(curves: pd.DataFrame) -> pd.DataFrame:
    """Loss / share found at the ends of trainings and on the way, one pair per seed."""
    shown = curves[curves["step"].isin((100, 200, *(run.steps for run in RUNS)))]
    pairs = shown.assign(pair=[f"{row.loss:.2f} / {row.found:.2f}" for row in shown.itertuples()])
    table = pairs.groupby(["blocks", "case", "step"], sort=False)["pair"].agg(", ".join).unstack("step")
    return table.rename(columns="step {}".format).reset_index().fillna("")


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        case: A scheme, :data:`BLIND`, or "xavier_separate, " and which kernels are as in a packed matrix.
        depth: Blocks of the encoder, and of the decoder.
        seed: Of weights and scenes.
        steps: Updates.
    """

    case: str
    depth: int
    seed: int
    steps: int = 400

    def table(self) -> list[Rule]:
        """The rules of initialization."""
        if self.case == BLIND:
            return table_of(Scheme.xavier_packed, self.depth)
        if self.case in MIXTURES:
            return mixture(self.depth, MIXTURES[self.case])
        return table_of(Scheme[self.case], self.depth)

    def scenes(self, seed: int, count: int) -> Scenes:
        """What is learned; blind, each scene shows the features of another."""
        drawn = make_scenes(seed, count)
        return replace(drawn, features=drawn.features.roll(1, 0)) if self.case == BLIND else drawn


BLIND = "blind"
MIXTURES = {"xavier_separate, q and k as packed": "qk", "xavier_separate, v as packed": "v"}
UNIT_GAIN = (Scheme.lecun_normal, Scheme.xavier_separate)
# the longest first, so that no worker idles at the end
RUNS = [
    *(Run(scheme, 6, 0, 1200) for scheme in UNIT_GAIN),
    *(Run(scheme, 6, 1) for scheme in UNIT_GAIN),
    *(Run(case, 6, seed) for case in (*(s for s in Scheme if s not in UNIT_GAIN), *MIXTURES) for seed in (0, 1)),
    *(Run(scheme, 2, seed) for scheme in Scheme for seed in (0, 1)),
    Run(BLIND, 2, 0),
]


def found(logits: Tensor, boxes: Tensor, scenes: Scenes, tolerance: float = 0.1) -> float:
    """Share of objects whose matched query has the right class and a box within an L1 distance of `tolerance`."""
    query = match(logits, boxes, scenes)
    label = logits.argmax(-1).gather(1, query)
    predicted = boxes.gather(1, query[..., None].expand_as(scenes.boxes))
    right = (label == scenes.classes) & ((predicted - scenes.boxes).abs().sum(-1) < tolerance)
    return float(right[scenes.classes != logits.shape[-1] - 1].float().mean())


def train(run: Run) -> pd.DataFrame:
    """Fresh scenes at every step of DETR's optimizer; returns the last block's loss and share of objects found."""
    torch.set_num_threads(1)
    model = build(run.table(), 64, run.depth, run.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    held_out = run.scenes(HELD_OUT, 256)
    rows = []
    for step in range(run.steps + 1):
        if step % EVERY == 0:
            with torch.no_grad():
                predicted = [value[-1] for value in model(held_out.features)]
                rows.append((step, float(set_loss(*predicted, held_out)), found(*predicted, held_out)))
        optimizer.zero_grad()
        loss_of(model, run.scenes(run.seed * 10**5 + step, 32)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    curve = pd.DataFrame(rows, columns=["step", "loss", "found"])
    return curve.assign(blocks=f"{run.depth} + {run.depth}", case=str(run.case), seed=run.seed)


# picture

# colours of Okabe and Ito, which people with any common colour blindness can tell apart
STYLES = {
    "lecun_normal": ("#E69F00", "s"),
    "xavier_separate": ("#D55E00", "^"),
    "xavier_packed": ("#0072B2", "o"),
    "torch_layers": ("#56B4E9", "D"),
    "t_fixup": ("#009E73", "v"),
}
MIXTURE_LINES = dict(zip(MIXTURES, ((0, (1, 1.5)), (0, (5, 2))), strict=True))
MESSAGE = (
    "Packing q, k and v makes them 0.707 times smaller. In every scheme the first decoder block's kernels start\n"
    "without a gradient, and every scheme learns. With 6 + 6 blocks unit gain is slower, through v alone."
)


def picture(sizes: pd.DataFrame, gradients: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """What differs at the start, and what comes of it.

    Args:
        sizes: As :func:`size` returns.
        gradients: As :func:`gradient` returns.
        curves: As :func:`training` returns.
    """
    figure = Figure(figsize=(16, 9.5), layout="constrained")
    figure.suptitle(MESSAGE, fontsize=13, fontweight="bold")
    upper, lower = figure.subfigures(2, 1, height_ratios=[1, 1.1], hspace=0.04)
    upper.suptitle("gradient norms of the decoder's self-attention at step 0 (width 256, 6 + 6 blocks)", fontsize=11)
    draw_gradients(upper.subplots(1, 5, sharey=True), gradients)
    table, deep, shallow = lower.subplots(1, 3, width_ratios=[0.8, 1.6, 1])
    draw_sizes(table, sizes.set_index("kernels").loc[list(STYLES), list(KERNELS)])
    for axes, blocks in ((deep, "6 + 6"), (shallow, "2 + 2")):
        draw_training(axes, curves[curves["blocks"] == blocks])
        axes.set_title(f"held-out loss, {blocks} blocks, width 64", fontsize=11)
    blind = curves.loc[curves["case"] == BLIND, "loss"].min()
    for axes in (deep, shallow):
        axes.axhline(blind, color="#555555", linestyle=":", linewidth=1)
        axes.text(
            1.0,
            blind,
            "best without seeing the scene ",
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="bottom",
            fontsize=9,
        )
    figure.legend(*deep.get_legend_handles_labels(), loc="outside lower center", ncols=7, frameon=False)
    return figure


def draw_gradients(panels: Sequence[Axes], gradients: pd.DataFrame) -> None:
    """A panel for each kernel and one for the bias behind a norm of zeros; what is zero stands on a floor."""
    names = [*(f"{kernel}.weight" for kernel in KERNELS), "v.bias"]
    usual = gradients["eps"] == gradients["eps"].max()
    floor = gradients[names].where(gradients[names] > 0).min(axis=None) / 6
    for axes, name in zip(panels, names, strict=True):
        for scheme, rows in gradients[usual & (gradients[name] > 0)].groupby("scheme"):
            colour, marker = STYLES[str(scheme)]
            axes.plot(rows["block"], rows[name], color=colour, marker=marker, markersize=5, linewidth=1.3)
        zeros = gradients[usual & (gradients[name] == 0)]
        if len(zeros):
            axes.plot(zeros["block"].unique(), [floor], "kx", markersize=9, markeredgewidth=2)
            axes.text(0.3, floor, f"exactly 0 in {len(zeros)} of {len(STYLES)} schemes", va="center", fontsize=9)
        axes.set(yscale="log", title=name.replace(".", " "), xlabel="decoder block", xlim=(-0.5, 5.5))
        axes.grid(alpha=0.25, linewidth=0.5)
    panels[0].set_ylabel("norm of the gradient")
    panels[0].set_ylim(floor / 2.5, 4 * gradients[names].max(axis=None))
    for scheme, rows in gradients[~usual & (gradients["block"] == 0)].groupby("scheme"):
        colour, marker = STYLES[str(scheme)]
        panels[-1].plot(rows["block"], rows[names[-1]], color=colour, marker=marker, markerfacecolor="white")
    label = "a layer norm of zeros\nmultiplies by 1/√eps\n(white: eps 1e-6)"
    panels[-1].text(0.97, 0.95, label, transform=panels[-1].transAxes, ha="right", va="top", fontsize=9)


def draw_sizes(axes: Axes, sizes: pd.DataFrame) -> None:
    """A table whose darkness is the number."""
    axes.imshow(sizes.to_numpy(), cmap="Greys", vmin=0.2, vmax=2.4, aspect="auto")
    for (row, column), value in np.ndenumerate(sizes.to_numpy()):
        axes.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize=10)
    axes.set_xticks(range(len(KERNELS)), list(KERNELS))
    axes.set_yticks(range(len(sizes)), list(sizes.index))
    for label in axes.get_yticklabels():
        label.set(color=STYLES[label.get_text()][0], fontweight="bold")
    axes.tick_params(length=0)
    axes.set_title("std × √d of the kernels", fontsize=11)


def draw_training(axes: Axes, curves: pd.DataFrame) -> None:
    """Loss against steps, a line for each seed; mixtures of two schemes are dashed."""
    for case, of_case in curves.groupby("case", sort=False):
        if case == BLIND:
            continue
        colour, marker = STYLES[str(case).partition(",")[0]]
        style = {"linestyle": MIXTURE_LINES[case]} if case in MIXTURES else {"marker": marker, "markevery": 4}
        for i, (_, rows) in enumerate(of_case.groupby("seed")):
            axes.plot(
                rows["step"], rows["loss"], color=colour, markersize=4, linewidth=1.3, label="_" * i + case, **style
            )
    axes.set(xlabel="step", ylabel="loss of the last block", ylim=(0, 3.6))  # the first looks lie above
    axes.grid(alpha=0.25, linewidth=0.5)


def main() -> None:
    """Runs the parts that are named, or all."""
    torch.set_num_threads(1)
    measures = {"size": size, "gradient": gradient, "training": training}
    for name in sys.argv[1:] or [*measures, "picture"]:
        start = time.perf_counter()
        if name == "picture":
            frames = [pd.read_csv(DATA / f"{measure}.csv") for measure in measures]
            save_figure(picture(*frames), PICTURE, {"source": "benchmarks/qkv_init.py"})
        else:
            frame = measures[name]()
            frame.to_csv(DATA / f"{name}.csv", index=False, float_format="%.4g")
            print(markdown_table(ends(frame) if name == "training" else frame.map(format_number)))
        print(f"{name}: {time.perf_counter() - start:.0f} s\n", flush=True)


def format_number(value: str | float) -> str:
    """Three digits, words as they are, nothing where there is nothing."""
    return value if isinstance(value, str) else "" if np.isnan(value) else f"{value:.3g}"


if __name__ == "__main__":
    main()
