"""Planted faults in a flax transformer: are they seen, is the place and the cause right, does the correct twin pass?

python benchmarks/jax_faults.py [NAME ...]   writes benchmarks/jax_faults.md where all were run
"""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import coordcheck.jax as cj
from coordcheck import CoordCheck

BASE, VOCABULARY, CONTEXT, SEQUENCES = 32, 64, 16, 8
WIDTHS, SEEDS = (32, 64, 128), 8


class Net(nn.Module):
    """Two feed-forward blocks, or one with attention, and switches for what may be wrong; as it stands it is in muP."""

    width: int
    hidden_std: Callable[[int], float] = lambda fan_in: fan_in**-0.5
    embedding_exponent: float = 0.0
    logits_divided: bool = True
    readout_std: float = BASE**-0.5
    attention_scale: float = -1.0
    residual_exponent: float = 0.0
    finite_block: bool = False
    silent: bool = False
    attends: bool = False

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        """Logits (B, L, V) of integers (B, L)."""
        mult = self.width / BASE
        embed = nn.Embed(VOCABULARY, self.width, embedding_init=nn.initializers.normal(1.0), name="embed")
        x = embed(tokens) * mult**self.embedding_exponent
        if self.attends:
            x = x + self.attention(x, "block_0")
        for i in range(1 if self.attends else 2):
            x = x + self.feed_forward(x, f"block_{i}", self.finite_block and i == 1) * mult**self.residual_exponent
        x = nn.RMSNorm(name="norm")(x)
        x = x / mult if self.logits_divided else x
        return self.dense(VOCABULARY, "readout", self.readout_std)(x)

    def dense(self, out: int, name: str, std: float | None = None) -> nn.Dense:
        """A layer without bias."""

        def init(key: Any, shape: Any, dtype: Any = jnp.float32) -> Any:
            return jax.random.normal(key, shape, dtype) * (self.hidden_std(shape[0]) if std is None else std)

        return nn.Dense(out, use_bias=False, kernel_init=init, name=name)

    def attention(self, x: Any, name: str) -> Any:
        """Two heads, whose size grows."""
        y = nn.RMSNorm(name=f"{name}_norm_attention")(x)
        size = self.width // 2
        q, k, v = (self.dense(self.width, f"{name}_{n}")(y).reshape(*y.shape[:2], 2, size) for n in "qkv")
        scale = 4.0 / size if self.attention_scale == -1.0 else size**self.attention_scale
        y = jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=True).reshape(x.shape)
        return self.dense(self.width, f"{name}_o")(y)

    def feed_forward(self, x: Any, name: str, finite: bool) -> Any:
        """Four times as wide."""
        y = nn.RMSNorm(name=f"{name}_norm_feed_forward")(x)
        y = nn.gelu(self.dense(4 * BASE if finite else 4 * self.width, f"{name}_up")(y))
        y = y * 0.0 if self.silent and name == "block_1" else y
        return self.dense(self.width, f"{name}_down")(y)


Rates = Callable[[int, Mapping[str, str]], optax.GradientTransformation]


def mup(lr: float = 5e-3, **by_name: float) -> Rates:
    """Adam in muP, with exponents of its own for the parameters whose names end with these."""

    def make(width: int, roles: Mapping[str, str]) -> optax.GradientTransformation:
        rates = cj.scale_by_width(width, roles, BASE, multipliers={"readout": -1.0})
        own = [_more(width, roles, name, exponent) for name, exponent in by_name.items()]
        return optax.chain(optax.adam(lr, eps=1e-12), rates, *own)

    return make


def _more(width: int, roles: Mapping[str, str], end: str, exponent: float) -> optax.GradientTransformation:
    factor = 0.0 if exponent == -9 else (width / BASE) ** exponent

    def scaled(updates: Any, params: Any = None) -> Any:
        def one(path: Any, u: Any) -> Any:
            name = ".".join(str(key.key) for key in path)
            return u * factor if name.rpartition(".")[0].endswith(end.replace("__", ".")) else u

        return jax.tree_util.tree_map_with_path(one, updates)

    return optax.stateless(scaled)


def plain(width: int, roles: Mapping[str, str]) -> optax.GradientTransformation:
    """Adam with one learning rate."""
    return optax.adam(5e-3, eps=1e-12)


def sgd_by_adams_rules(width: int, roles: Mapping[str, str]) -> optax.GradientTransformation:
    """SGD with the exponents of Adam."""
    return optax.chain(optax.sgd(0.2), cj.scale_by_width(width, roles, BASE, "adam", {"readout": -1.0}))


def sgd(width: int, roles: Mapping[str, str]) -> optax.GradientTransformation:
    """SGD with its own."""
    return optax.chain(optax.sgd(0.2), cj.scale_by_width(width, roles, BASE, "sgd", {"readout": -1.0}))


