"""Point groups of particles: their rotations, asymmetric units, and the nearest symmetry-equivalent pose.

A map with point group G has ``V(g r) = V(r)`` for every ``g`` in G, so the poses ``R`` and ``g R`` give the same image. The axes
follow RELION's convention; the tests compare them with RELION's matrices.
"""

import math
import re

import roma
import torch
from torch import Tensor

GOLDEN = (1 + math.sqrt(5)) / 2
EXPECTED = "expected C1 ... C99, D1 ... D99, T, O, I (which is I2), I1, I2, I3 or I4"
BLOCK = 16384
_SAME = 1e-6

Axis = tuple[int, tuple[float, float, float]]

# order and direction (x, y, z) of the generating axes
_AXES: dict[str, list[Axis]] = {
    "T": [(3, (0, 0, 1)), (2, (0, math.sqrt(2), 1))],
    "O": [(4, (0, 0, 1)), (3, (1, 1, 1))],
    "I1": [(2, (1, 0, 0)), (5, (GOLDEN, 0, -1))],
    "I2": [(2, (0, 0, 1)), (5, (1, 0, GOLDEN))],
    "I3": [(5, (0, 0, 1)), (2, (-1, 0, GOLDEN))],
    "I4": [(5, (0, 0, 1)), (2, (1, 0, GOLDEN))],
}
_AXES["I"] = _AXES["I2"]


def _generating_axes(name: str) -> list[Axis]:
    symbol = name.strip().upper()
    if symbol in _AXES:
        return _AXES[symbol]
    if match := re.fullmatch(r"([CD])([1-9][0-9]?)", symbol, re.ASCII):
        main = [(int(match[2]), (0.0, 0.0, 1.0))]
        return main if match[1] == "C" else [*main, (2, (1.0, 0.0, 0.0))]
    raise ValueError(f"point group {name!r} is not known; {EXPECTED}")


def generators(name: str) -> Tensor:
    """Rotations (1 or 2, 3, 3), float64, that generate the group ``name``."""
    orders, directions = zip(*_generating_axes(name), strict=True)
    axis = torch.nn.functional.normalize(torch.tensor(directions, dtype=torch.float64), dim=-1)
    return roma.rotvec_to_rotmat(axis * (2 * math.pi / torch.tensor(orders, dtype=torch.float64))[:, None])


def point_group(name: str) -> Tensor:
    """Rotations (g, 3, 3) of a point group, float64, with the identity first and the axes in RELION's convention.

    Parameters
    ----------
    name : upper or lower case. ``Cn``: n-fold axis along z. ``Dn``: n-fold along z, two-fold along x. ``T``: three-fold along
        z, two-fold in the yz plane. ``O``: four-fold axes along x, y and z. ``I1`` and ``I2``: two-fold axes along x, y and z,
        and five-fold axes in the xz plane, nearer to x or to z respectively; ``I`` is ``I2``. ``I3`` and ``I4``: five-fold
        axis along z and two-fold axes in the xz plane, the one nearest z at negative or positive x respectively; they differ
        by a rotation of 180 degrees about z.

    Raises
    ------
    ValueError : unknown point group.
    """
    steps = generators(name)
    group = newest = torch.eye(3, dtype=torch.float64)[None]
    while len(newest):
        products = (steps[:, None] @ newest).view(-1, 3, 3)
        newest = products[_first_of_each(torch.cat([group, products]))[len(group) :]]
        group = torch.cat([group, newest])
    return group


def _first_of_each(rotation: Tensor) -> Tensor:
    """(n,) true for the first occurrence of each distinct rotation of (n, 3, 3)."""
    same = (rotation[None] - rotation[:, None]).abs().amax((-1, -2)) < _SAME
    return ~same.tril(-1).any(1)


def in_asymmetric_unit(rotation: Tensor, group: Tensor) -> Tensor:
    """Whether rotations (..., 3, 3) lie in a fixed asymmetric unit: true for one member of every orbit ``{g R}``.

    The asymmetric unit is the Voronoi cell, ``1 / |G|`` of SO(3), of rotations closer to a fixed reference than any of their
    symmetry copies. The reference is a generic rotation, so that grid points do not fall on the boundary.

    Parameters
    ----------
    rotation : (..., 3, 3).
    group : (g, 3, 3) with the identity first, from :func:`point_group`.
    """
    centre = roma.rotvec_to_rotmat(torch.tensor([0.3127, -0.5841, 0.1973], dtype=torch.float64, device=rotation.device))
    # tr(C^T g R) = <g^T C, R>
    cells = (group.to(centre).mT @ centre).flatten(1)
    blocks = rotation.reshape(-1, 9).split(BLOCK)
    inside = [(block.to(cells) @ cells.T).argmax(1) == 0 for block in blocks]
    return torch.cat(inside).view(rotation.shape[:-2])


def nearest_copy(rotation: Tensor, reference: Tensor, group: Tensor) -> Tensor:
    """The symmetry copy ``g @ rotation`` (..., 3, 3) nearest to ``reference`` in the Frobenius norm.

    Parameters
    ----------
    rotation, reference : (..., 3, 3), broadcast together.
    group : (g, 3, 3).
    """
    # tr(B^T g R) = <g, B R^T>
    relative = (reference @ rotation.mT).flatten(-2)
    group = group.to(rotation)
    return group[(relative @ group.flatten(1).T).argmax(-1)] @ rotation


def mirrored_axes(name: str) -> Tensor:
    """The rotation ``Q`` (3, 3), float64, that restores RELION's axes after a map is mirrored in z.

    A map with group G, mirrored in z, has the group ``J G J`` with ``J = diag(1, 1, -1)``. Rotated by ``Q``, it has
    ``Q J G J Q^T = G`` again. For T, I3 and I4, ``Q`` is the half turn about z: ``Q J`` is then the inversion ``-1``, which
    commutes with all rotations. For the other groups it is the identity.
    """
    return axes_after_mirror(point_group(name))


def axes_after_mirror(group: Tensor) -> Tensor:
    """The rotation of :func:`mirrored_axes`, for the rotations (g, 3, 3), float64, of a point group."""
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    mirrored = mirror @ group @ mirror
    distance = (mirrored[:, None] - group[None]).abs().amax((-1, -2)).amin(1)
    if distance.max() < _SAME:
        return torch.eye(3, dtype=torch.float64)
    return torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
