"""CTF-weighted Wiener back-projection (Scheres 2012, section 2)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.data.particle_stack import CPU, ParticleStack
from ace_em.maths.blocks import where_it_fits
from ace_em.maths.fourier import frequencies, shell_sums
from ace_em.maths.radial_mean import features
from ace_em.maths.slices import Insertion, complete_hermitian_, ft_to_volume, padded_size
from ace_em.metrics.fsc import fourier_shell_correlation
from ace_em.physics.imaging import slice_of_image
from ace_em.physics.pose import Pose

BLOCK = 256


@dataclass(frozen=True)
class Accumulator:
    """Inserted images: ``grid`` (3, P + 1, P + 1, P / 2 + 1) of data (real, imaginary) and squared effective CTF, ``box``."""

    grid: Tensor
    box: int

    def __add__(self, other: "Accumulator") -> "Accumulator":
        return Accumulator(self.grid + other.grid, self.box)


def accumulate(
    stack: ParticleStack, pose: Pose, rows: Tensor | None = None, pad: int = 2, device: torch.device = CPU
) -> Accumulator:
    """Insert images at their poses (N,): sum of ``h conj(shift) y`` and of ``h^2``, ``h`` the effective CTF.

    Parameters
    ----------
    rows : the images that are inserted; all by default.
    device : where they are inserted, block by block; the result is where the poses are.
    """
    size = padded_size(stack.box, pad)
    like = stack.intensity_scale
    inserted = where_it_fits(device, lambda device: Insertion(size, like.to(device)))
    device = inserted.grid.device
    for some in (torch.arange(len(stack)) if rows is None else rows).split(stack.at_a_time(BLOCK)):
        batch, at = stack.batch(some, device), pose[some].to(device)
        data = slice_of_image(batch.image_ft, batch.effective_ctf, batch.half_plane, at.shift_px)
        inserted.add(data, batch.effective_ctf.square(), batch.half_plane, at.rotation)
    return Accumulator(complete_hermitian_(inserted.grid).to(pose.rotation.device), stack.box)


def _plane_shells(accumulator: Accumulator, z: int) -> Tensor:
    """Integer shell (P + 1, P / 2 + 1) of the unpadded box of every voxel in a plane of the grid."""
    size = accumulator.grid.shape[1] - 1
    axis = frequencies(size + 1)
    x = torch.arange(size // 2 + 1, dtype=axis.dtype)
    radius = (axis[z].square() + axis[:, None].square() + x.square()).sqrt()
    return (radius * (accumulator.box / size)).round().long()


def wiener(accumulator: Accumulator, ssnr: Tensor) -> Tensor:
    """Volume (box, box, box) of inserted images, regularised by the spectral signal-to-noise ratio.

    Parameters
    ----------
    ssnr : (box // 2 + 1,) signal over noise power of the map, shell by shell; a shell of 0 is left out.
    """
    n_shells, power = accumulator.box // 2 + 1, accumulator.grid[2]
    # 1 / tau^2 of the prior; the floor keeps empty voxels of a well-sampled shell finite
    prior = _mean_power(accumulator) / ssnr.clamp(min=1e-4, max=1e3)
    prior = torch.where(ssnr > 0, prior, torch.inf)

    def weight(z: int) -> Tensor:
        shells = _plane_shells(accumulator, z)
        inside = shells < n_shells
        prior_there = torch.where(inside, prior[shells.clamp(max=n_shells - 1)], torch.inf)
        return 1 / (power[z] + prior_there).clamp(min=1e-20)

    return ft_to_volume(accumulator.grid, accumulator.box, weight)


def ssnr_from_fsc(fsc: Tensor, combined: bool) -> Tensor:
    """SSNR of one half-map, ``FSC / (1 - FSC)``, or of the map of both halves, twice that (Rosenthal and Henderson 2003)."""
    fsc = fsc.clamp(0.0, 0.999)
    return fsc / (1 - fsc) * (2 if combined else 1)


@dataclass(frozen=True)
class Halves:
    """Two half-maps as references (Wiener-filtered, in the ball), the map of both, and the FSC between the halves.

    ``weak1`` and ``weak2`` are the halves over the whole box with a weak prior, :data:`WEAK_SSNR` in every shell: what the FSC
    is measured from.
    """

    half1: Tensor
    half2: Tensor
    combined: Tensor
    fsc: Tensor
    weak1: Tensor
    weak2: Tensor

    def features_fsc(self, mask: Tensor) -> Tensor:
        """FSC (n // 2 + 1,) between the halves inside a ball, without their radial means.

        A ball or a shell looks the same from everywhere: any arrangement of poses gives it, so its FSC is no evidence for one.
        """
        return fourier_shell_correlation(*(features(half * mask) for half in (self.weak1, self.weak2)))

    def without_maps(self) -> "Halves":
        """The FSC alone."""
        nothing = torch.empty(0)
        return Halves(nothing, nothing, nothing, self.fsc, nothing, nothing)


WEAK_SSNR = 20.0
"""Spectral signal-to-noise ratio of the weak prior: it keeps voxels with few data finite, and damps well-sampled ones by 1/20."""


def reconstruct_halves(one: Accumulator, two: Accumulator, mask: Tensor) -> Halves:
    """Maps of two halves and of both, with the prior that their FSC gives.

    Parameters
    ----------
    one, two : inserted halves.
    mask : (box, box, box) soft ball inside which the FSC is measured and the references are kept.
    """
    flat = torch.full((one.box // 2 + 1,), WEAK_SSNR)
    # what the weak prior takes from well-sampled voxels is given back
    weak = [wiener(a, flat) * (1 + 1 / WEAK_SSNR) for a in (one, two)]
    fsc = fourier_shell_correlation(weak[0] * mask, weak[1] * mask)
    prior = fsc.clone()
    prior[:2] = prior[:2].clamp(min=0.9)
    half = ssnr_from_fsc(prior, combined=False).clamp(min=0.02)
    maps = [wiener(a, half) * mask for a in (one, two)]
    combined = wiener(one + two, ssnr_from_fsc(prior, combined=True).clamp(min=0.04)) * mask
    return Halves(maps[0], maps[1], combined, fsc, *weak)


def unfiltered_map(accumulator: Accumulator) -> Tensor:
    """The map (box, box, box) of inserted images without a prior, as ``relion_reconstruct --skip_gridding`` makes it.

    Data over weight, voxel by voxel. As in RELION's ``BackProjector::reconstruct``, a weight is no less than a thousandth of the
    mean over its shell, so that voxels which hardly any image reaches stay finite; beyond Nyquist there is nothing.
    """
    n_shells, power = accumulator.box // 2 + 1, accumulator.grid[2]
    mean = _mean_power(accumulator)

    def weight(z: int) -> Tensor:
        shells = _plane_shells(accumulator, z)
        inside = shells < n_shells
        least = 1e-3 * mean[shells.clamp(max=n_shells - 1)]
        return torch.where(inside, 1 / torch.maximum(power[z], least).clamp(min=1e-20), 0.0)

    return ft_to_volume(accumulator.grid, accumulator.box, weight)


def _mean_power(accumulator: Accumulator) -> Tensor:
    """Mean (box // 2 + 1,) of the squared effective CTF in each shell."""
    n_shells, power = accumulator.box // 2 + 1, accumulator.grid[2]
    sums = torch.zeros(2, n_shells)
    for z, plane in enumerate(power):
        shells = _plane_shells(accumulator, z).flatten()
        sums += shell_sums(torch.stack([plane.flatten(), torch.ones(plane.numel())]), shells, n_shells)
    return sums[0] / sums[1]
