"""Turn and mirror images in their plane, given as half-planes of their Fourier transform.

The two-dimensional sister of ``slices.py``: the image is zero-padded, divided by the ``sinc^2`` that bilinear interpolation
multiplies it by, transformed, and read at the turned frequencies.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ace_em.maths.fourier import centred_fft, frequencies, resize
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.slices import padded_size


def plane_turn(angle_deg: Tensor, mirror: Tensor) -> Tensor:
    """The maps ``A`` (b, 2, 2) of image points (x, y): first ``y -> -y`` where ``mirror``, then a turn from x towards y.

    Parameters
    ----------
    angle_deg, mirror : (b,) degrees, bool.
    """
    angle = torch.deg2rad(angle_deg)
    c, s, flip = torch.cos(angle), torch.sin(angle), torch.where(mirror, -1.0, 1.0)
    return torch.stack([torch.stack([c, -s * flip], -1), torch.stack([s, c * flip], -1)], -2)


def turn_half_plane(half_plane: HalfPlane, image_ft: Tensor, turn: Tensor, pad: int = 2) -> Tensor:
    """Half-planes (b, n) of the images whose content has moved from ``p`` to ``A p``: ``F'(k) = F(A^T k)``.

    Parameters
    ----------
    image_ft : (b, n) complex; what the images hold near their corners is lost.
    turn : (b, 2, 2) orthogonal ``A``, from :func:`plane_turn`.
    """
    box, size = half_plane.box, padded_size(half_plane.box, pad)
    axis = torch.sinc(frequencies(box, turn.device) / size).square()
    images = half_plane.to_image(image_ft) / (axis[:, None] * axis)
    plane = torch.view_as_real(centred_fft(resize(images, size, 2), 2)).movedim(-1, 1)
    k = half_plane.k @ turn  # rows: (A^T k)^T
    # index of a frequency in the padded plane -> grid_sample's -1 ... 1 between its first and last sample
    grid = (k * (size / box) + size // 2) * (2 / (size - 1)) - 1
    read = F.grid_sample(plane, grid[:, None], align_corners=True)[:, :, 0]
    return torch.complex(read[:, 0], read[:, 1])


def half_turn(image_ft: Tensor) -> Tensor:
    """Half-planes of the images turned by 180 degrees about their centre: complex conjugates (as numbers, not as a view)."""
    return image_ft.conj_physical()


def mirror_half_plane(half_plane: HalfPlane, image_ft: Tensor) -> Tensor:
    """Half-planes (b, n) of the images mirrored, ``y -> -y``: pixel by pixel, so that nothing is interpolated."""
    n = half_plane.box
    rows = (2 * (n // 2) - torch.arange(n, device=image_ft.device)) % n
    return half_plane.from_image(half_plane.to_image(image_ft)[..., rows, :])
