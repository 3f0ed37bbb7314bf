"""VoxelGrid (appendix A.2): real-space voxels, projected by the Fourier slice theorem as in CryoPoseNet."""

import torch
from torch import Tensor, nn

from ace_em.maths.fourier import HalfPlane, radius_grid
from ace_em.maths.slices import central_slices, volume_to_ft
from ace_em.models.decoder import Decoder, Projector


def soft_ball(box: int, radius_px: float) -> Tensor:
    """(box, box, box) 1 inside ``radius_px``, 0 outside, a logistic edge of about two voxels."""
    return torch.sigmoid((radius_px - radius_grid(box, 3)) * 2)


def ball_radius_px(box: int, diameter_px: float) -> float:
    """Radius of the ball that maps are kept in: 0.8 diameters, room for drift and a wrong guess, but inside the box."""
    return min(box / 2 - 1.5, 0.8 * diameter_px)


class VoxelGrid(Decoder):
    """A volume of ``box``^3 voxels inside a soft ball.

    ``density`` starts as a Gaussian blob of unit height; ``scale_to`` sets its height from data. Its learning rate is in
    units of that height, so it is stored relative to it: the paper's "1.0 for the decoder" depends on the grey values.
    """

    mask: Tensor
    height: Tensor

    def __init__(self, box: int, radius_px: float, blob_sigma_px: float, pad: int = 2) -> None:
        super().__init__()
        self.pad = pad
        self.density = nn.Parameter(torch.exp(-radius_grid(box, 3).square() / (2 * blob_sigma_px**2)))
        self.register_buffer("mask", soft_ball(box, radius_px))
        self.register_buffer("height", torch.ones(()))

    def scale_to(self, height: float) -> None:
        """Multiply the volume by ``height``, leaving the parameter as it is."""
        self.height.fill_(height)

    def volume(self) -> Tensor:
        return self.density * self.mask * self.height

    def projector(self) -> Projector:
        volume_ft = volume_to_ft(self.volume(), self.pad)

        def project(half_plane: HalfPlane, rotation: Tensor) -> Tensor:
            return central_slices(volume_ft, half_plane, rotation)

        return project
