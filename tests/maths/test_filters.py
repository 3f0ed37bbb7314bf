"""The filter bank against explicit sums."""

import math

import pytest
import torch

from ace_em.maths.filters import VARIANCES_PX2, filter_bank, gaussian_kernels, kernel_transfer
from ace_em.maths.half_plane import HalfPlane


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
    # zeros outside the image
    torch.testing.assert_close(filtered[0, 2, 0, 0], (images[0, :6, :6] * kernels[2, 5:, 5:]).sum())


@pytest.mark.parametrize("box", [32, 33])
def test_kernel_transfer_filters_as_the_bank_does(box: int) -> None:
    """For images with a zero margin of half a kernel, since the bank pads with zeros and the product is periodic."""
    half_plane, kernels = HalfPlane.within(box), gaussian_kernels()
    images = torch.zeros(3, box, box)
    images[:, 6:-6, 6:-6] = torch.randn(3, box - 12, box - 12, generator=torch.Generator().manual_seed(0))
    factor = kernel_transfer(kernels, half_plane)
    assert factor.shape == (5, len(half_plane)) and not factor.is_complex()
    filtered = half_plane.from_image(filter_bank(images, kernels))
    torch.testing.assert_close(half_plane.from_image(images)[:, None] * factor, filtered, atol=1e-3, rtol=1e-4)
    # on another half-plane of the same box the factors are the same
    inner = half_plane.band(6)
    torch.testing.assert_close(kernel_transfer(kernels[3:4], inner), factor[3:4, : len(inner)])


def test_kernel_transfer_is_a_gaussian_where_the_kernel_is_one() -> None:
    """Variance 1: ``exp(-2 pi^2 k^2 / box^2)``, within 0.0072 at half a cycle per pixel; all kernels keep the mean."""
    half_plane = HalfPlane.within(40)
    factor = kernel_transfer(gaussian_kernels(), half_plane)
    torch.testing.assert_close(factor[:, 0], torch.ones(5))
    wanted = torch.exp(-2 * (math.pi * half_plane.radius / 40).square())
    torch.testing.assert_close(factor[2], wanted, atol=6e-3, rtol=0)