def decayed(coupled: bool) -> Rates:
    """AdamW whose decay follows the scaled learning rate, or does not."""

    def make(width: int, roles: Mapping[str, str]) -> optax.GradientTransformation:
        rates = cj.scale_by_width(width, roles, BASE, multipliers={"readout": -1.0})
        adam, decay = optax.scale_by_adam(eps=1e-12), optax.add_decayed_weights(0.1)
        order = (adam, decay, rates) if coupled else (adam, rates, decay)
        return optax.chain(*order, optax.scale(-5e-3))

    return make


@dataclass(frozen=True)
class Fault:
    """A fault, its correct twin, and what should be said of it."""

    faulty: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Rates = field(default_factory=mup)
    cause: tuple[str, ...] = ("learning_rate",)
    place: str = ""
    correct: Mapping[str, Any] = field(default_factory=dict)
    right: Rates = field(default_factory=mup)
    decay: str | None = None


FAULTS = {
    "one layer's learning rate is not scaled": Fault(optimizer=mup(block_1_up=1.0), place="block_1_up"),
    "no learning rate is scaled": Fault(optimizer=plain, place="block_"),
    "the embedding's learning rate is divided by width": Fault(optimizer=mup(embed=-1.0), place="embed"),
    "the readout has multiplier and 1/width learning rate": Fault(optimizer=mup(readout=-1.0), place="readout"),
    "nothing divides the logits": Fault({"logits_divided": False}, cause=("multiplier",), place="readout"),
    "hidden std is 1/width": Fault({"hidden_std": lambda fan_in: BASE**0.5 / fan_in}, cause=("init",), place="block_0"),
    "hidden std is 0.18 at every width": Fault({"hidden_std": lambda fan_in: 0.18}, cause=("init",), place="block_0"),
    "attention keeps 1/sqrt(head size)": Fault(
        {"attention_scale": -0.5, "attends": True}, cause=("multiplier",), place="(model)", correct={"attends": True}
    ),
    "the embedding is multiplied by sqrt(width)": Fault(
        {"embedding_exponent": 0.5}, cause=("multiplier", "init"), place="embed"
    ),
    "a residual branch is multiplied by sqrt(width)": Fault(
        {"residual_exponent": 0.5}, cause=("multiplier", "init", "learning_rate"), place="block_0_down"
    ),
    "the width does not reach a feed-forward layer": Fault({"finite_block": True}, cause=("width",), place="block_1"),
    "a layer is not trained": Fault(optimizer=mup(block_1_up=-9), cause=("untrained",), place="block_1_up"),
    "a branch is multiplied by zero": Fault({"silent": True}, cause=("dead",), place="block_1_down"),
    "SGD has Adam's exponents": Fault(optimizer=sgd_by_adams_rules, place="", right=sgd),
    "weight decay follows the scaled learning rate": Fault(
        optimizer=decayed(True), cause=("decay",), place="block_", right=decayed(False), decay="independent"
    ),
}


def batch(seed: int) -> Any:
    """Windows of the standard library's text, its bytes modulo the vocabulary."""
    from pydoc_data import topics

    text = np.frombuffer("\n".join(topics.topics.values()).encode(), np.uint8) % VOCABULARY
    starts = np.random.default_rng(seed).integers(0, len(text) - CONTEXT - 1, SEQUENCES)
    windows = np.stack([text[i : i + CONTEXT + 1] for i in starts]).astype(np.int32)
    return windows[:, :-1], windows[:, 1:]


def check(changes: Mapping[str, Any], optimizer: Rates, decay: str | None) -> CoordCheck:
    """The check of one model."""
    return cj.coord_check(
        lambda width: Net(width, **changes),
        batch,
        WIDTHS,
        SEEDS,
        optimizer=optimizer,
        decay=decay,
        name="net",
    )


def main(names: list[str]) -> None:
    """Runs the faults and prints, and where all were run writes, the table."""
    rows, correct = [], {}
    chosen = {name: fault for name, fault in FAULTS.items() if not names or name in names}
    for name, fault in chosen.items():
        begin = time.perf_counter()
        found = check(fault.faulty, fault.optimizer, fault.decay)
        twin = repr((sorted(fault.correct), fault.right.__qualname__, fault.decay))
        if twin not in correct:
            correct[twin] = check(fault.correct, fault.right, fault.decay)
        faults = [one for one in found.findings if one.fault]
        first = faults[0] if faults else None
        place = first is not None and (first.parameter or first.module).startswith(fault.place)
        cause = first is not None and first.fault in fault.cause
        told = "-" if first is None else f"{first.fault} at {first.parameter or first.module}"
        right = "yes" if place and cause else "no"
        rows.append((name, found.verdict, told, right, correct[twin].verdict))
        print(" | ".join(rows[-1]), f"| {time.perf_counter() - begin:.0f} s", flush=True)
    lines = ["| fault | verdict | first finding | place and cause right | correct twin |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    seen, told = sum(row[1] == "fail" for row in rows), sum(row[3] == "yes" for row in rows)
    failed = sum(row[4] == "fail" for row in rows)
    lines += ["", f"{seen} of {len(rows)} seen, {told} with place and cause right; {failed} correct twins failed."]
    if len(rows) == len(FAULTS):
        Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
