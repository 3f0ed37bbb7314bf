"""Atoms to a Gaussian density and its projections, in closed form (molmap of ChimeraX, appendix B).

Every atom is a Gaussian of weight Z and ``sigma = resolution / (pi sqrt 2)``. Its Fourier transform is known exactly, so
atoms are laid as points on a grid finer than the map's, transformed, and multiplied by that Gaussian; what the points lose
to being laid linearly between grid nodes (``sinc^2``) is divided out. Volume and projection share nothing with the central
slices of the decoders: a projection is made from turned atoms.
"""

import math

import torch
from torch import Tensor

from ace_em.maths.fourier import centred_fft, centred_ifft, frequencies, resize
from ace_em.simulation.structure import Atoms

OVERSAMPLING = 3


def gaussian_sigma_angstrom(resolution_angstrom: float) -> float:
    """Width of molmap's Gaussian: ``resolution / (pi sqrt 2)``, 0.225 of the resolution."""
    return resolution_angstrom / (math.pi * math.sqrt(2))


def lay_points(position: Tensor, weight: Tensor, n: int) -> Tensor:
    """Spread points linearly over the nodes of a grid.

    Parameters
    ----------
    position : (m, d) in samples from the centre, in array order (y, x or z, y, x).
    weight : (m,).
    n : grid edge; points outside are dropped.

    Returns
    -------
    (n,) * d grid.
    """
    ndim = position.shape[-1]
    position = position + n // 2
    inside = ((position >= 0) & (position < n - 1)).all(-1)
    position, weight = position[inside], weight[inside]
    low = position.floor()
    fraction = position - low
    low = low.long()
    grid = torch.zeros(n**ndim, dtype=weight.dtype, device=weight.device)
    stride = torch.tensor([n ** (ndim - 1 - d) for d in range(ndim)], device=weight.device)
    base = (low * stride).sum(-1)
    for corner in range(2**ndim):
        up = torch.tensor([(corner >> d) & 1 for d in range(ndim)], device=weight.device)
        share = torch.where(up.bool(), fraction, 1 - fraction).prod(-1)
        grid.index_add_(0, base + (up * stride).sum(), weight * share)
    return grid.view((n,) * ndim)


def _gaussian_over_sinc(n: int, ndim: int, fine_n: int, sigma_px: float, dtype: torch.dtype) -> Tensor:
    """Transform of one atom over that of the linear spread, (n,) * ndim."""
    axis = frequencies(n, dtype=dtype)
    one = torch.exp(-2 * (math.pi * sigma_px * axis / n).square()) / torch.sinc(axis / fine_n).square()
    factor = one
    for _ in range(ndim - 1):
        factor = factor[..., None] * one
    return factor


def density_map(atoms: Atoms, box: int, pixel_size_angstrom: float, resolution_angstrom: float) -> Tensor:
    """Band-limited Gaussian density (box, box, box), z, y, x order, float32."""
    fine = box * (OVERSAMPLING if box <= 160 else 2)
    position = atoms.position_angstrom.flip(-1) * (fine / box / pixel_size_angstrom)
    points = lay_points(position.float(), atoms.weight.float(), fine)
    # the shifted transform of a large fine grid is cropped at once to keep memory down
    points_ft = resize(centred_fft(points, 3), box, 3)
    sigma_px = gaussian_sigma_angstrom(resolution_angstrom) / pixel_size_angstrom
    return centred_ifft(points_ft * _gaussian_over_sinc(box, 3, fine, sigma_px, torch.float32), 3).real.float()


def project_atoms(atoms: Atoms, rotation: Tensor, box: int, pixel_size_angstrom: float, resolution_angstrom: float) -> Tensor:
    """Fourier transforms (b, box, box) of the projections at ``rotation`` (b, 3, 3), centred, of :func:`density_map`'s atoms.

    The image of ``V(R r)`` (eq. 22) has the atoms at ``R^T p``.
    """
    fine = box * OVERSAMPLING
    # R^T p as row vectors: p R, and only its y and x
    scale = fine / box / pixel_size_angstrom
    position = atoms.position_angstrom.to(rotation)
    weight = atoms.weight.to(rotation)
    sigma_px = gaussian_sigma_angstrom(resolution_angstrom) / pixel_size_angstrom
    factor = _gaussian_over_sinc(box, 2, fine, sigma_px, rotation.dtype)
    images = []
    for one in rotation:
        turned = position @ one[:, [1, 0]]
        images.append(resize(centred_fft(lay_points(turned * scale, weight, fine), 2), box, 2) * factor)
    return torch.stack(images)
