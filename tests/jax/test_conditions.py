"""What is recorded under jit, scan, remat, donation, bfloat16 and sharding is what plain numpy says, layer by layer."""

import os
from functools import partial

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import pytest

pytest.importorskip("flax", reason="JAX is not installed: pip install 'coordcheck[jax]'")

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import coordcheck.jax as cj

LAYERS, WIDTH, ROWS, LR = 3, 8, 4, 0.1
KINDS = ("activation", "delta", "effective_update", "gradient")


@pytest.fixture(scope="module")
def weights():
    return np.random.default_rng(0).normal(size=(LAYERS, WIDTH, WIDTH)).astype("float32") / WIDTH**0.5


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=(ROWS, WIDTH)).astype("float32")


def layer(x, w):
    return cj.tap("layer", jnp.tanh(x @ w))


def by_loop(w, x):
    for i in range(LAYERS):
        x = cj.tap(f"layer.{i}", jnp.tanh(x @ w[i]))
    return (x**2).mean()


def by_scan(w, x, step=layer):
    return (jax.lax.scan(lambda x, w: (step(x, w), None), x, w)[0] ** 2).mean()


def by_scan_in_pieces(w, x):
    """A scan in a scan in a function that is compiled on its own, and a branch that is taken."""

    @jax.jit
    def block(x, w):
        return jax.lax.cond(x.sum() < 1e9, lambda x: by_scan.__wrapped__(x, w), lambda x: x, x)

    return (block(x, w) ** 2).mean()


by_scan.__wrapped__ = lambda x, w: jax.lax.scan(lambda x, w: (layer(x, w), None), x, w)[0]

WAYS = {
    "loop": by_loop,
    "scan": by_scan,
    "remat": partial(by_scan, step=jax.checkpoint(layer)),
    "saving": partial(by_scan, step=jax.checkpoint(layer, policy=jax.checkpoint_policies.dots_saveable)),
    "nested": by_scan_in_pieces,
}


def oracle(w, x):
    """Outputs of each layer, the loss's gradient by each, and by the weights: by hand, in numpy."""
    hidden = [x.astype("float64")]
    for one in w.astype("float64"):
        hidden.append(np.tanh(hidden[-1] @ one))
    by_output = [2 * hidden[-1] / hidden[-1].size]
    by_weight = []
    for i in reversed(range(LAYERS)):
        before = by_output[0] * (1 - hidden[i + 1] ** 2)
        by_weight.insert(0, hidden[i].T @ before)
        by_output.insert(0, before @ w[i].astype("float64").T)
    return hidden[1:], by_output[1:], np.stack(by_weight)


def trained(loss, w, x, steps=3, **jit):
    """The records of a few steps of SGD, by a compiled step of one's own; what step 0 compares with says nothing."""
    graded = cj.value_and_grad(loss, kinds=KINDS)

    @partial(jax.jit, **jit)
    def step(w, first, copies, x):
        (_, told), gradient = graded(w, x, start=(first, copies))
        return w - LR * gradient, told

    w = jnp.asarray(w)
    first = w.copy()
    shapes = jax.eval_shape(lambda: graded(w, x)[0][1].copies)
    copies = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    told = []
    for _ in range(steps):
        w, said = step(w, first, copies, x)
        told.append(said)
        copies = told[0].copies
    return cj.records(told, width=WIDTH), np.asarray(w)


def l1_of(records, module, kind, step):
    found = records[(records["module"] == module) & (records["kind"] == kind) & (records["step"] == step)]
    assert len(found) == 1, (module, kind, step)
    return found.iloc[0]


def agree(records, w, x, rel=1e-5):
    """Compares all that was recorded of three steps with the oracle."""
    first, *_ = oracle(w, x)
    w = w.astype("float64")
    for step in range(3):
        hidden, by_output, by_weight = oracle(w, x)
        for i in range(LAYERS):
            size = l1_of(records, f"layer.{i}", "activation", step)
            assert size["l1"] == pytest.approx(np.abs(hidden[i]).mean(), rel=rel)
            assert size["rms"] == pytest.approx(np.sqrt((hidden[i] ** 2).mean()), rel=rel)
            assert size["max"] == pytest.approx(np.abs(hidden[i]).max(), rel=rel)
            assert size["count"] == ROWS * WIDTH and size["nonfinite"] == 0
            gradient = l1_of(records, f"layer.{i}", "gradient", step)
            assert gradient["l1"] == pytest.approx(np.abs(by_output[i]).mean(), rel=rel)
            if step:
                delta = l1_of(records, f"layer.{i}", "delta", step)
                change = np.abs(hidden[i] - first[i])
                assert delta["l1"] == pytest.approx(change.mean(), rel=100 * rel)  # a difference of rounded numbers
        of_weights = records[records["module"].isin(["parameter"]) & (records["step"] == step)]
        assert of_weights["l1"].item() == pytest.approx(np.abs(by_weight).mean(), rel=rel)
        w = w - LR * by_weight


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_run_the_layers_records_the_same(way, weights, x):
    records, _ = trained(WAYS[way], weights, x)
    agree(records, weights, x)


def test_a_step_may_give_its_weights_away(weights, x):
    records, _ = trained(by_scan, weights, x, donate_argnums=0)
    agree(records, weights, x)


@pytest.mark.parametrize(("axis", "devices"), [("rows", 4), ("features", 4), ("features", 8)])
def test_sums_of_sharded_arrays_are_those_of_all(axis, devices, weights, x):
    if jax.device_count() < devices:
        pytest.skip("JAX was started with fewer devices")
    mesh = Mesh(np.array(jax.devices()[:devices]), ("parts",))
    parts = PartitionSpec("parts") if axis == "rows" else PartitionSpec(None, None, "parts")
    where = NamedSharding(mesh, parts if axis == "rows" else PartitionSpec())
    split = jax.device_put(weights, NamedSharding(mesh, PartitionSpec() if axis == "rows" else parts))
    records, _ = trained(by_scan, split, jax.device_put(x, where))
    agree(records, weights, x)


