"""experiment=flax_qkv_init: google/flax#4027 on flax's own attention."""

import pytest

pytest.importorskip("flax", reason="JAX is not installed: pip install 'coordcheck[jax]'")

import jax
import numpy as np
import optax
import torch

import coordcheck.jax as cj
from coordcheck.config.load import load
from coordcheck.jax import configured, post_ln
from coordcheck.jax.cell import JaxCell

FIRST, SECOND = "decoder_0.self_attention", "decoder_1.self_attention"


@pytest.fixture(scope="module")
def gradients():
    """Of all parameters, in each of some steps of DETR's optimizer, with three seeds."""
    cell = JaxCell(post_ln.build, post_ln.batch, post_ln.optimizer, None, (16, 32, 64))
    graded = cj.value_and_grad(cell.loss(16), kinds=("gradient",), modules=["class_head"])
    frames = {}

    @jax.jit
    def step(parameters, state, batch):
        (_, said), gradient = graded(parameters, {}, batch)
        updates, state = cell.optimizer(16).update(gradient, state, parameters)
        return optax.apply_updates(parameters, updates), state, said

    for seed in range(3):
        parameters, _, state = cell.begun(16, seed)
        told = []
        for _ in range(3):
            parameters, state, said = step(parameters, state, cell.batch(seed))
            told.append(said)
        frames[seed] = cj.records(told, width=16, seed=seed)
    return frames


def sizes(gradients, parameter, step):
    frames = [f[(f["module"] == parameter) & (f["step"] == step)] for f in gradients.values()]
    return [frame["max"].item() for frame in frames]


def test_the_values_kernel_of_zeros_has_no_gradient_in_any_run(gradients):
    for step in range(3):
        assert sizes(gradients, f"{FIRST}.value.kernel", step) == [0, 0, 0]
        assert min(sizes(gradients, f"{SECOND}.value.kernel", step)) > 0


def test_queries_and_keys_have_none_at_step_0_alone(gradients):
    for name in ("query", "key"):
        assert sizes(gradients, f"{FIRST}.{name}.kernel", 0) == [0, 0, 0]
        assert min(sizes(gradients, f"{FIRST}.{name}.kernel", 2)) > 0
        assert min(sizes(gradients, f"{SECOND}.{name}.kernel", 0)) > 0


@pytest.mark.slow
def test_flax_starts_each_projection_at_one_where_torch_packs_three():
    config = load(["experiment=flax_qkv_init", "widths=[16,32,64]", "+model.args.depth=1"])
    found = configured.audit(config).parameters.set_index("parameter")["std_fan_in"]
    for name in ("query", "key", "value", "out"):
        assert found[f"{FIRST}.{name}.kernel"] == pytest.approx(1.0, abs=0.05)


def test_packed_is_as_in_torch():
    packed = torch.nn.MultiheadAttention(128, 8).in_proj_weight.detach().numpy()
    assert np.sqrt((packed**2).mean() * 128) == pytest.approx(0.707, abs=0.01)
    for scheme, size in {"lecun_normal": 1, "xavier_separate": 1, "xavier_packed": 0.707}.items():
        attention = post_ln.attention_of(scheme, "attention")
        of = attention.init(jax.random.key(0), np.zeros((1, 1, 128), "float32"))
        for name in ("query", "key", "value"):
            kernel = np.asarray(of["params"][name]["kernel"])
            assert np.sqrt((kernel**2).mean() * 128) == pytest.approx(size, abs=0.02)
