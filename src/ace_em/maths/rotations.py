"""Grids on SO(3) and the sphere, half-turn alternatives of a rotation, and distances, beyond those in roma."""

import math

import numpy as np
import roma
import torch
from torch import Tensor

HALF_TURNS = torch.stack([torch.diag(torch.tensor(d)) for d in ([1.0, 1, 1], [-1.0, -1, 1], [1.0, -1, -1], [-1.0, 1, -1])])
"""(4, 3, 3): the identity and the half turns about z, x and y."""


def alternatives(rotation: Tensor) -> Tensor:
    """Four rotations (..., 4, 3, 3) that are hard to distinguish at low resolution: ``R`` times half turns about the image axes.

    ``R diag(-1, -1, 1)`` rotates the image by 180 degrees in its plane. ``R diag(1, -1, -1)`` is the view from the back: the
    same projection mirrored in y.
    """
    return rotation[..., None, :, :] @ HALF_TURNS.to(rotation)


def healpix_centres(n_side: int) -> Tensor:
    """Unit vectors (12 n_side^2, 3) to the centres of the HEALPix pixels in ring order, float64, for any ``n_side``.

    From Gorski et al. (2005), their equations 4 to 9. Libraries that support ``n_side`` other than powers of 2 are GPL.
    """
    ring = torch.arange(1, 4 * n_side)
    from_pole = torch.minimum(ring, 4 * n_side - ring)
    count = 4 * from_pole.clamp(max=n_side)
    cap = 1 - from_pole.double().square() / (3 * n_side**2)
    belt = (2 * n_side - ring).double() * (2 / (3 * n_side))
    z = torch.where(from_pole < n_side, torch.where(ring < 2 * n_side, cap, -cap), belt)
    # in the polar caps and in every other ring of the equatorial belt, pixels are offset by half a pixel in longitude
    offset = torch.where((from_pole < n_side) | ((ring - n_side) % 2 == 0), 0.5, 0.0).double()
    index = torch.arange(int(count.sum())) - (count.cumsum(0) - count).repeat_interleave(count)
    phi = 2 * math.pi * (index + offset.repeat_interleave(count)) / count.repeat_interleave(count)
    z = z.repeat_interleave(count)
    across = (1 - z.square()).clamp(min=0).sqrt()
    return torch.stack([across * torch.cos(phi), across * torch.sin(phi), z], dim=-1)


def healpix_pixel(direction: Tensor, n_side: int) -> Tensor:
    """HEALPix pixel index (...,), ring order, of unit vectors (..., 3); ``n_side`` must be a power of 2."""
    from astropy import units
    from astropy_healpix import lonlat_to_healpix

    x, y, z = direction.double().numpy().reshape(-1, 3).T
    longitude, latitude = np.arctan2(y, x), np.arcsin(np.clip(z, -1, 1))
    pixel = lonlat_to_healpix(longitude * units.rad, latitude * units.rad, n_side, order="ring")
    return torch.as_tensor(pixel).long().view(direction.shape[:-1])


def so3_grid(spacing_deg: float, generator: torch.Generator | None = None) -> Tensor:
    """Rotations (n, 3, 3) that cover SO(3) evenly: HEALPix directions times in-plane angles.

    Parameters
    ----------
    spacing_deg : approximate angle between neighbours in degrees. HEALPix pixels are ``58.6 / n_side`` degrees wide.
    generator : if given, the whole grid is rotated at random, so that successive grids differ.
    """
    n_psi = max(1, round(360 / spacing_deg))
    x, y, z = healpix_centres(max(1, round(58.6 / spacing_deg))).T
    psi = torch.arange(n_psi).double() * (2 * math.pi / n_psi)
    rot, tilt = torch.atan2(y, x).repeat_interleave(n_psi), torch.acos(z).repeat_interleave(n_psi)
    grid = roma.euler_to_rotmat("ZYZ", torch.stack([rot, tilt, psi.repeat(len(z))], dim=-1)).float()
    if generator is None:
        return grid
    return roma.random_rotmat(generator=generator) @ grid


def angular_distance_deg(a: Tensor, b: Tensor) -> Tensor:
    """Angle (...) in degrees of the rotation from ``a`` to ``b``, both (..., 3, 3)."""
    return torch.rad2deg(roma.rotmat_geodesic_distance(a, b))


def squared_frobenius(a: Tensor, b: Tensor) -> Tensor:
    """``||a - b||_F^2`` (...), equal to ``8 sin^2(angle / 2)``: 8 at 180 degrees, 6 on average for random rotations."""
    return (a - b).square().sum((-1, -2))
