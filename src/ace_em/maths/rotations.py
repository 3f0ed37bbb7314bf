"""What roma lacks: grids on SO(3), and the 180-degree mates of a rotation."""

import math

import numpy as np
import roma
import torch
from torch import Tensor

MATES = torch.stack([torch.diag(torch.tensor(d)) for d in ([1.0, 1, 1], [-1.0, -1, 1], [1.0, -1, -1], [-1.0, 1, -1])])
"""(4, 3, 3): identity, and the half turns about z, x and y."""


def mates(rotation: Tensor) -> Tensor:
    """The four poses (..., 4, 3, 3) that low-resolution images confuse: ``R`` times a half turn about an image axis.

    ``R diag(-1, -1, 1)`` turns the image by 180 degrees in its plane. ``R diag(1, -1, -1)`` looks at the particle from the
    back: the same projection, mirrored in y.
    """
    return rotation[..., None, :, :] @ MATES.to(rotation)


def so3_grid(spacing_deg: float, generator: torch.Generator | None = None) -> Tensor:
    """Rotations (n, 3, 3) that cover SO(3) evenly: HEALPix directions times in-plane angles, about ``spacing_deg`` apart.

    Parameters
    ----------
    spacing_deg : distance between neighbours; HEALPix pixels have edge ``58.6 / nside`` degrees.
    generator : when given, the grid is turned as a whole by a random rotation, so that successive grids differ.
    """
    import healpy

    n_side = max(1, round(58.6 / spacing_deg))
    n_psi = max(1, round(360 / spacing_deg))
    tilt, rot = healpy.pix2ang(n_side, np.arange(healpy.nside2npix(n_side)))
    psi = np.arange(n_psi) * (2 * math.pi / n_psi)
    angles = np.stack([np.repeat(rot, n_psi), np.repeat(tilt, n_psi), np.tile(psi, len(rot))], axis=-1)
    grid = roma.euler_to_rotmat("ZYZ", torch.as_tensor(angles)).float()
    if generator is None:
        return grid
    return roma.random_rotmat(generator=generator) @ grid


def angular_distance_deg(a: Tensor, b: Tensor) -> Tensor:
    """Angle (...) in degrees of the rotation that takes ``a`` to ``b``, both (..., 3, 3)."""
    return torch.rad2deg(roma.rotmat_geodesic_distance(a, b))


def squared_frobenius(a: Tensor, b: Tensor) -> Tensor:
    """``||a - b||_F^2`` (...), which is ``8 sin^2(angle / 2)``: 8 at 180 degrees, 6 on average for random rotations."""
    return (a - b).square().sum((-1, -2))
