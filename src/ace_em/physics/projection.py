"""Projection of a volume V (eq. 20): line integrals in real space (eq. 22), and central slices (eq. 25, eq. 26)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ace_em.maths.fourier import frequencies
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.slices import central_slices, volume_to_ft


def line_integral(volume: Tensor, rotation: Tensor) -> Tensor:
    """Project by rotating the volume (eq. 21) and summing along z (eq. 22): ``X(x, y) = sum_z V(R r)``.

    Parameters
    ----------
    volume : (n, n, n), z, y, x order.
    rotation : (b, 3, 3) acting on column vectors in x, y, z order.

    Returns
    -------
    (b, n, n) images, by trilinear interpolation. Outside the box the volume is taken as zero.
    """
    n = volume.shape[-1]
    axis = frequencies(n, volume.device, volume.dtype)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    points = torch.stack([x, y, z], dim=-1).view(-1, 3) @ rotation.mT
    # convert voxel coordinates to grid_sample's -1 ... 1 between the first and last voxel
    grid = (points + n // 2) * (2 / (n - 1)) - 1
    turned = F.grid_sample(
        volume[None, None].expand(len(rotation), -1, -1, -1, -1), grid.view(-1, n, n, n, 3), align_corners=True
    )
    return turned[:, 0].sum(1)


def fourier_projection(volume: Tensor, rotation: Tensor, pad: int = 2) -> Tensor:
    """The same projections (b, n, n) by the Fourier slice theorem (eq. 25), band-limited to ``|k| < n / 2``."""
    half_plane = HalfPlane.within(volume.shape[-1], device=volume.device)
    half_plane = HalfPlane(half_plane.box, half_plane.k.to(volume), half_plane.radius.to(volume))
    return half_plane.to_image(central_slices(volume_to_ft(volume, pad), half_plane, rotation))
