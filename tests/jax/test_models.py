"""What `build` may return: linen, nnx and a pair are recorded alike, and what a mistake says."""

from functools import cache

import pytest

pytest.importorskip("flax", reason="JAX is not installed: pip install 'coordcheck[jax]'")

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import coordcheck.jax as cj
from coordcheck.jax.cell import JaxCell
from coordcheck.jax.run import Plan, Runs

DRAW = np.random.default_rng(0)
BATCH = DRAW.normal(size=(8, 12)).astype("float32"), DRAW.integers(0, 5, 8)
WIDTHS = (16, 32, 64)
KINDS = ("activation", "delta", "effective_update", "gradient")


class Linen(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.width, name="up")(x))
        return nn.Dense(5, name="head")(nn.Dropout(0.5, deterministic=False, name="drop")(x))


class Nnx(nnx.Module):
    def __init__(self, width, rngs):
        self.up = nnx.Linear(12, width, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(width, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(nnx.relu(self.up(x))))


def pair(width):
    def init(key, x):
        up, head = jax.random.split(key)
        return {
            "up": jax.random.normal(up, (12, width)) / 12**0.5,
            "head": jax.random.normal(head, (width, 5)) / width**0.5,
        }

    def apply(params, x):
        x = cj.tap("up", x @ params["up"])
        return cj.tap("head", jax.nn.relu(x) @ params["head"])

    return init, apply


BUILDS = {"linen": Linen, "nnx": lambda width: lambda rngs: Nnx(width, rngs), "pair": pair}


def adam(width, roles):
    return optax.adam(1e-2)


@cache
def recorded(build, kinds=KINDS, steps=3):
    cell = JaxCell(build, BATCH, adam, None, WIDTHS)
    return cell, Runs(cell, Plan(steps, kinds, None), [16], [0]).finish()


@pytest.mark.parametrize("kind", BUILDS)
def test_modules_are_recorded_in_forward_order_with_their_roles(kind):
    cell, records = recorded(BUILDS[kind])
    modules = records.sort_values("order")["module"].drop_duplicates().tolist()
    shown = [name for name in modules if name in ("up", "drop", "head", "(model)", "(loss)")]
    assert shown == [name for name in ("up", "drop", "head", "(model)", "(loss)") if kind != "pair" or name != "drop"]
    expected = {"input", "readout"} | ({"vector", "fixed"} if kind != "pair" else set())
    assert {*cell.roles.values()} == expected
    if kind != "pair":
        assert records.query("module == 'up'")["role"].unique().tolist() == ["input"]
        assert records.query("module == 'head'")["role"].unique().tolist() == ["readout"]
        updates = records.query("kind == 'effective_update'")
        assert {*updates["module"]} == {"up", "head"} and (updates["l1"] > 0).all()
    deltas = records.query("kind == 'delta' and module == 'head'")
    assert deltas["step"].tolist() == [1, 2] and (deltas["l1"] > 0).all()


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_dropout_draws_the_same_mask_at_every_step(kind):
    _, records = recorded(BUILDS[kind])
    first = records.query("module == 'drop' and kind == 'delta' and step == 1").iloc[0]
    whole = records.query("module == 'up' and kind == 'delta' and step == 1").iloc[0]
    # another mask would change half of all entries by their own size, not by what training did
    assert first["l1"] < 4 * whole["l1"]


def test_an_effective_update_is_the_weights_change_times_the_input():
    cell = recorded(Linen)[0]
    start, rest, _ = cell.begun(16, 0)
    change = {name: DRAW.normal(size=of.shape).astype("float32") for name, of in start["up"].items()}
    now = {**start, "up": {name: of + change[name] for name, of in start["up"].items()}}
    graded = jax.jit(cj.value_and_grad(cell.loss(16), kinds=("effective_update",)))
    (_, told), _ = graded(now, rest, cell.batch(0), start=(start, {}))
    records = cj.records([told], width=16, roles=cell.roles)
    expected = np.abs(BATCH[0] @ change["kernel"] + change["bias"]).mean()
    found = records.set_index("module")["l1"]
    assert found["up"] == pytest.approx(expected, rel=1e-4)
    assert found["head"] == 0


class Attends(nn.Module):
    width: int
    fused: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width, name="up")(x)[None]
        if self.fused:
            q, k, v = (nn.Dense(self.width, name=n)(x).reshape(1, -1, 2, self.width // 2) for n in "qkv")
            x = jax.nn.dot_product_attention(q, k, v, scale=0.25).reshape(x.shape)
        else:
            x = nn.MultiHeadDotProductAttention(2, name="attention")(x, x)
        return nn.Dense(5, name="head")(x)[0]


@pytest.mark.parametrize("fused", [False, True])
def test_attention_logits_are_seen_with_their_scale(fused):
    cell = JaxCell(lambda width: Attends(width, fused), BATCH, adam, None, WIDTHS)
    start, rest, _ = cell.begun(16, 0)
    (_, told), _ = jax.jit(cj.value_and_grad(cell.loss(16), kinds=("activation",)))(start, rest, cell.batch(0))
    records = cj.records([told], width=16)
    found = records[records["module"].str.endswith("[attention_logits]")]
    assert found["role"].tolist() == ["attention_logits"]

    def dense(p, x):
        kernel = np.asarray(p["kernel"]).reshape(16, 16)
        return x @ kernel + np.asarray(p["bias"]).reshape(16)

    x = dense({"kernel": np.zeros((16, 16)), "bias": start["up"]["bias"]}, BATCH[0] @ np.zeros((12, 16)))
    x = BATCH[0] @ np.asarray(start["up"]["kernel"]) + x
    names = ("q", "k") if fused else ("query", "key")
    of = start if fused else start["attention"]
    q, k = (dense(of[name], x).reshape(8, 2, 8) for name in names)
    logits = np.einsum("lhk,shk->hls", q, k) * (0.25 if fused else 8**-0.5)
    assert found["l1"].item() == pytest.approx(np.abs(logits).mean(), rel=1e-5)
    assert found["count"].item() == logits.size


@pytest.mark.parametrize("way", [jnp.broadcast_to, lambda b, shape: b, lambda b, shape: jnp.tile(b, (shape[0], 1))])
def test_a_bias_is_a_vector_however_it_is_brought_to_the_rows(way):
    def biased(width):
        def init(key, x):
            return {"up": jnp.ones((12, width)), "bias": jnp.zeros(width), "place": jnp.ones((8, width))}

        def apply(params, x):
            x = x @ params["up"]
            return (x + way(params["bias"], x.shape) + params["place"]).sum(keepdims=True) * jnp.ones((8, 5))

        return init, apply

    assert JaxCell(biased, BATCH, adam, None, WIDTHS).roles == {"up": "input", "bias": "vector", "place": "input"}


def test_batch_statistics_are_kept_aside():
    class Normed(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=False, name="norm")(nn.Dense(self.width, name="up")(x))
            return nn.Dense(5, name="head")(x)

    _, records = recorded(Normed, kinds=("activation",), steps=2)
    assert records.query("module == 'norm' and kind == 'activation'")["nonfinite"].eq(0).all()


def test_a_tied_embedding_is_read_as_both():
    class Tied(nn.Module):
        width: int

        @nn.compact
        def __call__(self, tokens):
            embed = nn.Embed(11, self.width, name="embed")
            x = nn.Dense(self.width, name="mid")(embed(tokens))
            return embed.attend(x / self.width)

    tokens = DRAW.integers(0, 11, (4, 6))
    found = cj.audit(Tied, (tokens, tokens), WIDTHS).parameters.set_index("parameter")
    assert found.loc["embed.embedding", "role"] == "input"
    assert found.loc["embed.embedding", "readout_multiplier_exponent"] == pytest.approx(-1)
    assert found.loc["embed.embedding", "readout_used_in"] == "dot_general in embed:attend"
    assert found.loc["mid.kernel", "role"] == "hidden"
    assert found.loc["mid.kernel", "multiplier_exponent"] == 0  # the factor is the readout's


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"build": 3}, r"`build` is a function from width to a model; got 3\. For example"),
        ({"build": lambda width: "model"}, r"`build` returns a model of JAX; got 'model'\. For example"),
        ({"build": lambda width: nn.Dense(5)}, r"no parameter's shape changes with width"),
        ({"optimizer": optax.adam(1e-3)}, r"`optimizer` is a function of width and roles"),
        ({"optimizer": lambda width, roles: 1e-3}, r"`optimizer` returns an optax transformation; got 0\.001"),
        ({"loss": 3}, r"`loss` is a function of model and batch; got 3"),
        ({"loss": lambda model, batch: model(batch[0])}, r"a loss is one real number; got float32 of shape \(8, 5\)"),
        ({"batch": (BATCH[0], BATCH[0])}, r"the default loss is cross entropy .* targets float32 of shape \(8, 12\)"),
        ({"batch": BATCH[0]}, r"`batch` is \(inputs, targets\)"),
        ({"control": 3}, r"`control` is True, False, or a pair of functions"),
        ({"widths": (16, 32)}, r"`widths` needs at least 3 distinct"),
        ({"modules": ["nothing.*"]}, r"nothing was recorded but the loss"),
        ({"build": lambda width: nn.Dense(width).nothing}, r"`build` raises AttributeError"),
    ],
)
def test_a_mistake_is_told_with_its_rule_and_an_example(arguments, message):
    call = {"build": Linen, "batch": BATCH, "widths": WIDTHS, "audit": False, "control": False, "seeds": 2}
    with pytest.raises(ValueError, match=message):
        cj.coord_check(**{**call, **arguments})


def test_scale_by_width_says_what_it_needs():
    with pytest.raises(ValueError, match=r"`update` is 'adam', 'sgd' or 'muon'; got 'lion'"):
        cj.scale_by_width(64, {}, update="lion")
    with pytest.raises(ValueError, match=r"`roles` is a dict .* got deep"):
        cj.scale_by_width(64, {"a": "deep"})
    for multipliers in ({"redout": -1.0}, {"readout": float("nan")}, {"readout": "1"}, [-1.0]):
        with pytest.raises(ValueError, match=r"`multipliers` is a dict from some of input, .* got"):
            cj.scale_by_width(64, {"a": "readout"}, multipliers=multipliers)
    with pytest.raises(ValueError, match=r"`roles` has no role for .*a\.kernel"):
        cj.scale_by_width(64, {}).init({"a": {"kernel": jnp.ones(2)}})
