"""CTF-weighted Wiener back-projection (Scheres 2012, section 2)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.data.working_set import CPU, Images, at_a_time
from ace_em.maths.blocks import where_it_fits
from ace_em.maths.fourier import frequencies, shell_sums
from ace_em.maths.radial_mean import features
from ace_em.maths.slices import Insertion, complete_hermitian_, ft_to_volume, padded_size
from ace_em.metrics.fsc import fourier_shell_correlation
from ace_em.physics.imaging import shift_phase
from ace_em.physics.pose import Pose

BLOCK = 256


@dataclass(frozen=True)
class Accumulator:
    """Inserted images: ``grid`` (3, P + 1, P + 1, P / 2 + 1) of data (real, imaginary) and squared transfer, ``box``."""

    grid: Tensor
    box: int

    def __add__(self, other: "Accumulator") -> "Accumulator":
        return Accumulator(self.grid + other.grid, self.box)


def accumulate(images: Images, pose: Pose, rows: Tensor | None = None, pad: int = 2, device: torch.device = CPU) -> Accumulator:
    """Insert images at their poses (N,): sum of ``h conj(shift) y`` and of ``h^2``.

    Parameters
    ----------
    rows : the images that are inserted; all by default.
    device : where they are inserted, block by block; the result is where the poses are.
    """
    size = padded_size(images.box, pad)
    inserted = where_it_fits(device, lambda device: Insertion(size, images.noise_variance.to(device)))
    device = inserted.grid.device
    for some in (torch.arange(len(images)) if rows is None else rows).split(at_a_time(images, BLOCK)):
        batch, at = images.rows(some).to(device), pose[some].to(device)
        data = batch.image_ft * batch.transfer * shift_phase(batch.half_plane, -at.shift_px)
        inserted.add(data, batch.transfer.square(), batch.half_plane, at.rotation)
    return Accumulator(complete_hermitian_(inserted.grid).to(pose.rotation.device), images.box)


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
    sums = torch.zeros(2, n_shells)
    for z, plane in enumerate(power):
        shells = _plane_shells(accumulator, z).flatten()
        sums += shell_sums(torch.stack([plane.flatten(), torch.ones(plane.numel())]), shells, n_shells)
    # 1 / tau^2 of the prior; the floor keeps empty voxels of a well-sampled shell finite
    prior = sums[0] / sums[1] / ssnr.clamp(min=1e-4, max=1e3)
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

    ``unfiltered1`` and ``unfiltered2`` are the halves as the images have them, over the whole box: post-processing, here or
    in another program, begins with those.
    """

    half1: Tensor
    half2: Tensor
    combined: Tensor
    fsc: Tensor
    unfiltered1: Tensor
    unfiltered2: Tensor

    def features_fsc(self, mask: Tensor) -> Tensor:
        """FSC (n // 2 + 1,) between the halves inside a ball, without their radial means.

        A ball or a shell is the same from everywhere: any arrangement of poses gives it, and its FSC is no evidence for one.
        """
        return fourier_shell_correlation(*(features(half * mask) for half in (self.unfiltered1, self.unfiltered2)))

    def without_maps(self) -> "Halves":
        """The FSC alone."""
        nothing = torch.empty(0)
        return Halves(nothing, nothing, nothing, self.fsc, nothing, nothing)


FLAT_SSNR = 20.0


def reconstruct_halves(one: Accumulator, two: Accumulator, mask: Tensor) -> Halves:
    """Maps of two halves and of both, with the prior that their FSC gives.

    Parameters
    ----------
    one, two : inserted halves.
    mask : (box, box, box) soft ball inside which the FSC is measured and the references are kept.
    """
    flat = torch.full((one.box // 2 + 1,), FLAT_SSNR)
    # the weak prior keeps empty voxels finite; what it takes from the others is given back
    unfiltered = [wiener(a, flat) * (1 + 1 / FLAT_SSNR) for a in (one, two)]
    fsc = fourier_shell_correlation(unfiltered[0] * mask, unfiltered[1] * mask)
    prior = fsc.clone()
    prior[:2] = prior[:2].clamp(min=0.9)
    half = ssnr_from_fsc(prior, combined=False).clamp(min=0.02)
    maps = [wiener(a, half) * mask for a in (one, two)]
    combined = wiener(one + two, ssnr_from_fsc(prior, combined=True).clamp(min=0.04)) * mask
    return Halves(maps[0], maps[1], combined, fsc, *unfiltered)
