"""From particles on disk to the working arrays: contrast sign, normalisation, Fourier cropping, whitening.

The working array of an image is the half-plane of its Fourier transform inside a band, divided by the noise's standard
deviation shell by shell; the CTF is divided by the same, so that image = transfer x slice x shift + unit noise. Everything
after this module is linear in it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ace_em.data.particles import Particles
from ace_em.data.scratch import ScratchFile, ScratchSet
from ace_em.data.working_set import TransferOptics, WorkingSet
from ace_em.maths.fourier import HalfPlane, fourier_resize, radius_grid, shell_sums
from ace_em.physics.ctf import ctf
from ace_em.physics.noise import background_mask, background_mean_sd, noise_power

BLOCK = 500
SURVEY = 1000
SURVEY_PIXELS = 2**22


@dataclass(frozen=True)
class Survey:
    """What a look at some of the images tells before the run.

    Attributes
    ----------
    sign : +1 when the protein is white on disk, -1 when it is black.
    contrast_z : how sure that is, in standard deviations of the mean.
    diameter_angstrom : of the particle, roughly (see ``_diameter_px``).
    noise_power : (box // 2 + 1,) noise power per shell of normalised images.
    power : mean power of the images' coefficients in their strongest shell.
    snr : signal over noise power of the normalised images, whole box.
    common_sd : what all images are divided by where there is more signal than noise (the background is then the CTF's
        ringing, which differs from image to image for no fault of the exposure); None: each by its own background's deviation.
    """

    sign: float
    contrast_z: float
    diameter_angstrom: float
    noise_power: Tensor
    power: float
    snr: float
    common_sd: float | None

    @property
    def whitening_power(self) -> Tensor:
        """Noise power with a floor of a twentieth of the strongest shell's power.

        What stands outside of the particle in noise-free images is the CTF's ringing: without the floor, whitening would
        divide by that.
        """
        return self.noise_power.clamp(min=0.05 * self.power)


def normalise(images: Tensor, sign: float, common_sd: float | None = None) -> Tensor:
    """Images (b, n, n) with background (outside the inscribed circle) of mean 0 and deviation 1, times ``sign``.

    With a ``common_sd`` every image is divided by that instead of its own background's deviation.
    """
    mean, sd = background_mean_sd(images, background_mask(images.shape[-1], images.shape[-1] / 2))
    scale = sd[:, None, None] if common_sd is None else common_sd
    return (images - mean[:, None, None]) / scale * sign


def soft_disc(box: int, radius_px: float, edge_px: float) -> Tensor:
    """(box, box) 1 inside ``radius_px``, falling to 0 over ``edge_px`` as half a cosine."""
    outside = ((radius_grid(box, 2) - radius_px) / edge_px).clamp(0, 1)
    return 0.5 + 0.5 * torch.cos(torch.pi * outside)


def particle_disc(box: int) -> Tensor:
    """The soft disc that images are multiplied by: the inscribed circle."""
    edge = max(2.0, box / 20)
    return soft_disc(box, box / 2 - edge, edge)


def disc_share(box: int) -> float:
    """Share of white noise's power that the disc leaves: so many of the coefficients are independent afterwards."""
    return particle_disc(box).square().mean().item()


def survey(particles: Particles, sign: float | None = None, seed: int = 0) -> Survey:
    """Look at up to a thousand images: contrast, noise, size and SNR.

    Parameters
    ----------
    particles : the set.
    sign : +1 or -1 when the user knows the contrast; otherwise it is measured.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(particles))[:SURVEY])
    common_sd = _common_sd(particles, chosen)
    parts = [_looked_at(normalise(images, 1.0, common_sd)) for images in _survey_blocks(particles, chosen)]
    weights = torch.tensor([len(part.rings) for part in parts]) / len(chosen)
    noise, power, square = (
        sum(w * getattr(part, name) for w, part in zip(weights, parts, strict=True)) for name in ("noise", "power", "square")
    )
    measured, z = _contrast(torch.cat([part.rings for part in parts]))
    sign = measured if sign is None else sign
    small = torch.cat([part.small for part in parts])
    diameter = _diameter_px(small) * particles.box / small.shape[-1] * particles.pixel_size_angstrom
    return Survey(sign, z, diameter, noise, power[1:].max().item(), max(square.item() - 1, 0.0), common_sd)


def _survey_blocks(particles: Particles, chosen: np.ndarray) -> Iterator[Tensor]:
    """Images as on disk, some at a time: a thousand large ones would take gigabytes."""
    for rows in np.array_split(chosen, max(1, round(len(chosen) * particles.box**2 / SURVEY_PIXELS))):
        yield torch.from_numpy(particles.images(rows))


def _common_sd(particles: Particles, chosen: np.ndarray) -> float | None:
    """The background's median deviation in images of so much signal that it tells no exposure (:class:`Survey`), else None."""
    background = background_mask(particles.box, particles.box / 2)
    found = [(images.var(dim=(1, 2)), background_mean_sd(images, background)[1]) for images in _survey_blocks(particles, chosen)]
    variance, sd = (torch.cat(column) for column in zip(*found, strict=True))
    return sd.median().item() if variance.median() > 2 * sd.square().median() else None


@dataclass(frozen=True)
class _Look:
    """Of some normalised images (b, n, n): means over rings (b, r), noise and power per shell, mean square, small images."""

    rings: Tensor
    noise: Tensor
    power: Tensor
    square: Tensor
    small: Tensor


def _looked_at(images: Tensor) -> _Look:
    box = images.shape[-1]
    half_plane = HalfPlane.within(box)
    noise = noise_power(images, background_mask(box, box / 2), half_plane)
    power = half_plane.from_image(images).abs().square().mean(0)
    in_shells = shell_sums(power, half_plane.shell, box // 2) / shell_sums(torch.ones_like(power), half_plane.shell, box // 2)
    return _Look(_ring_means(images), noise, in_shells, images.square().mean(), fourier_resize(images, min(box, 32), 2))


def _ring_means(images: Tensor) -> Tensor:
    """Means (b, r) of images (b, n, n) over overlapping rings about the centre."""
    n = images.shape[-1]
    radius = radius_grid(n, 2)
    width = max(2.0, n / 16)
    rings = torch.stack([((radius - r).abs() < width) & (radius < 0.45 * n) for r in torch.arange(0, 0.45 * n, width)])
    return images.flatten(1) @ (rings.flatten(1) / rings.sum((1, 2))[:, None]).T.to(images)


def _contrast(means: Tensor) -> tuple[float, float]:
    """Sign of the protein against the background and its z-score, from the ring means (b, r) of normalised images.

    The ring about the centre whose mean stands out most is the protein's. The centre itself will not do: a hollow particle
    has none there, and what the CTF's lack of low frequencies leaves inside a shell is darker than the background.
    """
    ring = means.mean(0).abs().argmax()
    mean, error = means[:, ring].mean().item(), (means[:, ring].std() / len(means) ** 0.5).item()
    return (1.0 if mean >= 0 else -1.0), mean / max(error, 1e-12)


def _diameter_px(images: Tensor) -> float:
    """Particle diameter in pixels, from where the excess variance of normalised images (b, n, n) lies.

    Three times the radius that holds 80 % of it: that is 0.85 to 0.9 of the largest extent of the structures tried (a ball
    would have 1.1), blurred by their shifts. Second moments say the same on simulated images but hang on the last rings,
    which on real ones are noise and neighbours.
    """
    n = images.shape[-1]
    radius = radius_grid(n, 2)
    excess = images.square().mean(0)
    excess = (excess - excess[radius > n / 2].median()).clamp(min=0)
    rings = shell_sums(excess.flatten(), radius.round().long().flatten(), n // 2 + 1)
    enclosed = rings.cumsum(0) / rings.sum().clamp(min=1e-20)
    ring = int((enclosed >= 0.8).nonzero()[0])
    before = enclosed[ring - 1].item() if ring else 0.0
    radius_px = ring - 1 + (0.8 - before) / max(enclosed[ring].item() - before, 1e-6) + 0.5
    return min(3 * radius_px, float(n))


def working_set(
    particles: Particles,
    look: Survey,
    box: int,
    rows: np.ndarray | None = None,
    max_radius: float | None = None,
    on_block: Callable[[int], None] = lambda done: None,
    keep_optics: bool = False,
) -> WorkingSet:
    """Read, normalise, mask, crop and whiten the images of ``rows`` (all by default) at a working box.

    Coefficients keep the scale of the full box (sum over its pixels), so that a volume's transform means the same at every
    working box.
    """
    rows = np.arange(len(particles)) if rows is None else rows
    whitener = Whitener.of(particles, look, HalfPlane.within(box, max_radius))
    image_ft = torch.empty(len(rows), len(whitener.half_plane), dtype=torch.complex64)
    transfer = torch.empty(len(rows), len(whitener.half_plane))
    for block, image_ft[block], transfer[block] in whitener.blocks(rows):
        on_block(block.stop)
    optics = whitener.optics(rows) if keep_optics else None
    return WorkingSet(whitener.half_plane, image_ft, transfer, whitener.noise_variance, optics)


def scratch_set(
    particles: Particles,
    look: Survey,
    box: int,
    folder: Path,
    on_block: Callable[[int], None] = lambda done: None,
    keep_optics: bool = False,
) -> ScratchSet:
    """All images as by :func:`working_set`, in a scratch file of ``folder``.

    Raises
    ------
    InputError
        when the folder has no room for it.
    """
    whitener, rows = Whitener.of(particles, look, HalfPlane.within(box)), np.arange(len(particles))
    file = ScratchFile(folder, len(particles), len(whitener.half_plane))
    for block, image_ft, transfer in whitener.blocks(rows):
        file.write(block.start, image_ft, transfer)
        on_block(block.stop)
    optics = whitener.optics(rows) if keep_optics else None
    return ScratchSet(file, whitener.half_plane, whitener.noise_variance, optics)


@dataclass(frozen=True)
class Whitener:
    """Images on disk to whitened coefficients of a half-plane; ``noise_sd`` (n,) is what they are divided by."""

    particles: Particles
    look: Survey
    half_plane: HalfPlane
    noise_sd: Tensor

    @staticmethod
    def of(particles: Particles, look: Survey, half_plane: HalfPlane) -> "Whitener":
        # the disc takes away noise outside of the particle: a share of its power in every shell
        whitening = look.whitening_power[half_plane.shell] * disc_share(particles.box)
        return Whitener(particles, look, half_plane, whitening.sqrt())

    @property
    def pixel_size_angstrom(self) -> float:
        return self.particles.pixel_size_angstrom * self.particles.box / self.half_plane.box

    @property
    def noise_variance(self) -> Tensor:
        """(n,) of the whitened images."""
        return (self.look.noise_power / self.look.whitening_power)[self.half_plane.shell]

    def optics(self, rows: np.ndarray) -> TransferOptics:
        return TransferOptics(self.particles.ctf[torch.from_numpy(rows)], self.pixel_size_angstrom, 1 / self.noise_sd)

    def blocks(self, rows: np.ndarray) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Slices of ``rows``, their coefficients and their transfer, both (b, n)."""
        full = HalfPlane(self.particles.box, self.half_plane.k, self.half_plane.radius)
        disc = particle_disc(self.particles.box)
        for start in range(0, len(rows), BLOCK):
            some = rows[start : start + BLOCK]
            images = normalise(torch.from_numpy(self.particles.images(some)), self.look.sign, self.look.common_sd)
            images *= disc
            transfer = ctf(self.particles.ctf[torch.from_numpy(some)], self.half_plane, self.pixel_size_angstrom)
            yield slice(start, start + len(some)), full.from_image(images) / self.noise_sd, transfer / self.noise_sd
