"""Gaussian density of atoms and its projections, in closed form (as ChimeraX's molmap, appendix B).

Each atom is a Gaussian of weight Z and ``sigma = resolution / (pi sqrt 2)``. Atoms are spread as points on a fine grid, which is
Fourier transformed and multiplied by the transform of the Gaussian. The ``sinc^2`` from the linear spreading is divided out.
Projections are computed from rotated atoms, independently of the central slices of the decoders.
"""

import math

import torch
from torch import Tensor

from ace_em.maths.fourier import centred_fft, centred_ifft, frequencies, resize
from ace_em.simulation.structure import Atoms

OVERSAMPLING = 3


def gaussian_sigma_angstrom(resolution_angstrom: float) -> float:
    """Sigma of molmap's Gaussian: ``resolution / (pi sqrt 2)``, 0.225 times the resolution."""
    return resolution_angstrom / (math.pi * math.sqrt(2))


def lay_points(position: Tensor, weight: Tensor, n: int) -> Tensor:
    """Spread points over the nodes of a grid with linear weights.

    Parameters
    ----------
    position : (m, d) in samples from the centre, in array order (y, x or z, y, x).
    weight : (m,) weights of the points.
    n : edge of the grid; points outside are dropped.

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
        corner_weight = torch.where(up.bool(), fraction, 1 - fraction).prod(-1)
        grid.index_add_(0, base + (up * stride).sum(), weight * corner_weight)
    return grid.view((n,) * ndim)


def _gaussian_over_sinc(n: int, ndim: int, fine_n: int, sigma_px: float, dtype: torch.dtype) -> Tensor:
    """Transform of the Gaussian divided by that of the linear spreading, (n,) * ndim."""
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
    # crop the transform of the fine grid immediately to limit memory
    points_ft = resize(centred_fft(points, 3), box, 3)
    sigma_px = gaussian_sigma_angstrom(resolution_angstrom) / pixel_size_angstrom
    return centred_ifft(points_ft * _gaussian_over_sinc(box, 3, fine, sigma_px, torch.float32), 3).real.float()


def project_atoms(atoms: Atoms, rotation: Tensor, box: int, pixel_size_angstrom: float, resolution_angstrom: float) -> Tensor:
    """Centred Fourier transforms (b, box, box) of projections of the density of :func:`density_map` at ``rotation`` (b, 3, 3).

    In the projection of ``V(R r)`` (eq. 22), an atom at ``p`` is at ``R^T p``.
    """
    fine = box * OVERSAMPLING
    # R^T p as a row vector is p R; only y and x are needed
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
