"""VoxelGrid_R (appendix A.2): real-space voxels, projected by Fourier slices or by line integrals."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ace_em.config import AceConfig
from ace_em.maths.fourier import radius_grid
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.masks import ball_radius_px, soft_ball
from ace_em.maths.slices import central_slices, volume_to_ft
from ace_em.models.decoder import Decoder, Projector
from ace_em.physics.projection import line_integral

INTEGRAL_VOXELS = 2**23
"""Voxels rotated at a time in projection by line integrals, which limits the memory."""


class VoxelGrid(Decoder):
    """VoxelGrid_R: a volume of ``box``^3 voxels inside a soft ball.

    ``density`` starts as a Gaussian blob of unit amplitude, and ``scale_to`` sets the amplitude from the data. The density is
    stored relative to the amplitude, so the learning rate does not depend on the scale of the images, unlike the paper's
    decoder rate of 1.0.

    Parameters
    ----------
    box : edge of the volume in voxels.
    radius_px : radius of the soft ball.
    blob_sigma_px : width of the initial Gaussian blob.
    pad : padding factor of the Fourier slices.
    integral : project by rotating the voxels and summing along z (CryoGAN) instead of by Fourier slices (CryoPoseNet).
    """

    mask: Tensor

    @staticmethod
    def build(box: int, diameter_px: float, config: AceConfig) -> "VoxelGrid":
        integral = config.voxel.projector == "integral"
        return VoxelGrid(box, ball_radius_px(box, diameter_px), diameter_px / 6, integral=integral)

    def learning_rate(self, config: AceConfig) -> float:
        return config.voxel.lr * config.voxel.lr_scale

    def __init__(self, box: int, radius_px: float, blob_sigma_px: float, pad: int = 2, integral: bool = False) -> None:
        super().__init__()
        self.pad, self.integral = pad, integral
        self.density = nn.Parameter(torch.exp(-radius_grid(box, 3).square() / (2 * blob_sigma_px**2)))
        self.register_buffer("mask", soft_ball(box, radius_px))

    def volume(self) -> Tensor:
        return self.density * self.mask * self.amplitude

    def projector(self) -> Projector:
        volume = self.volume()
        if self.integral:
            return lambda half_plane, rotation: integrated_slices(volume, half_plane, rotation)
        volume_ft = volume_to_ft(volume, self.pad)
        return lambda half_plane, rotation: central_slices(volume_ft, half_plane, rotation)


def integrated_slices(volume: Tensor, half_plane: HalfPlane, rotation: Tensor) -> Tensor:
    """Fourier coefficients (..., n) of line integrals of a volume (box, box, box) at rotations (..., 3, 3)."""
    blocks = rotation.reshape(-1, 3, 3).split(max(1, INTEGRAL_VOXELS // volume.numel()))
    # the rotated volumes are recomputed in the backward pass to save memory
    images = [checkpoint(line_integral, volume, block, use_reentrant=False) for block in blocks]
    return half_plane.from_image(torch.cat(images)).view(*rotation.shape[:-2], -1)
