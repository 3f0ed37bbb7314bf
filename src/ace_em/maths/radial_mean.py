"""The radial mean of a volume, which comes out the same for any set of poses."""

import math

import torch
from torch import Tensor

from ace_em.maths.fourier import radius_grid

KNOTS_PER_VOXEL = 2


def radial_mean(volume: Tensor) -> Tensor:
    """Least-squares fit (n, n, n) to ``volume`` by a function of the radius alone.

    The function is piecewise linear between knots half a voxel apart. The Fourier transform of the radial mean is the radial mean
    of the Fourier transform, so subtracting it also removes the radial mean in Fourier space.
    """
    n = volume.shape[-1]
    radius = radius_grid(n, 3, volume.device).flatten().double() * KNOTS_PER_VOXEL
    values, low = volume.flatten().double(), radius.floor().long()
    knots = math.ceil(radius.max().item()) + 2
    upper = radius - low
    weight = torch.stack([1 - upper, upper])
    # tridiagonal normal equations of the piecewise-linear fit
    normal = torch.zeros(knots * knots, dtype=torch.float64, device=volume.device)
    right_side = torch.zeros(knots, dtype=torch.float64, device=volume.device)
    for i in range(2):
        right_side.index_add_(0, low + i, weight[i] * values)
        for j in range(2):
            normal.index_add_(0, (low + i) * knots + low + j, weight[i] * weight[j])
    # pseudo-inverse, as some knots have no voxels
    profile = torch.linalg.pinv(normal.view(knots, knots), hermitian=True) @ right_side
    return (weight[0] * profile[low] + weight[1] * profile[low + 1]).view(volume.shape).to(volume.dtype)


def features(volume: Tensor) -> Tensor:
    """The volume (n, n, n) with its radial mean subtracted."""
    return volume - radial_mean(volume)
