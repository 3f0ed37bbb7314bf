"""The image formation model in Fourier space, eq. 27: slice x CTF x shift."""

import math

import torch
from torch import Tensor

from ace_em.maths.fourier import HalfPlane
from ace_em.maths.slices import VolumeFT, central_slices
from ace_em.physics.pose import Pose


def shift_phase(half_plane: HalfPlane, shift_px: Tensor) -> Tensor:
    """Factor (..., n) that moves image content by ``+shift_px`` (..., 2), (y, x): ``exp(-2 pi i k.t / box)``."""
    angle = shift_px.flip(-1) @ half_plane.k.T * (-2 * math.pi / half_plane.box)
    return torch.complex(torch.cos(angle), torch.sin(angle))


def clean_image_ft(volume_ft: VolumeFT, transfer: Tensor, half_plane: HalfPlane, pose: Pose) -> Tensor:
    """Noise-free image (..., n) of eq. 27.

    Parameters
    ----------
    volume_ft : the volume's transform.
    transfer : (..., n) real, the CTF, or the CTF over the noise's standard deviation for whitened images.
    half_plane : the coefficients.
    pose : rotation (..., 3, 3) and shift (..., 2).
    """
    return central_slices(volume_ft, half_plane, pose.rotation) * (transfer * shift_phase(half_plane, pose.shift_px))
