"""google/flax#4027 on flax itself: how its attention starts beside torch's, and whether it learns what DETR's does.

    python benchmarks/flax_qkv_init.py size training

size      std x sqrt(fan_in) of q, k, v and out as flax's attention makes them, beside torch's (qkv_init/size.csv)
training  loss and objects found by DETR's optimizer on generated scenes: the task, batches, sizes and learning rate
          of qkv_init.py, with attention, layer norms and initializers of flax; 6 + 6 blocks, 400 steps

The tables are in flax_qkv_init.md, the curves in qkv_init/flax_training.csv.

Shapes: B scenes, S tokens, Q queries, K objects, D width, C classes, N decoder blocks.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import torch
from qkv_init import CLIP, DATA, EVERY, HELD_OUT, KERNELS, LR, WEIGHT_DECAY, ends, format_number
from qkv_init import found as found_by_torch
from scipy.optimize import linear_sum_assignment

from coordcheck.jax.post_ln import SCHEMES, attention_of
from coordcheck.models.scenes import BOX_WEIGHT, NO_OBJECT_WEIGHT, Scenes, make_scenes
from coordcheck.report.tables import markdown_table

TEXT = Path(__file__).with_suffix(".md")
WIDTH, CLASSES, QUERIES, BATCH = 64, 8, 10, 32
NAMES = dict(zip(KERNELS, ("query", "key", "value", "out"), strict=True))


class Block(nn.Module):
    """Post-LN: self-attention, cross-attention where there is a memory, and a feed-forward layer."""

    scheme: str

    @nn.compact
    def __call__(self, x_BLD: Any, places_LD: Any, memory_BSD: Any = None, places_SD: Any = None) -> Any:
        """Places go into queries and keys, not into values."""
        at_BLD = x_BLD + places_LD
        x_BLD = nn.LayerNorm()(x_BLD + attention_of(self.scheme, "self_attention")(at_BLD, at_BLD, x_BLD))
        if memory_BSD is not None:
            attention = attention_of(self.scheme, "cross_attention")
            x_BLD = nn.LayerNorm()(x_BLD + attention(x_BLD + places_LD, memory_BSD + places_SD, memory_BSD))
        init, width = SCHEMES[self.scheme][1], x_BLD.shape[-1]
        y_BLF = nn.relu(nn.Dense(4 * width, kernel_init=init, name="fc")(x_BLD))
        return nn.LayerNorm()(x_BLD + nn.Dense(width, kernel_init=init, name="proj")(y_BLF))


class PostLN(nn.Module):
    """The encoder-decoder of coordcheck/models/post_ln.py in flax."""

    depth: int
    scheme: str

    @nn.compact
    def __call__(self, features_BSI: Any) -> tuple[Any, Any]:
        """Returns class logits (N, B, Q, C + 1) and boxes in (0, 1), (N, B, Q, 2)."""
        x_BSD = nn.Dense(WIDTH, name="input")(features_BSI)
        places_SD = sines(x_BSD.shape[1])
        for i in range(self.depth):
            x_BSD = Block(self.scheme, name=f"encoder_{i}")(x_BSD, places_SD)
        queries_QD = self.param("queries", nn.initializers.normal(1.0), (QUERIES, WIDTH))
        y_BQD, of_block = jnp.zeros((len(x_BSD), QUERIES, WIDTH)), []
        for i in range(self.depth):
            y_BQD = Block(self.scheme, name=f"decoder_{i}")(y_BQD, queries_QD, x_BSD, places_SD)
            of_block.append(y_BQD)
        y_NBQD = nn.LayerNorm()(jnp.stack(of_block))
        box_NBQD = nn.relu(nn.Dense(WIDTH)(nn.relu(nn.Dense(WIDTH)(y_NBQD))))
        return nn.Dense(CLASSES + 1, name="class_head")(y_NBQD), nn.sigmoid(nn.Dense(2, name="box_head")(box_NBQD))


def sines(length: int) -> Any:
    """As :func:`coordcheck.models.post_ln.sine_positions`, (S, D)."""
    angle = np.outer(np.arange(length), 10000 ** -(np.arange(0, WIDTH, 2) / WIDTH))
    return jnp.asarray(np.concatenate([np.sin(angle), np.cos(angle)], axis=-1), jnp.float32)


def set_loss(logits: Any, boxes: Any, classes: Any, placed: Any) -> Any:
    """As :func:`coordcheck.models.scenes.set_loss`: of logits (B, Q, C + 1) and boxes (B, Q, 2)."""
    absent = classes == logits.shape[-1] - 1
    labels = jnp.broadcast_to(classes[:, None], (*logits.shape[:2], classes.shape[1]))
    distance = jnp.abs(boxes[:, :, None] - placed[:, None]).sum(-1)
    cost = BOX_WEIGHT * distance - jnp.take_along_axis(jax.nn.softmax(logits), labels, -1)
    cost = jax.lax.stop_gradient(jnp.where(absent[:, None], 0.0, cost))
    query = jax.pure_callback(matched, jax.ShapeDtypeStruct(classes.shape, jnp.int32), cost)
    scene = jnp.arange(len(classes))[:, None]
    target = jnp.full(logits.shape[:2], logits.shape[-1] - 1).at[scene, query].set(classes)
    weight = jnp.where(target == logits.shape[-1] - 1, NO_OBJECT_WEIGHT, 1.0)
    logs = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], -1)[..., 0]
    off = jnp.abs(boxes[scene, query] - placed).sum(-1)
    return -(weight * logs).sum() / weight.sum() + BOX_WEIGHT * jnp.where(absent, 0.0, off).sum() / (~absent).sum()


def matched(cost: Any) -> Any:
    """The query of every object, (B, K), of costs (B, Q, K)."""
    return np.stack([linear_sum_assignment(of.T)[1] for of in np.asarray(cost)]).astype(np.int32)


def of_scenes(scenes: Scenes) -> tuple[Any, Any, Any]:
    """Features, classes and boxes as JAX's arrays."""
    return tuple(jnp.asarray(part.numpy()) for part in (scenes.features, scenes.classes, scenes.boxes))


