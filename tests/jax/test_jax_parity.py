"""The same MLP, weights and batches in torch and in flax: the same records in every kind."""

import pytest

pytest.importorskip("flax", reason="JAX is not installed: pip install 'coordcheck[jax]'")

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import coordcheck.jax as cj
from coordcheck.config.schema import Precision
from coordcheck.jax.loss import default_loss
from coordcheck.records.schema import KINDS
from coordcheck.run.loss import default_loss as torchs_loss
from coordcheck.run.train import RunPlan, run

SIZES = {"up": (16, 32), "mid": (32, 32), "head": (32, 10)}
STEPS = 4


class Torchs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name, (into, out) in SIZES.items():
            self.add_module(name, torch.nn.Linear(into, out))

    def forward(self, x):
        return self.head(torch.tanh(self.mid(torch.tanh(self.up(x)))))


class Flaxs(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Dense(32, name="up")(x))
        return nn.Dense(10, name="head")(jnp.tanh(nn.Dense(32, name="mid")(x)))


OPTIMIZERS = {
    "adam": (lambda p: torch.optim.Adam(p, lr=1e-2), optax.adam(1e-2)),
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), optax.sgd(0.1, momentum=0.9)),
}


def loss(params, inputs, targets):
    return default_loss(lambda x: Flaxs().apply({"params": params}, x), (inputs, targets))


GRADED = jax.jit(cj.value_and_grad(loss, kinds=KINDS[:4]))  # compiled once for both


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_torch_and_flax_give_the_same_records(optimizer):
    draw = np.random.default_rng(0)
    inputs, targets = draw.normal(size=(24, 16)).astype("float32"), draw.integers(0, 10, 24)
    torch.manual_seed(0)
    model = Torchs()
    roles = {"up.kernel": "input", "mid.kernel": "hidden", "head.kernel": "readout"}
    params = {
        name: {
            "kernel": jnp.asarray(model.get_parameter(f"{name}.weight").detach().numpy().T.copy()),
            "bias": jnp.asarray(model.get_parameter(f"{name}.bias").detach().numpy().copy()),
        }
        for name in SIZES
    }
    torchs, transformation = OPTIMIZERS[optimizer]
    plan = RunPlan(STEPS, KINDS[:4], None, torch.device("cpu"), Precision.fp32)
    batch = torch.from_numpy(inputs), torch.from_numpy(targets)
    of_torch = run(
        model,
        torchs(model.parameters()),
        batch,
        torchs_loss,
        plan,
        width=32,
        seed=0,
        roles={name.replace("kernel", "weight"): role for name, role in roles.items()},
    )

    first, state, told = params, transformation.init(params), []
    for step in range(STEPS):
        start = (first, told[0].copies) if step else None
        (_, said), gradient = GRADED(params, jnp.asarray(inputs), jnp.asarray(targets), start=start)
        told.append(said)
        updates, state = transformation.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    of_flax = cj.records(told, width=32, roles=roles)

    of_flax["module"] = of_flax["module"].str.replace(".kernel", ".weight")
    # the last step needs no backward pass in torch
    of_flax = of_flax[(of_flax["step"] < STEPS - 1) | (of_flax["kind"] != "gradient")]
    keys = ["step", "module", "kind"]
    both = of_torch.merge(of_flax, on=keys, how="outer", suffixes=("_torch", "_flax"), indicator=True)
    assert (both["_merge"] == "both").all(), both[both["_merge"] != "both"][keys]
    assert len(both) > 70
    for statistic in ("l1", "rms", "max", "count"):
        # the largest entry of a delta is one difference of rounded numbers of size 3
        atol = 4e-6 if statistic == "max" else 0
        np.testing.assert_allclose(both[f"{statistic}_torch"], both[f"{statistic}_flax"], 1e-5, atol, err_msg=statistic)
    layers = both[both["module"].isin(SIZES)]
    assert (layers["role_torch"] == layers["role_flax"]).all()
