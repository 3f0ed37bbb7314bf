"""Matrix products with optional rounding of the factors to bfloat16."""

from typing import Literal

import torch
from torch import Tensor

Factors = Literal["processor", "float32", "bfloat16"]

BFLOAT16_ROUNDOFF = 2.0**-8
"""Largest relative error of rounding to bfloat16, which has 8 significant bits."""


def product(a: Tensor, b: Tensor, factors: Factors) -> Tensor:
    """``a @ b`` of real matrices (..., m, k) and (k, n).

    float64 factors are never rounded. Sums are accumulated in the precision of the matrices. Apart from the rounding of the sum,
    each entry is within ``(2 u + u^2) |a| @ |b|`` of the exact value, with ``u`` :data:`BFLOAT16_ROUNDOFF`, or 0 for 'float32'.
    If one factor is unit-variance noise, the error of an entry is about 0.3 % of its noise.

    Parameters
    ----------
    factors : 'float32' does not round; 'bfloat16' rounds on every processor; 'processor' lets the processor round float32
        factors where that is faster (on a GPU to TensorFloat-32, which rounds less).
    """
    if factors == "bfloat16" and a.dtype == torch.float32:
        a, b = a.bfloat16().to(a.dtype), b.bfloat16().to(b.dtype)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if factors == "processor" else "highest")
    try:
        return a @ b
    finally:
        torch.set_float32_matmul_precision(before)