@dataclass(frozen=True)
class Run:
    """One training."""

    scheme: str
    depth: int
    seed: int
    steps: int = 400


RUNS = [Run(scheme, 6, 0) for scheme in SCHEMES]


@cache
def programs(depth: int) -> tuple[optax.GradientTransformation, Callable[..., Any], Callable[..., Any]]:
    """DETR's optimizer, a step of it and the predictions of the last block, compiled once for all schemes and seeds."""
    apply = PostLN(depth, "lecun_normal").apply  # which makes no numbers
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(LR, weight_decay=WEIGHT_DECAY))

    def loss(parameters: Any, features: Any, classes: Any, placed: Any) -> Any:
        return sum(set_loss(*of_block, classes, placed) for of_block in zip(*apply(parameters, features), strict=True))

    def step(parameters: Any, state: Any, *batch: Any) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(parameters, *batch), state, parameters)
        return optax.apply_updates(parameters, updates), state

    return optimizer, jax.jit(step), jax.jit(lambda parameters, x: [value[-1] for value in apply(parameters, x)])


def train(run: Run) -> pd.DataFrame:
    """Fresh scenes at every step; returns the last block's loss and share of objects found on held-out scenes."""
    optimizer, step, look = programs(run.depth)
    held_out = make_scenes(HELD_OUT, 256)
    seen = of_scenes(held_out)
    parameters = jax.jit(PostLN(run.depth, run.scheme).init)(jax.random.key(run.seed), seen[0][:1])
    state = optimizer.init(parameters)
    rows = []
    for i in range(run.steps + 1):
        if i % EVERY == 0:
            predicted = look(parameters, seen[0])
            of_torch = [torch.from_numpy(np.array(value)) for value in predicted]
            rows.append((i, float(set_loss(*predicted, *seen[1:])), found_by_torch(*of_torch, held_out)))
        parameters, state = step(parameters, state, *of_scenes(make_scenes(run.seed * 10**5 + i, BATCH)))
    curve = pd.DataFrame(rows, columns=["step", "loss", "found"])
    return curve.assign(blocks=f"{run.depth} + {run.depth}", case=run.scheme, seed=run.seed)


def training() -> str:
    """Trains all; a pair of loss and share found per seed."""
    frames = []
    for run in RUNS:
        begin = time.process_time()
        frames.append(train(run))
        pd.concat(frames).to_csv(DATA / "flax_training.csv", index=False, float_format="%.4g")
        print(run, frames[-1].iloc[-1]["loss"], f"{time.process_time() - begin:.0f} s of CPU", flush=True)
    return markdown_table(ends(pd.concat(frames, ignore_index=True)))


def sizes() -> Iterator[dict[str, str | float]]:
    """Of flax's attention in each scheme, and what qkv_init.py found of torch's."""
    x = jnp.zeros((1, 2, 256))
    for scheme in SCHEMES:
        kernels = attention_of(scheme, None).init(jax.random.key(0), x, x)["params"]
        std = {name: float(jnp.std(kernels[of]["kernel"]) * 256**0.5) for name, of in NAMES.items()}
        yield {"256 entries, 8 heads": f"flax MultiHeadDotProductAttention, {scheme}", **std}
    of_torch = pd.read_csv(DATA / "size.csv").set_index("kernels")
    for name in ("torch MultiheadAttention, d=256", "torch MultiheadAttention of three matrices, d=256"):
        yield {"256 entries, 8 heads": name, **of_torch.loc[name, list(KERNELS)]}


def size() -> str:
    """Std x sqrt(fan_in) of each kernel."""
    return markdown_table(pd.DataFrame(sizes()).map(format_number))


def main() -> None:
    """Runs the parts that are named, or all, which also writes the tables."""
    torch.set_num_threads(1)
    parts = {"size": size, "training": training}
    tables = {name: parts[name]() for name in sys.argv[1:] or parts}
    print("\n\n".join(tables.values()))
    if tables.keys() == parts.keys():
        TEXT.write_text("\n\n".join(tables.values()) + "\n")


if __name__ == "__main__":
    main()
