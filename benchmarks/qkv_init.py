"""What the initialization of q, k and v does to a post-LN transformer: https://github.com/google/flax/issues/4027.

    python benchmarks/qkv_init.py size gradient training

size      std x sqrt(fan_in) of every kernel, as torch's own modules have it and as our table has it
gradient  norms of the gradients of every kernel of the decoder at step 0, at DETR's size: width 256, 6 + 6 blocks
training  loss and objects found after 400 steps of DETR's optimizer on generated scenes; 2 + 2 and 6 + 6 blocks
          of width 64 and 128, at DETR's learning rate 1e-4 and at 1e-3
"""

import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from statistics import mean

import pandas as pd
import torch
from torch import Tensor, nn

from coordcheck.config import Scheme
from coordcheck.initialize import Rule, initialize
from coordcheck.models.layers import materialize
from coordcheck.models.post_ln import PostLN
from coordcheck.parametrization import infshapes, roles, shapes
from coordcheck.report import markdown_table
from coordcheck.schemes import post_ln_rules
from coordcheck.set_prediction import Scenes, found, make_scenes, set_loss

SEEDS = range(3)
KERNELS = ("q", "k", "v", "out")
HELD_OUT = 10**6  # seed of the scenes that no training sees
# facebookresearch/detr main.py
WEIGHT_DECAY, CLIP = 1e-4, 0.1


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
    """Of torch's own modules and of our table."""
    return pd.DataFrame([*torch_sizes(), *table_sizes()])


def torch_sizes() -> Iterator[dict[str, str]]:
    """Nothing of ours."""
    for width in (64, 128, 256, 512, 1024):
        torch.manual_seed(0)
        yield row(f"torch MultiheadAttention, d={width}", of_attention(nn.MultiheadAttention(width, 8)))
        apart = nn.MultiheadAttention(width, 8, kdim=width, vdim=width + 1)  # unequal sizes make it keep three matrices
        yield row(f"torch MultiheadAttention of three matrices, d={width}", of_attention(apart))
        layer = nn.Transformer(width, 8, 1, 1, batch_first=True).encoder.layers[0]
        feed_forward = {"fc": layer.linear1.weight, "proj": layer.linear2.weight}
        yield row(f"torch Transformer, F=2048, d={width}", of_attention(layer.self_attn) | feed_forward)


def of_attention(attention: nn.MultiheadAttention) -> dict[str, Tensor]:
    """Its four kernels, packed or not."""
    packed = attention.in_proj_weight
    apart = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
    kernels = apart if packed is None else packed.chunk(3)
    return dict(zip(KERNELS, (*kernels, attention.out_proj.weight), strict=True))


def table_sizes() -> Iterator[dict[str, str]]:
    """Blocks of a model of 6 + 6 blocks, F = 2048."""
    for scheme in Scheme:
        model = build(table_of(scheme, 6, 8), 256, 6, 0, ratio=8)
        for name in ("encoder.3", "decoder.3"):
            block = model.get_submodule(name)
            attention = block.get_submodule("attn" if "encoder" in name else "cross_attn")
            weights = {kernel: attention.get_submodule(kernel).weight for kernel in KERNELS}
            yield row(f"{scheme.name}, {name}", weights | {"fc": block.mlp.fc.weight, "proj": block.mlp.proj.weight})


def row(name: str, weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Size of each weight."""
    return {
        "kernels": name,
        **{kernel: f"{w.std() * w.shape[-1] ** 0.5:.3f}" for kernel, w in weights.items()},
    }


# gradient


def gradient() -> pd.DataFrame:
    """Norms at step 0, mean over seeds, the loss being that of the last block alone."""
    cases = [(scheme, 1e-5) for scheme in Scheme] + [(Scheme.xavier_separate, 1e-6)]
    return pd.DataFrame([entry for case in cases for entry in norms(*case)])


def norms(scheme: Scheme, eps: float) -> Iterator[dict[str, str]]:
    """A row per decoder block's self-attention."""
    models = [build(table_of(scheme, 6, 8), 256, 6, seed, ratio=8, eps=eps) for seed in SEEDS]
    for seed, model in zip(SEEDS, models, strict=True):
        scenes = make_scenes(seed, 16)
        set_loss(*(predicted[-1] for predicted in model(scenes.features)), scenes).backward()
    for i in range(6):
        names = [f"{kernel}.weight" for kernel in KERNELS] + ["v.bias", "out.bias"]
        values = {name: [norm(m.decoder[i].self_attn.get_parameter(name)) for m in models] for name in names}
        yield {"scheme": f"{scheme.name}, eps={eps:g}", "decoder block": str(i)} | {
            name: f"{mean(value):.3g}" for name, value in values.items()
        }


def norm(parameter: nn.Parameter) -> float:
    """Of its gradient."""
    assert parameter.grad is not None
    return float(parameter.grad.norm())


# training


def training() -> pd.DataFrame:
    """Loss and share of objects found on held-out scenes, one pair per seed."""
    blind = train(table_of(Scheme.xavier_packed, 2), 64, 2, 1e-3, 0, scenes=mixed_up)
    print(f"what a model reaches that cannot see the scenes: {blind}", flush=True)
    rows = []
    for width, depth, lr in ((64, 2, 1e-4), (64, 2, 1e-3), (64, 6, 1e-3), (128, 6, 1e-4)):
        tables = {scheme.name: table_of(scheme, depth) for scheme in Scheme}
        tables |= {f"xavier_separate, but {k} as packed": mixture(depth, k) for k in ("qk", "v")}
        for name, table in tables.items():
            ends = [train(table, width, depth, lr, seed) for seed in SEEDS]
            seen = {
                f"step {step}": ", ".join(f"{end[step][0]:.2f} / {end[step][1]:.2f}" for end in ends)
                for step in ends[0]
            }
            rows.append({"model": f"{width}, {depth} + {depth}", "lr": f"{lr:g}", "scheme": name, **seen})
            print(" | ".join(rows[-1].values()), flush=True)
    return pd.DataFrame(rows)


def mixed_up(seed: int, scenes: int) -> Scenes:
    """Scenes that show one another's features."""
    drawn = make_scenes(seed, scenes)
    return Scenes(drawn.features.roll(1, 0), drawn.classes, drawn.boxes)


def train(
    table: list[Rule],
    width: int,
    depth: int,
    lr: float,
    seed: int,
    *,
    scenes: Callable[[int, int], Scenes] = make_scenes,
    steps: int = 400,
) -> dict[int, tuple[float, float]]:
    """Fresh scenes at every step; returns the last block's loss and share of objects found, by step."""
    model = build(table, width, depth, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)
    held_out = scenes(HELD_OUT, 256)
    seen = {}
    for step in range(steps + 1):
        if step in (steps // 4, steps // 2, steps):
            with torch.no_grad():
                predicted = [value[-1] for value in model(held_out.features)]
                seen[step] = (float(set_loss(*predicted, held_out)), found(*predicted, held_out))
        optimizer.zero_grad()
        loss_of(model, scenes(seed * 10**5 + step, 32)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    return seen


def main() -> None:
    """Runs the parts that are named, or all."""
    torch.set_num_threads(1)
    parts = {"size": size, "gradient": gradient, "training": training}
    for name in sys.argv[1:] or parts:
        start = time.perf_counter()
        print(markdown_table(parts[name]().fillna("")))
        print(f"{name}: {time.perf_counter() - start:.0f} s\n", flush=True)


if __name__ == "__main__":
    main()
