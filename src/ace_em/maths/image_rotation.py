"""In-plane rotation and mirroring of images, given as half-planes of their Fourier transform.

This is the two-dimensional counterpart of ``slices.py``. The image is divided by ``sinc^2`` to compensate for the bilinear
interpolation, zero-padded and transformed, and the transform is sampled at the rotated frequencies.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ace_em.maths.fourier import centred_fft, frequencies, resize
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.slices import padded_size


def plane_turn(angle_deg: Tensor, mirror: Tensor) -> Tensor:
    """Matrices ``A`` (b, 2, 2) that act on image points (x, y): ``y -> -y`` where ``mirror``, then a rotation from x towards y.

    Parameters
    ----------
    angle_deg : (b,) rotation angles in degrees.
    mirror : (b,) bool.
    """
    angle = torch.deg2rad(angle_deg)
    c, s, flip = torch.cos(angle), torch.sin(angle), torch.where(mirror, -1.0, 1.0)
    return torch.stack([torch.stack([c, -s * flip], -1), torch.stack([s, c * flip], -1)], -2)


def turn_half_plane(half_plane: HalfPlane, image_ft: Tensor, turn: Tensor, pad: int = 2) -> Tensor:
    """Half-planes (b, n) of images whose content is moved from ``p`` to ``A p``: ``F'(k) = F(A^T k)``.

    Parameters
    ----------
    image_ft : (b, n) complex. Image content in the corners, outside the inscribed circle, is not preserved.
    turn : (b, 2, 2) orthogonal ``A``, from :func:`plane_turn`.
    """
    box, size = half_plane.box, padded_size(half_plane.box, pad)
    axis = torch.sinc(frequencies(box, turn.device) / size).square()
    images = half_plane.to_image(image_ft) / (axis[:, None] * axis)
    plane = torch.view_as_real(centred_fft(resize(images, size, 2), 2)).movedim(-1, 1)
    k = half_plane.k @ turn  # rows: (A^T k)^T
    # convert frequencies of the padded plane to grid_sample's -1 ... 1 between the first and last sample
    grid = (k * (size / box) + size // 2) * (2 / (size - 1)) - 1
    read = F.grid_sample(plane, grid[:, None], align_corners=True)[:, :, 0]
    return torch.complex(read[:, 0], read[:, 1])


def half_turn(image_ft: Tensor) -> Tensor:
    """Half-planes of images rotated by 180 degrees about the centre: the complex conjugate, computed and not a lazy view."""
    return image_ft.conj_physical()


def mirror_half_plane(half_plane: HalfPlane, image_ft: Tensor) -> Tensor:
    """Half-planes (b, n) of images mirrored by ``y -> -y``, by reordering pixel rows, without interpolation."""
    n = half_plane.box
    rows = (2 * (n // 2) - torch.arange(n, device=image_ft.device)) % n
    return half_plane.from_image(half_plane.to_image(image_ft)[..., rows, :])
