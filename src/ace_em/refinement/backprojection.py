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
from ace_em.refinement.posterior import Posterior
from ace_em.refinement.solvent import fsc_in_mask, solvent_mask

BLOCK = 256


@dataclass(frozen=True)
class Accumulator:
    """Sums of inserted images on the padded Fourier grid.

    Attributes
    ----------
    grid : (3, P + 1, P + 1, P / 2 + 1), with P the padded size: data (real, imaginary) and squared effective CTF.
    box : unpadded box in pixels.
    """

    grid: Tensor
    box: int

    def __add__(self, other: "Accumulator") -> "Accumulator":
        return Accumulator(self.grid + other.grid, self.box)


def accumulate(
    stack: ParticleStack, pose: Pose | Posterior, rows: Tensor | None = None, pad: int = 2, device: torch.device = CPU
) -> Accumulator:
    """Back-project images: sum ``w h conj(shift) y`` and ``w h^2`` at their poses, with ``h`` the effective CTF.

    Parameters
    ----------
    pose : (N,) poses of all images of the stack, of weight w = 1; or several of each image, weighted with their probabilities.
    rows : images to insert; all by default.
    device : device that inserts them, in blocks. The result is returned on the device of the poses.
    """
    posterior = pose if isinstance(pose, Posterior) else Posterior.certain(pose)
    image, at, weight = posterior.entries(torch.arange(len(stack)) if rows is None else rows)
    size = padded_size(stack.box, pad)
    like = stack.intensity_scale
    inserted = where_it_fits(device, lambda device: Insertion(size, like.to(device)))
    device = inserted.grid.device
    for some in torch.arange(len(image)).split(stack.at_a_time(BLOCK)):
        batch, here, share = stack.batch(image[some], device), at[some].to(device), weight[some, None].to(device)
        data = slice_of_image(batch.image_ft, batch.effective_ctf, batch.half_plane, here.shift_px)
        inserted.add(share * data, share * batch.effective_ctf.square(), batch.half_plane, here.rotation)
    return Accumulator(complete_hermitian_(inserted.grid).to(weight.device), stack.box)


