"""Matrix products whose factors may be rounded to bfloat16."""

from typing import Literal

import torch
from torch import Tensor

Factors = Literal["processor", "float32", "bfloat16"]

BFLOAT16_ROUNDOFF = 2.0**-8
"""Largest relative change of a number that is rounded to bfloat16: it keeps 8 significant bits."""


def product(a: Tensor, b: Tensor, factors: Factors) -> Tensor:
    """``a @ b`` of real matrices (..., m, k) and (k, n).

    Factors of float64 are never rounded. Whichever way others are multiplied, an entry is within ``(2 u + u^2) |a| @ |b|`` of
    the exact one, and the rounding of the sum, which is done in the matrices' own precision. ``u`` is
    :data:`BFLOAT16_ROUNDOFF`, or 0 for 'float32'. Where one factor is noise of unit variance, the rounding moves an entry by
    some 0.3 % of what the noise itself does.

    Parameters
    ----------
    factors : 'float32' takes the factors as they are; 'bfloat16' rounds them first, on every processor; 'processor' lets the
        processor (or the GPU: TensorFloat-32, which rounds less) round float32 factors where it multiplies those faster.
    """
    if factors == "bfloat16" and a.dtype == torch.float32:
        a, b = a.bfloat16().to(a.dtype), b.bfloat16().to(b.dtype)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if factors == "processor" else "highest")
    try:
        return a @ b
    finally:
        torch.set_float32_matmul_precision(before)
