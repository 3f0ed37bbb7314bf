"""Products with rounded factors, against the exact product and the documented bound."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from ace_em.maths.products import BFLOAT16_ROUNDOFF, Factors, product

FACTORS: tuple[Factors, ...] = get_args(Factors)


def matrices(m: int, k: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, k, generator=generator), torch.randn(k, n, generator=generator)


def bound(a: Tensor, b: Tensor, roundoff: float) -> Tensor:
    """Bound on the error of every entry: both factors rounded, and a sum of k terms in float32."""
    summed = a.shape[1] * torch.finfo(torch.float32).eps
    return (2 * roundoff + roundoff**2 + summed) * (a.double().abs() @ b.double().abs())


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("shape", [(1, 7, 3), (40, 300, 500), (512, 64, 1000)])
def test_error_is_within_the_bound(factors: Factors, shape: tuple[int, int, int]) -> None:
    a, b = matrices(*shape)
    error = (product(a, b, factors).double() - a.double() @ b.double()).abs()
    roundoff = 0.0 if factors == "float32" else BFLOAT16_ROUNDOFF
    assert (error <= bound(a, b, roundoff)).all()


def test_bfloat16_rounds_on_every_processor() -> None:
    a, b = matrices(40, 300, 500)
    error = (product(a, b, "bfloat16").double() - a.double() @ b.double()).abs()
    # larger than the error of a float32 sum, and equal to the known effect of rounding
    assert error.median() > bound(a, b, 0).median()
    exact = a.bfloat16().double() @ b.bfloat16().double()
    assert ((product(a, b, "bfloat16").double() - exact).abs() <= bound(a, b, 0)).all()


def test_rounding_error_is_small_compared_with_the_noise() -> None:
    """With unit-variance noise as one factor, an entry has standard deviation |b|, and rounding changes it by 0.8 u |b|."""
    a, b = matrices(400, 300, 200)
    moved = (product(a, b, "bfloat16").double() - a.double() @ b.double()) / b.double().norm(dim=0)
    assert moved.std().item() == pytest.approx(0.8 * BFLOAT16_ROUNDOFF, rel=0.3)


@pytest.mark.parametrize("factors", FACTORS)
def test_float64_is_never_rounded(factors: Factors) -> None:
    a, b = (m.double() for m in matrices(40, 300, 50))
    torch.testing.assert_close(product(a, b, factors), a @ b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("factors", FACTORS)
def test_torch_precision_setting_is_restored(factors: Factors) -> None:
    before = torch.get_float32_matmul_precision()
    assert before == "highest"
    product(*matrices(2, 3, 4), factors)
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(RuntimeError):
        product(torch.zeros(2, 3), torch.zeros(2, 3), factors)
    assert torch.get_float32_matmul_precision() == before