def _plane_shells(accumulator: Accumulator, z: int) -> Tensor:
    """Shell of every voxel in plane ``z`` of the grid, (P + 1, P / 2 + 1) integers in shells of the unpadded box."""
    size = accumulator.grid.shape[1] - 1
    axis = frequencies(size + 1)
    x = torch.arange(size // 2 + 1, dtype=axis.dtype)
    radius = (axis[z].square() + axis[:, None].square() + x.square()).sqrt()
    return (radius * (accumulator.box / size)).round().long()


def wiener(accumulator: Accumulator, ssnr: Tensor) -> Tensor:
    """Wiener-filtered map (box, box, box) from inserted images.

    Parameters
    ----------
    ssnr : (box // 2 + 1,) spectral signal-to-noise ratio of the map; shells with 0 are set to 0.
    """
    n_shells, power = accumulator.box // 2 + 1, accumulator.grid[2]
    # 1 / tau^2 of the prior; the limit on the SSNR keeps empty voxels of a well-sampled shell finite
    prior = _mean_power(accumulator) / ssnr.clamp(min=1e-4, max=1e3)
    prior = torch.where(ssnr > 0, prior, torch.inf)

    def weight(z: int) -> Tensor:
        shells = _plane_shells(accumulator, z)
        inside = shells < n_shells
        prior_there = torch.where(inside, prior[shells.clamp(max=n_shells - 1)], torch.inf)
        return 1 / (power[z] + prior_there).clamp(min=1e-20)

    return ft_to_volume(accumulator.grid, accumulator.box, weight)


def ssnr_from_fsc(fsc: Tensor, combined: bool) -> Tensor:
    """SSNR from the half-map FSC (Rosenthal and Henderson 2003).

    ``FSC / (1 - FSC)`` for one half-map, and twice that for the map of all particles (``combined``).
    """
    fsc = fsc.clamp(0.0, 0.999)
    return fsc / (1 - fsc) * (2 if combined else 1)


@dataclass(frozen=True)
class Halves:
    """Two half-maps, the map of both halves, and the half-map FSC.

    Attributes
    ----------
    half1, half2 : (box, box, box) half-maps for use as references: Wiener-filtered and masked with a soft ball, or with a mask of
        the particle.
    combined : (box, box, box) map of both halves, Wiener-filtered with ``fsc`` and masked with the soft ball.
    fsc : (box // 2 + 1,) FSC between ``weak1`` and ``weak2`` inside the ball.
    fsc_of_references : (box // 2 + 1,) the FSC behind the filter of ``half1`` and ``half2``: ``fsc``, or that inside the mask.
    weak1, weak2 : (box, box, box) unmasked half-maps with a weak prior, :data:`WEAK_SSNR` in every shell.
    """

    half1: Tensor
    half2: Tensor
    combined: Tensor
    fsc: Tensor
    weak1: Tensor
    weak2: Tensor
    fsc_of_references: Tensor

    def features_fsc(self, mask: Tensor) -> Tensor:
        """FSC (n // 2 + 1,) between the half-maps inside a mask, with their radial means subtracted.

        The radial mean comes out the same for any set of poses, so its correlation says nothing about the poses.
        """
        return fourier_shell_correlation(*(features(half * mask) for half in (self.weak1, self.weak2)))

    def without_maps(self) -> "Halves":
        """Keep only the FSC."""
        empty = torch.empty(0)
        return Halves(empty, empty, empty, self.fsc, empty, empty, self.fsc_of_references)


WEAK_SSNR = 20.0
"""SSNR of the weak prior. It keeps poorly sampled voxels finite and damps well-sampled ones by about 1/20."""


def reconstruct_halves(one: Accumulator, two: Accumulator, mask: Tensor, flatten_solvent: bool = False) -> Halves:
    """Half-maps and combined map, Wiener-filtered with the SSNR from the half-map FSC.

    Parameters
    ----------
    one, two : inserted images of each half.
    mask : (box, box, box) soft ball, applied to the half-maps before the FSC and to the maps.
    flatten_solvent : mask the half-maps with a mask of the particle, and filter them with the FSC inside it.
    """
    flat = torch.full((one.box // 2 + 1,), WEAK_SSNR)
    # undo the damping of well-sampled voxels by the weak prior
    weak = [wiener(a, flat) * (1 + 1 / WEAK_SSNR) for a in (one, two)]
    fsc = fourier_shell_correlation(weak[0] * mask, weak[1] * mask)
    combined = wiener(one + two, ssnr_from_fsc(prior_fsc(fsc), combined=True).clamp(min=0.04)) * mask
    particle, of_references = mask, fsc
    if flatten_solvent:
        particle = solvent_mask(weak[0], weak[1], fsc, mask)
        of_references = fsc_in_mask(weak[0], weak[1], particle).corrected
    half = ssnr_from_fsc(prior_fsc(of_references), combined=False).clamp(min=0.02)
    maps = [wiener(a, half) * particle for a in (one, two)]
    return Halves(maps[0], maps[1], combined, fsc, weak[0], weak[1], of_references)


def prior_fsc(fsc: Tensor) -> Tensor:
    """FSC (box // 2 + 1,) for the prior of a map; the two lowest shells have too few coefficients for an FSC of their own."""
    prior = fsc.clone()
    prior[:2] = prior[:2].clamp(min=0.9)
    return prior


def unfiltered_map(accumulator: Accumulator) -> Tensor:
    """Map (box, box, box) of inserted images without a prior, as from ``relion_reconstruct --skip_gridding``.

    Each voxel is its data divided by its weight. As in RELION's ``BackProjector::reconstruct``, the weight is at least a
    thousandth of its shell mean, so that poorly sampled voxels stay finite. Beyond Nyquist the map is zero.
    """
    n_shells, power = accumulator.box // 2 + 1, accumulator.grid[2]
    mean = _mean_power(accumulator)

    def weight(z: int) -> Tensor:
        shells = _plane_shells(accumulator, z)
        inside = shells < n_shells
        floor = 1e-3 * mean[shells.clamp(max=n_shells - 1)]
        return torch.where(inside, 1 / torch.maximum(power[z], floor).clamp(min=1e-20), 0.0)

    return ft_to_volume(accumulator.grid, accumulator.box, weight)


def _mean_power(accumulator: Accumulator) -> Tensor:
    """Mean squared effective CTF of each shell, (box // 2 + 1,)."""
    n_shells, power = accumulator.box // 2 + 1, accumulator.grid[2]
    sums = torch.zeros(2, n_shells)
    for z, plane in enumerate(power):
        shells = _plane_shells(accumulator, z).flatten()
        sums += shell_sums(torch.stack([plane.flatten(), torch.ones(plane.numel())]), shells, n_shells)
    return sums[0] / sums[1]
