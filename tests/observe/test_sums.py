"""Sums against float64, and what a device would be told against the CPU."""

import math

import pytest
import torch

from conftest import Dispatched
from coordcheck.observe.sums import BLAS, BLOCK, PIECE, _norms_on_device, moved, sums, thinned


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_of_many_entries_agree_with_float64(dtype):
    x = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0)).to(dtype)
    total, squares, largest, nonfinite = sums(x)
    exact = x.double()
    assert total == pytest.approx(exact.abs().sum().item(), rel=1e-5)
    assert math.sqrt(squares) == pytest.approx(exact.square().sum().sqrt().item(), rel=5e-5)
    assert largest == exact.abs().max().item()
    assert nonfinite == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(), (7,), (3, 100_000), (2, 3, 400_001)])
def test_sums_of_a_difference_agree_with_float64(dtype, shape):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    exact = x.double() - y.double()
    expected = exact.abs().sum().item(), exact.square().sum().item(), exact.abs().max().item(), 0
    assert sums(x, y) == pytest.approx(expected, rel=1e-5)
    assert sums(x.mT if x.dim() > 1 else x)[0] == pytest.approx(x.double().abs().sum().item(), rel=1e-5)


def test_sums_of_complex_entries_are_those_of_their_sizes():
    x, y = torch.tensor([3 + 4j, -1j]), torch.tensor([0j, -2j])
    assert sums(x) == pytest.approx((6, 26, 5, 0))
    assert sums(x, y) == pytest.approx((6, 26, 5, 0)) and sums(x[1:], y[1:]) == pytest.approx((1, 1, 1, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_of_many_equal_entries_agree_with_float64(dtype):
    """Every one of which is rounded to the same side."""
    x = torch.full((2**22,), 0.1).to(dtype)
    total, squares, largest, _ = sums(x)
    assert total == pytest.approx(x.double().sum().item(), rel=1e-5)
    assert math.sqrt(squares) == pytest.approx(x.double().square().sum().sqrt().item(), rel=5e-5)
    assert largest == x[0].item()


@pytest.mark.parametrize(
    "x",
    [
        torch.linspace(-3, 2, 30_001).view(1, -1),
        torch.tensor([3.0, -math.inf, math.nan, 1.0]),
        torch.tensor([3.0, -math.inf]),
        torch.tensor([3e38, 3e38]),
        torch.tensor([1.0, math.nan], dtype=torch.bfloat16),
        torch.tensor(-2.0, dtype=torch.float64),
    ],
    ids=["finite", "both", "infinite", "overflow", "bfloat16", "scalar"],
)
def test_what_a_gpu_would_measure_agrees_with_the_cpu(x):
    """Both count what is not finite, also where only the sum is not."""
    for minus in (None, 0.5 * x):
        (on_device,) = moved([_norms_on_device(x, minus)])
        on_cpu = sums(x, minus)
        assert on_cpu.nonfinite == on_device.nonfinite == (~x.isfinite()).sum()
        assert on_cpu == pytest.approx(on_device, rel=1e-5, nan_ok=True)


def test_numbers_and_norms_are_moved_in_their_order():
    x, y = torch.tensor([1.0, -2.0]), torch.tensor([3.0], dtype=torch.float64)
    assert moved([sums(x), _norms_on_device(y, None), sums(y)]) == [(3, 5, 2, 0), (3, 9, 3, 0), (3, 9, 3, 0)]
    assert moved([]) == []


@pytest.mark.parametrize(
    "x",
    [
        torch.tensor(0.5).expand(40, 1000),
        torch.arange(60_000.0).view(-1, 2)[:, 0],
        torch.full((3, 4), 1 + 2j).conj().imag,
    ],
    ids=["expanded", "strided", "negative"],
)
def test_blas_gets_what_it_need_not_copy(x, monkeypatch):
    asum, dot, iamax = BLAS["f"]
    contiguous = []

    def watched(numbers, *where):
        contiguous.append(numbers.flags.c_contiguous)
        return asum(numbers, *where)

    monkeypatch.setitem(BLAS, "f", (watched, dot, iamax))
    assert sums(x).total == pytest.approx(x.double().abs().sum().item())
    assert set(contiguous) == {True}


def test_tensors_longer_than_a_block_are_converted_and_subtracted_block_by_block():
    x = torch.randn(3, BLOCK // 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    for minus, exact in ((None, x.double()), (x.mT.reshape(3, -1), x.double() - x.mT.reshape(3, -1).double())):
        assert sums(x, minus).total == pytest.approx(exact.abs().sum().item(), rel=1e-5)
        assert sums(x, minus).largest == exact.abs().max().item()


def test_the_largest_entry_of_an_early_piece_is_kept():
    assert sums(torch.cat([torch.full((1,), -9.0), torch.zeros(2 * PIECE)])).largest == 9.0


@pytest.mark.parametrize(
    ("shape", "kept"),
    [
        ((8, 64, 3), (8, 16, 3)),
        ((1, 1024, 3), (1, 64, 3)),
        ((8, 31, 3), (8, 31, 3)),
        ((512, 3), (512, 3)),
        ((9,), (9,)),
    ],
)
def test_some_positions_of_long_sequences_and_all_of_short_ones(shape, kept):
    assert thinned(torch.zeros(shape)).shape == kept


def test_positions_depend_on_neither_the_batch_nor_the_part_of_the_sequence_that_is_here():
    x = torch.arange(96.0).expand(6, 96)[..., None]
    kept = thinned(x)[0]
    assert 16 < len(kept) < 32
    assert torch.equal(thinned(x[:1])[0], kept)
    parts = [thinned(x[:, begins : begins + 37], 96, begins)[0] for begins in (0, 37, 74)]
    assert torch.equal(torch.cat(parts), kept)


def test_the_accuracy_asked_for_is_not_met_by_vector_norm():
    """The trap that `sums` avoids, so that the test above is known to be able to fail."""
    x = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0))
    assert abs(torch.linalg.vector_norm(x, 1).item() / x.double().abs().sum().item() - 1) > 1e-5


def test_non_finite_entries_are_counted():
    x = torch.tensor([1.0, math.nan, math.inf, -math.inf])
    assert sums(x)[3] == 3


def test_a_tensor_on_a_device_costs_five_kernels_and_its_difference_one_more():
    x = torch.empty(3, 4, device="meta")
    for minus, launches in ((None, 5), (x, 6)):
        with Dispatched() as dispatched:
            sums(x, minus)
        assert len(dispatched.launched) == launches, dispatched.launched


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [torch.randn, lambda n: torch.full((n,), 0.1)], ids=["normal", "equal"])
def test_norms_of_many_entries_on_a_gpu_agree_with_float64(make, dtype):
    x = make(2**24).to("cuda", dtype)
    (on_gpu,) = moved([sums(x)])
    assert on_gpu.total == pytest.approx(x.double().abs().sum().item(), rel=1e-5)
    assert math.sqrt(on_gpu.squares) == pytest.approx(x.double().square().sum().sqrt().item(), rel=5e-5)
    assert (on_gpu.largest, on_gpu.nonfinite) == (x.double().abs().max().item(), 0)
