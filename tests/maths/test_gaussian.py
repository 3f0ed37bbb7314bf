"""The filter bank against sums written out."""

import math

import torch

from ace_em.maths.gaussian import VARIANCES_PX2, filter_bank, gaussian_kernels


def test_kernels_are_gaussians_of_unit_sum() -> None:
    kernels = gaussian_kernels()
    assert kernels.shape == (5, 11, 11)
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(5))
    for kernel, variance in zip(kernels, VARIANCES_PX2, strict=True):
        ratio = kernel[5, 7] / kernel[5, 5]
        torch.testing.assert_close(ratio, torch.tensor(math.exp(-4 / (2 * variance))), atol=1e-7, rtol=1e-5)
        torch.testing.assert_close(kernel, kernel.T)
        torch.testing.assert_close(kernel, kernel.flip(0))
    # the narrowest is a delta, the widest nearly a box
    assert kernels[0, 5, 5] > 0.999
    assert kernels[4].max() / kernels[4].min() < 1.3


def test_filter_bank_is_the_sum_over_neighbours() -> None:
    images = torch.randn(2, 20, 20, generator=torch.Generator().manual_seed(0))
    kernels = gaussian_kernels()
    filtered = filter_bank(images, kernels)
    assert filtered.shape == (2, 5, 20, 20)
    torch.testing.assert_close(filtered[1, 3, 10, 8], (images[1, 5:16, 3:14] * kernels[3]).sum())
    # zeros outside of the image
    torch.testing.assert_close(filtered[0, 2, 0, 0], (images[0, :6, :6] * kernels[2, 5:, 5:]).sum())
