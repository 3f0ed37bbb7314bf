"""The image formation model in Fourier space (eq. 27): central slice x effective CTF x shift phase. It is implemented only here.

In real space it is eq. 23, or eq. 24 with the shift as a convolution. The effective CTF of a whitened image is its CTF times its
intensity scale, divided by the standard deviation of the noise.
"""

import math

import torch
from torch import Tensor

from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.slices import VolumeFT, central_slices
from ace_em.physics.pose import Pose


def shift_phase(half_plane: HalfPlane, shift_px: Tensor) -> Tensor:
    """Phase factor (..., n) that moves image content by ``+shift_px`` (..., 2), (y, x): ``exp(-2 pi i k.t / box)``."""
    angle = shift_px.flip(-1) @ half_plane.k.T * (-2 * math.pi / half_plane.box)
    return torch.complex(torch.cos(angle), torch.sin(angle))


def image_of_slice(slice_ft: Tensor, effective_ctf: Tensor, half_plane: HalfPlane, shift_px: Tensor) -> Tensor:
    """Noise-free image (..., n) from a central slice (..., n), eq. 27.

    Parameters
    ----------
    slice_ft : (..., n) complex, central slice of the transform of the volume.
    effective_ctf : (..., n) real.
    half_plane : the n coefficients.
    shift_px : (..., 2), (y, x) in pixels of ``half_plane.box``.
    """
    return slice_ft * (effective_ctf * shift_phase(half_plane, shift_px))


def slice_of_image(image_ft: Tensor, effective_ctf: Tensor, half_plane: HalfPlane, shift_px: Tensor) -> Tensor:
    """Adjoint (..., n) of :func:`image_of_slice`: the image shifted back and multiplied by its effective CTF."""
    return image_ft * effective_ctf * shift_phase(half_plane, -shift_px)


def project(volume_ft: VolumeFT, effective_ctf: Tensor, half_plane: HalfPlane, pose: Pose) -> Tensor:
    """Noise-free images (..., n) of a volume at poses (...,): central slices (eq. 26), then :func:`image_of_slice`."""
    return image_of_slice(central_slices(volume_ft, half_plane, pose.rotation), effective_ctf, half_plane, pose.shift_px)
