"""VoxelGrid_R (appendix A.2): real-space voxels, projected by Fourier slices or by line integrals."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ace_em.maths.fourier import HalfPlane, radius_grid
from ace_em.maths.slices import central_slices, volume_to_ft
from ace_em.models.decoder import Decoder, Projector
from ace_em.physics.projection import line_integral

INTEGRAL_VOXELS = 2**23
"""Voxels that are turned at a time when projecting by line integrals: bounds the memory."""


def soft_ball(box: int, radius_px: float) -> Tensor:
    """(box, box, box) 1 inside ``radius_px``, 0 outside, a logistic edge of about two voxels."""
    return torch.sigmoid((radius_px - radius_grid(box, 3)) * 2)


def ball_radius_px(box: int, diameter_px: float) -> float:
    """Radius of the ball that maps are kept in: 0.8 diameters, room for drift and a wrong guess, but inside the box."""
    return min(box / 2 - 1.5, 0.8 * diameter_px)


class VoxelGrid(Decoder):
    """A volume of ``box``^3 voxels inside a soft ball: VoxelGrid_R.

    ``density`` starts as a Gaussian blob of unit height; ``scale_to`` sets its height from data. Its learning rate is in
    units of that height, so it is stored relative to it: the paper's "1.0 for the decoder" depends on the grey values.

    Parameters
    ----------
    integral : project by turning the voxels and summing along z (CryoGAN) instead of by Fourier slices (CryoPoseNet).
    """

    mask: Tensor

    def __init__(self, box: int, radius_px: float, blob_sigma_px: float, pad: int = 2, integral: bool = False) -> None:
        super().__init__()
        self.pad, self.integral = pad, integral
        self.density = nn.Parameter(torch.exp(-radius_grid(box, 3).square() / (2 * blob_sigma_px**2)))
        self.register_buffer("mask", soft_ball(box, radius_px))

    def volume(self) -> Tensor:
        return self.density * self.mask * self.height

    def projector(self) -> Projector:
        volume = self.volume()
        if self.integral:
            return lambda half_plane, rotation: integrated_slices(volume, half_plane, rotation)
        volume_ft = volume_to_ft(volume, self.pad)
        return lambda half_plane, rotation: central_slices(volume_ft, half_plane, rotation)


def integrated_slices(volume: Tensor, half_plane: HalfPlane, rotation: Tensor) -> Tensor:
    """Fourier coefficients (..., n) of line integrals of a volume (box, box, box) at rotations (..., 3, 3)."""
    blocks = rotation.reshape(-1, 3, 3).split(max(1, INTEGRAL_VOXELS // volume.numel()))
    # a block's turned copies of the volume are made again in the backward pass instead of being kept
    images = [checkpoint(line_integral, volume, block, use_reentrant=False) for block in blocks]
    return half_plane.from_image(torch.cat(images)).view(*rotation.shape[:-2], -1)