def test_all_that_a_run_told_comes_in_one_transfer(weights, x, monkeypatch):
    taken = []

    def counted(arrays, get=jax.device_get):
        taken.extend(jax.tree.leaves(arrays))
        return get(arrays)

    monkeypatch.setattr(jax, "device_get", counted)
    records, _ = trained(by_scan, weights, x)
    (numbers,) = taken
    rows = records.query("module != '(loss)'")
    assert numbers.shape == (
        3 + 3 * LAYERS * 3 + 3,
        5,
    )  # of losses; activations, deltas, gradients; the weight's gradient
    assert len(rows) == 3 * LAYERS * 3 + 3


def test_statistics_of_bfloat16_are_of_its_values_in_float32(weights, x):
    w, rows = jnp.asarray(weights, jnp.bfloat16), jnp.asarray(x, jnp.bfloat16)
    records, _ = trained(by_loop, w, rows, steps=1)
    hidden = np.asarray(jnp.tanh(rows @ w[0]), "float64")
    assert l1_of(records, "layer.0", "activation", 0)["l1"] == pytest.approx(np.abs(hidden).mean(), rel=2e-3)
    assert l1_of(records, "layer.2", "activation", 0)["l1"] == pytest.approx(
        np.abs(oracle(weights, x)[0][2]).mean(), rel=2e-2
    )


def test_training_is_what_it_is_without_a_recorder(weights, x):
    _, recorded = trained(by_scan, weights, x)
    w = jnp.asarray(weights)
    for _ in range(3):
        w = w - LR * jax.grad(lambda w: (jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0] ** 2).mean())(w)
    np.testing.assert_allclose(recorded, w, rtol=1e-6, atol=1e-7)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(WIDTH, use_bias=False, name="dense")(x)), None


class Scanned(nn.Module):
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        of = nn.remat(Layer) if self.remat else Layer
        layers = nn.scan(of, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS)
        return layers(name="layers")(x, None)[0]


@pytest.mark.parametrize("remat", [False, True])
def test_layers_under_nn_scan_are_kept_apart(remat, weights, x):
    model = Scanned(remat)
    graded = cj.value_and_grad(lambda p, x: (model.apply({"params": p}, x) ** 2).mean(), kinds=KINDS)
    first = {"layers": {"dense": {"kernel": jnp.asarray(weights)}}}
    (_, told), gradient = graded(first, x)
    now = jax.tree.map(lambda w, g: w - LR * g, first, gradient)
    (_, later), _ = graded(now, x, start=(first, told.copies))
    records = cj.records([told, later], width=WIDTH, roles={"layers.dense.kernel": "hidden"})
    hidden, _, by_weight = oracle(weights, x)
    then, *_ = oracle(weights - LR * by_weight, x)
    for i in range(LAYERS):
        size = l1_of(records, f"layers.{i}[0]", "activation", 0)
        assert size["l1"] == pytest.approx(np.abs(hidden[i]).mean(), rel=1e-5)
        update = l1_of(records, f"layers.{i}.dense", "effective_update", 1)
        before = x if i == 0 else then[i - 1]
        assert update["l1"] == pytest.approx(np.abs(before @ (LR * by_weight[i])).mean(), rel=1e-4)
        assert update["role"] == "hidden"


def test_a_scan_over_time_is_one_module_called_often(x):
    w = jnp.eye(WIDTH)

    def loss(w, xs):
        return jax.lax.scan(lambda h, x: (cj.tap("cell", jnp.tanh(h @ w + x)), None), jnp.zeros(WIDTH), xs)[0].sum()

    (_, told), _ = cj.value_and_grad(loss)(w, jnp.asarray(x))
    records = cj.records([told], width=WIDTH)
    state, states = np.zeros(WIDTH), []
    for row in x:
        state = np.tanh(state + row)
        states.append(np.abs(state))
    found = l1_of(records, "cell", "activation", 0)
    assert found["l1"] == pytest.approx(np.mean(states), rel=1e-5)
    assert found["max"] == pytest.approx(np.max(states), rel=1e-5)
    assert found["count"] == x.size


def test_the_sums_of_many_entries_are_exact_enough():
    from coordcheck.jax.sums import sums

    big = np.random.default_rng(0).normal(size=(64, 512, 512)).astype("float32")
    total, squares, *_ = jax.jit(sums)(big)
    assert float(total) / big.size == pytest.approx(np.abs(big.astype("float64")).mean(), rel=1e-5)
    assert (float(squares) / big.size) ** 0.5 == pytest.approx((big.astype("float64") ** 2).mean() ** 0.5, rel=5e-5)


def test_what_is_not_finite_is_counted():
    from coordcheck.jax.sums import sums

    assert float(sums(jnp.array([[1.0, jnp.nan], [jnp.inf, 2.0]]))[3]) == 2


def test_a_tap_is_the_identity_outside_a_recorder(x):
    assert cj.tap("hidden", {"a": x, "n": 3})["a"] is not None
    assert (jax.jit(lambda x: cj.tap("hidden", x))(x) == x).all()
    assert (jax.grad(lambda x: cj.tap("hidden", x).sum())(x) == 1).all()
    with pytest.raises(ValueError, match=r"`name` of a tap is text; got ''.*tap\('blocks.0', x\)"):
        cj.tap("", x)
