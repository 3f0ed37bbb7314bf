"""The part of a volume that depends on the radius alone, which any arrangement of poses gives."""

import math

import torch
from torch import Tensor

from ace_em.maths.fourier import radius_grid

KNOTS_PER_VOXEL = 2


def radial_mean(volume: Tensor) -> Tensor:
    """The nearest volume (n, n, n), by least squares, to ``volume`` that is a function of the radius alone.

    Such functions are linear between knots half a voxel apart. The transform of a radial mean is that of the transform, so
    what is left has no radial mean in any shell of Fourier space either.
    """
    n = volume.shape[-1]
    radius = radius_grid(n, 3, volume.device).flatten().double() * KNOTS_PER_VOXEL
    values, low = volume.flatten().double(), radius.floor().long()
    knots = math.ceil(radius.max().item()) + 2
    upper = radius - low
    weight = torch.stack([1 - upper, upper])
    # normal equations of an interpolation: three diagonals
    normal = torch.zeros(knots * knots, dtype=torch.float64, device=volume.device)
    wanted = torch.zeros(knots, dtype=torch.float64, device=volume.device)
    for i in range(2):
        wanted.index_add_(0, low + i, weight[i] * values)
        for j in range(2):
            normal.index_add_(0, (low + i) * knots + low + j, weight[i] * weight[j])
    # some knots have no voxel
    profile = torch.linalg.pinv(normal.view(knots, knots), hermitian=True) @ wanted
    return (weight[0] * profile[low] + weight[1] * profile[low + 1]).view(volume.shape).to(volume.dtype)


def features(volume: Tensor) -> Tensor:
    """The volume (n, n, n) without its radial mean."""
    return volume - radial_mean(volume)
