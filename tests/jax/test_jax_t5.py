"""google-research/t5x#1477 on flax: which init of T5's output layer keeps the size of the logits?

An encoder-decoder of our own with the initializers of T5X's example (t5x/examples/t5/layers.py and network.py at commit
cc342d419ec3e3e9c4bf1df33c82330cafdc1e16; its own layers gave the same verdicts with the same three heads).
"""

import math

import pytest

pytest.importorskip("flax", reason="JAX is not installed: pip install 'coordcheck[jax]'")

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

import coordcheck.jax as cj

pytestmark = pytest.mark.slow
VOCABULARY, HEAD = 256, 16
fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class Attention(nn.Module):
    """Without a scale of the logits, which is folded into the queries' init; relative positions left out."""

    @nn.compact
    def __call__(self, x, memory, causal=False):
        heads = x.shape[-1] // HEAD

        def project(name, of, scale=1.0):
            def init(*args):
                return fan_in(*args) / scale

            y = nn.Dense(x.shape[-1], use_bias=False, kernel_init=init, name=name)(of)
            return y.reshape(*of.shape[:-1], heads, HEAD)

        q, k, v = project("query", x, HEAD**0.5), project("key", memory), project("value", memory)
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        if causal:
            logits = jnp.where(jnp.tril(jnp.ones(logits.shape[-2:], bool)), logits, -1e10)
        y = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(logits), v).reshape(x.shape)
        return nn.Dense(x.shape[-1], use_bias=False, kernel_init=fan_in, name="out")(y)


def feed_forward(x, name):
    y = nn.Dense(4 * x.shape[-1], use_bias=False, kernel_init=fan_in, name=f"{name}_wi")(x)
    return nn.Dense(x.shape[-1], use_bias=False, kernel_init=fan_in, name=f"{name}_wo")(nn.relu(y))


class T5(nn.Module):
    width: int
    head_std: float

    @nn.compact
    def __call__(self, read, written):
        embed = nn.Embed(VOCABULARY, self.width, embedding_init=nn.initializers.normal(1.0), name="token_embedder")
        x = embed(read)
        y = nn.RMSNorm(name="encoder_norm_0")(x)
        x = x + Attention(name="encoder_attention")(y, y)
        x = x + feed_forward(nn.RMSNorm(name="encoder_norm_1")(x), "encoder")
        encoded = nn.RMSNorm(name="encoder_norm")(x)
        x = embed(written)
        y = nn.RMSNorm(name="decoder_norm_0")(x)
        x = x + Attention(name="self_attention")(y, y, causal=True)
        x = x + Attention(name="cross_attention")(nn.RMSNorm(name="decoder_norm_1")(x), encoded)
        x = x + feed_forward(nn.RMSNorm(name="decoder_norm_2")(x), "decoder")
        x = nn.RMSNorm(name="decoder_norm")(x)
        init = nn.initializers.normal(self.head_std)
        return nn.Dense(VOCABULARY, use_bias=False, kernel_init=init, name="logits_dense")(x)


def batch(seed):
    tokens = np.random.default_rng(seed).integers(0, VOCABULARY, (2, 4, 17)).astype("int32")
    return tokens[0, :, :-1], tokens[1, :, :-1], tokens[1, :, 1:]


def loss(model, batch):
    read, written, targets = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(read, written), targets).mean()


HEADS = {"1": lambda width: 1.0, "width^-1/2": lambda width: width**-0.5, "0.05": lambda width: 0.05}


@pytest.fixture(scope="module", params=HEADS)
def check(request):
    std = HEADS[request.param]
    found = cj.coord_check(
        lambda width: T5(width, std(width)),
        batch,
        (32, 64, 128),
        5,
        1,
        loss=loss,
        kinds=["activation"],
        expect="sp",
        modules=["logits_dense", "(model)", "decoder_norm"],
        control=False,
    )
    return request.param, found


def test_the_head_alone_is_at_fault_unless_its_std_falls_like_the_root_of_width(check):
    name, found = check
    heads = found.slopes[found.slopes["module"] == "logits_dense"]
    if name == "width^-1/2":
        assert not any(finding.fault for finding in found.findings)
        assert heads["slope"].item() == pytest.approx(0, abs=0.06)
        return
    assert found.verdict == "fail"
    assert heads["slope"].item() == pytest.approx(0.5, abs=0.06)
    first = found.findings[0]
    assert (first.fault, first.parameter, first.module) == ("init", "logits_dense.kernel", "logits_dense")
    assert [one.parameter for one in found.findings if one.fault] == ["logits_dense.kernel"]


def test_the_loss_starts_far_above_chance_with_a_std_of_one(check):
    name, found = check
    start = found.records.query("module == '(loss)' and width == 128")["l1"].mean()
    if name == "1":
        # the largest of 256 normals of size sqrt(128), less the logit of a random target
        assert start == pytest.approx(2.8 * math.sqrt(128), rel=0.3)
    else:
        assert start == pytest.approx(math.log(VOCABULARY), abs=0.75)
