"""Central slices of the Fourier transform of a volume (eq. 25, eq. 26), and their adjoint, insertion.

The volume is zero-padded by a factor ``pad``, so that its transform is finely sampled, and the transform is read by trilinear
interpolation. This interpolation multiplies the volume by ``sinc^2`` in real space, so the volume is first divided by it. The
transform of a real volume is Hermitian, so only ``x >= 0`` is stored; a point with negative x is read at its Hermitian partner
and conjugated.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ace_em.maths.fourier import frequencies, resize
from ace_em.maths.half_plane import HalfPlane


@dataclass(frozen=True)
class VolumeFT:
    """Half of the Fourier transform of a padded volume, for slicing.

    Attributes
    ----------
    grid : (2, P + 1, P + 1, P / 2 + 1) real and imaginary parts in z, y, x order, ``P = pad * box``. Frequencies are
        ``-P/2 ... P/2`` along z and y (both ends are stored, so that interpolation stays inside the grid) and ``0 ... P/2``
        along x.
    box : edge of the unpadded volume in voxels.
    """

    grid: Tensor
    box: int

    @property
    def padded_box(self) -> int:
        return self.grid.shape[1] - 1

    @property
    def device(self) -> torch.device:
        """Device of the transform, to which images are moved in blocks."""
        return self.grid.device

    def to(self, device: torch.device) -> "VolumeFT":
        return VolumeFT(self.grid.to(device), self.box)


def padded_size(box: int, pad: int) -> int:
    """Edge of the padded box: ``pad * box``, rounded up to an even number."""
    return pad * box + (pad * box) % 2


def gridding_correction(box: int, padded_box: int, like: Tensor) -> Tensor:
    """Factor ``1 / sinc^2`` (box, box, box) that corrects for trilinear interpolation in Fourier space."""
    axis = torch.sinc(frequencies(box, like.device, like.dtype) / padded_box).square()
    return 1 / (axis[:, None, None] * axis[None, :, None] * axis[None, None])


def volume_to_ft(volume: Tensor, pad: int = 2) -> VolumeFT:
    """Transform a real volume (box, box, box), z, y, x order, for :func:`central_slices`."""
    box = volume.shape[-1]
    size = padded_size(box, pad)
    padded = resize(volume * gridding_correction(box, size, volume), size, 3)
    half = torch.fft.fftshift(torch.fft.rfftn(torch.fft.ifftshift(padded)), dim=(0, 1))
    half = torch.cat([half, half[:1]], dim=0)
    half = torch.cat([half, half[:, :1]], dim=1)
    return VolumeFT(torch.view_as_real(half).movedim(-1, 0).contiguous(), box)


def ft_to_volume(grid: Tensor, box: int, weight: Callable[[int], Tensor] | None = None) -> Tensor:
    """Volume (box, box, box) from a half transform (2, P + 1, P + 1, P / 2 + 1) with inserted slices.

    Insertion spreads each value with the same trilinear weights as sampling, so the volume needs the same ``1 / sinc^2``
    correction. Apart from that correction this is the inverse of :func:`volume_to_ft`.

    Parameters
    ----------
    weight : function from the plane index z to the weights (P + 1, P / 2 + 1) of that plane. Weights are computed plane by plane
        because the padded transform is the largest array of a run.
    """
    size = grid.shape[1] - 1
    half = torch.empty(size, size, size // 2 + 1, dtype=grid.dtype.to_complex(), device=grid.device)
    for z in range(size):
        real, imag = grid[0, z, :size], grid[1, z, :size]
        if weight is not None:
            factor = weight(z)[:size]
            real, imag = real * factor, imag * factor
        # move zero frequency from the middle to index 0
        half[z - size // 2] = torch.fft.ifftshift(torch.complex(real, imag), dim=0)
    padded = torch.fft.irfftn(half, s=(size, size, size))
    # move the centre back to the middle, for the unpadded voxels only
    middle = torch.arange(-(box // 2), box - box // 2, device=grid.device)
    return padded[middle[:, None, None], middle[:, None], middle] * gridding_correction(box, size, padded)


def _grid_points(box: int, k: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
    """Sampling points (..., n, 3) of ``R k`` for ``grid_sample``, and the sign (..., n) of their x."""
    points = k @ rotation[..., :, : k.shape[-1]].mT
    sign = torch.where(points[..., 0] < 0, -1.0, 1.0).to(points.dtype)
    points = points * sign[..., None] * (2 / box)
    # x spans 0 ... P/2, z and y span -P/2 ... P/2; grid_sample expects -1 ... 1
    return torch.cat([2 * points[..., :1] - 1, points[..., 1:]], dim=-1), sign


def sample(volume_ft: VolumeFT, k: Tensor, rotation: Tensor) -> Tensor:
    """Values ``V_hat(R k)`` of the transform at rotated frequencies (eq. 26), by trilinear interpolation.

    Parameters
    ----------
    volume_ft : from :func:`volume_to_ft`.
    k : (n, 2) in-plane or (n, 3) frequencies, cycles per box, x, y[, z] order, ``|k| <= box / 2``.
    rotation : (..., 3, 3) matrices acting on column vectors.

    Returns
    -------
    (..., n) complex.
    """
    points, sign = _grid_points(volume_ft.box, k, rotation)
    flat = points.reshape(-1, len(k), 3)
    # on the CPU, grid_sample is parallel over the batch axis: use one batch entry per thread
    groups = torch.get_num_threads() if flat.device.type == "cpu" and len(flat) % torch.get_num_threads() == 0 else 1
    read = F.grid_sample(volume_ft.grid.expand(groups, -1, -1, -1, -1), flat.view(groups, 1, -1, len(k), 3), align_corners=True)
    real, imag = read.movedim(1, 0).reshape(2, *points.shape[:-1])
    return torch.complex(real, imag * sign)


def central_slices(volume_ft: VolumeFT, half_plane: HalfPlane, rotation: Tensor) -> Tensor:
    """Fourier transforms (..., n) of the projections at ``rotation`` (..., 3, 3) on ``half_plane`` (eq. 25)."""
    return sample(volume_ft, half_plane.k, rotation)


def insert_slices(values: Tensor, weights: Tensor, half_plane: HalfPlane, rotation: Tensor, padded_box: int) -> Tensor:
    """Adjoint of :func:`central_slices`: insert slices into an empty half transform.

    Parameters
    ----------
    values : (b, n) complex, inserted at ``R k``.
    weights : (b, n) real, inserted at the same points with the same interpolation.
    rotation : (b, 3, 3).
    padded_box : P of :class:`VolumeFT`.

    Returns
    -------
    (3, P + 1, P + 1, P / 2 + 1): real part, imaginary part, weight.
    """
    inserted = Insertion(padded_box, weights)
    inserted.add(values, weights, half_plane, rotation)
    return inserted.grid


class Insertion:
    """A half transform into which batches of slices are inserted; see :func:`insert_slices`."""

    def __init__(self, padded_box: int, like: Tensor) -> None:
        self.size = padded_box
        width, height = padded_box // 2 + 1, padded_box + 1
        # extra space for upper neighbours beyond the last plane, row and voxel, which have weight 0
        self._flat = torch.zeros(3, (height + 1) * height * width + width + 1, dtype=like.dtype, device=like.device)

    @property
    def grid(self) -> Tensor:
        """(3, P + 1, P + 1, P / 2 + 1): real part, imaginary part, weight."""
        width, height = self.size // 2 + 1, self.size + 1
        return self._flat[:, : height * height * width].view(3, height, height, width)

    def add(self, values: Tensor, weights: Tensor, half_plane: HalfPlane, rotation: Tensor) -> None:
        """Insert values and weights (b, n) at rotations (b, 3, 3)."""
        _insert_(self._flat, self.size, (values, weights), half_plane, rotation)


def _insert_(flat: Tensor, size: int, slices: tuple[Tensor, Tensor], half_plane: HalfPlane, rotation: Tensor) -> None:
    values, weights = slices
    points = half_plane.k @ rotation[..., :, :2].mT
    sign = torch.where(points[..., 0] < 0, -1.0, 1.0).to(points.dtype)
    x, y, z = (points * sign[..., None] * (size / half_plane.box)).view(-1, 3).T
    y, z = y + size // 2, z + size // 2
    floor = [axis.floor() for axis in (x, y, z)]
    width, height = size // 2 + 1, size + 1
    first = (floor[2].long() * height + floor[1].long()) * width + floor[0].long()
    # interpolation weights of the lower and upper neighbour along each axis
    x_weights, y_weights, z_weights = ((1 - (axis - low), axis - low) for axis, low in zip((x, y, z), floor, strict=True))
    inserted = (values.real.reshape(-1), (values.imag * sign).reshape(-1), weights.reshape(-1))
    for dz, dy, dx in itertools.product((0, 1), repeat=3):
        weight = z_weights[dz] * y_weights[dy] * x_weights[dx]
        voxel = first + ((dz * height + dy) * width + dx)
        # one-dimensional index_add is several times faster than the backward pass of grid_sample, which gives the same sum
        for channel, part in zip(flat, inserted, strict=True):
            channel.index_add_(0, voxel, part * weight)


def complete_hermitian_(grid: Tensor) -> Tensor:
    """Apply Hermitian symmetry to inserted slices (3, P + 1, P + 1, P / 2 + 1) in place.

    Insertion adds each Hermitian pair once, at ``x >= 0``. On the plane ``x = 0`` both members are stored, so the conjugate of
    each is added to the other. The duplicated Nyquist planes in z and y are summed.
    """
    for axis in (1, 2):
        ends = grid.narrow(axis, 0, 1) + grid.narrow(axis, grid.shape[axis] - 1, 1)
        grid.narrow(axis, 0, 1).copy_(ends)
        grid.narrow(axis, grid.shape[axis] - 1, 1).copy_(ends)
    conjugate = torch.tensor([1.0, -1.0, 1.0], dtype=grid.dtype, device=grid.device)[:, None, None]
    plane = grid[..., 0]
    grid[..., 0] = plane + plane.flip(1, 2) * conjugate
    return grid
