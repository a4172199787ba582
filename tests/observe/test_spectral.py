"""Spectral norms against torch.linalg, whose solver is not used on the way."""

import pytest
import torch
from torch import nn

from coordcheck.observe.spectral import as_matrices, spectral_norm


def exact(matrices):
    return float(torch.linalg.matrix_norm(matrices.double(), ord=2).max())


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (1, 3, 2), (1, 64, 64), (1, 512, 512), (1, 256, 1024), (1, 1024, 100), (1, 300, 1), (6, 64, 32)],
)
def test_norms_of_normal_matrices_are_within_a_percent(shape):
    x = normal(*shape)
    assert exact(x) * 0.99 < float(spectral_norm(x)) <= exact(x) * (1 + 1e-5)


@pytest.mark.parametrize("rank", [1, 2, 8])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e25])
def test_low_rank_is_exact_whatever_the_size_of_entries(rank, size):
    x = normal(300, rank) @ normal(rank, 200) * size
    assert float(spectral_norm(x[None])) == pytest.approx(exact(x), rel=1e-4)


def test_the_sign_of_a_gradient_is_what_an_update_of_adam_looks_like():
    x = torch.sign(normal(400, 4) @ normal(4, 300))
    assert float(spectral_norm(x[None])) == pytest.approx(exact(x), rel=1e-3)


def test_structured_matrices_do_not_hide_from_the_start():
    for x in (torch.ones(40, 30), torch.eye(50), torch.diag(torch.arange(1.0, 65.0)), torch.ones(1, 50)):
        assert float(spectral_norm(x[None])) == pytest.approx(exact(x), rel=1e-2)


def test_zeros_narrow_types_and_what_is_not_finite():
    assert float(spectral_norm(torch.zeros(2, 5, 4))) == 0.0
    narrow = normal(100, 50).bfloat16()
    assert float(spectral_norm(narrow[None])) == pytest.approx(exact(narrow.float()), rel=1e-3)
    assert spectral_norm(narrow[None]).dtype == torch.float32
    assert torch.isnan(spectral_norm(torch.tensor([[[1.0, float("inf")]], [[1.0, 1.0]]])))


def test_the_largest_of_stacked_experts_counts():
    x = normal(3, 20, 10)
    x[1] *= 5
    assert float(spectral_norm(x)) == pytest.approx(exact(x[1]), rel=1e-3)


def test_no_generator_is_used():
    before = torch.get_rng_state()
    spectral_norm(normal(1, 20, 10))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("shape", "module", "matrices"),
    [
        ((), nn.Module, (1, 1, 1)),
        ((7,), nn.Module, (1, 7, 1)),
        ((5, 7), nn.Module, (1, 5, 7)),
        ((3, 5, 7), nn.Module, (3, 5, 7)),
        ((8, 4, 3), lambda: nn.Conv1d(4, 8, 3), (1, 8, 12)),
        ((8, 4, 3, 2), nn.Module, (1, 8, 24)),
    ],
)
def test_parameters_are_the_matrices_that_the_forward_pass_multiplies_by(shape, module, matrices):
    model = nn.Module()
    model.layer = module()
    weight = torch.zeros(shape)
    model.layer.register_parameter("weight", nn.Parameter(weight))
    assert as_matrices(model, "layer.weight", weight).shape == matrices
