"""The radial mean: radial functions are kept, others are unaffected, and it is the least-squares fit."""

import pytest
import torch
from torch import Tensor

from ace_em.maths.fourier import centred_fft, radius_grid
from ace_em.maths.radial_mean import features, radial_mean


def noise(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, n, n, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("n", [20, 21])
def test_a_shell_is_its_radial_mean(n: int) -> None:
    radius = radius_grid(n, 3).double()
    shell = torch.exp(-(radius - n / 4).square() / 4)
    assert features(shell).norm() < 0.02 * shell.norm()
    # also in Fourier space: every shell of the remainder has zero mean
    left, before = (centred_fft(v, 3).abs() for v in (features(shell), shell))
    assert left.max() < 0.02 * before.max()


@pytest.mark.parametrize("n", [16, 17])
def test_volumes_without_radial_mean_are_unchanged(n: int) -> None:
    z, y, x = torch.meshgrid(*[torch.arange(n).double() - n // 2] * 3, indexing="ij")
    # the first plane of an even box has no opposite
    inside = radius_grid(n, 3) < n // 2 - 0.5
    volume = (x + x * y - 2 * z * z + x * x + y * y) * inside
    torch.testing.assert_close(features(volume), volume, atol=1e-4, rtol=0)


def test_radial_mean_is_a_projection() -> None:
    volume, shell = noise(18), torch.exp(-(radius_grid(18, 3).double() - 5).square() / 9)
    left = features(volume)
    assert (left * radial_mean(volume)).sum().abs() < 1e-5 * volume.square().sum()
    torch.testing.assert_close(features(left), left, atol=1e-5, rtol=0)
    torch.testing.assert_close(features(volume + 3 * shell), left, atol=0.05, rtol=0)
    # noise is almost unchanged: one profile is fitted to thousands of voxels
    assert left.square().sum() > 0.98 * volume.square().sum()


def test_float32_stays_float32() -> None:
    volume = noise(12).float()
    assert features(volume).dtype == torch.float32
    torch.testing.assert_close(features(volume).double(), features(volume.double()), atol=1e-5, rtol=1e-5)
