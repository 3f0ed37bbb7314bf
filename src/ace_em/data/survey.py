"""Survey of the images before a run: contrast, noise, particle diameter and signal-to-noise ratio."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ace_em.data.particles import Particles
from ace_em.maths.fourier import fourier_resize, radius_grid, shell_sums
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.masks import disc_share
from ace_em.physics.image_content import of_unusual_power
from ace_em.physics.noise import NoiseModel, background_mask, background_mean_sd, noise_power

SURVEYED = 1000
"""Images in the survey."""
SURVEYED_OF_GROUP = 200
"""Fewest surveyed images per noise group, if it has as many."""
SURVEY_PIXELS = 2**22
"""Pixels in memory at a time."""
LEAST_OF_GROUP = 500
"""Smaller optics groups share one noise spectrum."""
MOST_GROUPS = 20
"""Most optics groups with a noise spectrum of their own."""
SMALL_BOX = 16
"""Box, in pixels, at which the power of images at low frequencies is compared."""
FLOOR = 0.05
"""Whitening floor, as a share of the power in the strongest shell."""


@dataclass(frozen=True)
class Survey:
    """Properties of the data set, estimated from some of the images.

    Attributes
    ----------
    sign : +1 if the protein is white on disk, -1 if black.
    contrast_z : z-score of the sign.
    diameter_angstrom : approximate particle diameter (see ``_diameter_px``).
    noise : noise power of normalised images, for each group of :func:`noise_groups`.
    snr : ratio of signal to noise power of the normalised images, whole box.
    common_sd : divisor of all images if there is more signal than noise. None: each image is divided by the standard deviation
        of its own background. At high SNR the background is CTF ringing, which varies between images of equal exposure.
    """

    sign: float
    contrast_z: float
    diameter_angstrom: float
    noise: NoiseModel
    snr: float
    common_sd: float | None


def noise_groups(particles: Particles) -> Tensor:
    """Noise group (N,) of each particle, from 0.

    Each of the largest optics groups (up to ``MOST_GROUPS``, with at least ``LEAST_OF_GROUP`` particles) is a noise group; all
    others together are one.
    """
    group, count = np.unique(particles.optics_group, return_inverse=True, return_counts=True)[1:]
    large = [int(g) for g in np.argsort(-count, kind="stable")[:MOST_GROUPS] if count[g] >= LEAST_OF_GROUP]
    number = np.full(len(count), len(large))
    number[large] = np.arange(len(large))
    # the last number is for the small groups; unused if there are none
    return torch.from_numpy(number[group.reshape(-1)])


def survey(particles: Particles, sign: float | None = None, seed: int = 0) -> Survey:
    """Measure contrast, noise, diameter and SNR from about a thousand images, without those of unusual power.

    Parameters
    ----------
    sign : +1 or -1 if the contrast is known; None: it is measured.
    """
    group = noise_groups(particles)
    chosen = _chosen_rows(group, seed)
    common_sd, chosen = _of_usual_power(particles, chosen, group[torch.from_numpy(chosen)])
    n_groups = int(group.max()) + 1
    parts = [
        _statistics(normalise(images, 1.0, common_sd), group[torch.from_numpy(rows)], n_groups)
        for rows, images in _survey_blocks(particles, chosen)
    ]
    weights = torch.tensor([len(part.rings) for part in parts]) / len(chosen)
    power, square = (sum(w * getattr(part, name) for w, part in zip(weights, parts, strict=True)) for name in ("power", "square"))
    count = torch.bincount(group[torch.from_numpy(chosen)], minlength=n_groups)[:, None]
    noise = torch.stack([part.noise_sum for part in parts]).sum(0) / count.clamp(min=1)
    measured, z = _contrast(torch.cat([part.rings for part in parts]))
    sign = measured if sign is None else sign
    small = torch.cat([part.small for part in parts])
    diameter = _diameter_px(small) * particles.box / small.shape[-1] * particles.pixel_size_angstrom
    model = NoiseModel.of(noise, FLOOR * power[1:].max().item(), disc_share(particles.box))
    return Survey(sign, z, diameter, model, max(square.item() - 1, 0.0), common_sd)


def pooled(look: Survey, group: Tensor) -> Survey:
    """The survey with one noise spectrum, the mean over the groups weighted by their size; ``group`` (N,)."""
    weight = torch.bincount(group, minlength=len(look.noise.variance)).float()
    return replace(look, noise=look.noise.pooled(weight))


def normalise(images: Tensor, sign: float, common_sd: float | None = None) -> Tensor:
    """Normalise images (b, n, n) to a background (outside the inscribed circle) of mean 0 and deviation 1, times ``sign``.

    With ``common_sd`` every image is divided by that instead of the standard deviation of its own background.
    """
    mean, sd = background_mean_sd(images, background_mask(images.shape[-1], images.shape[-1] / 2))
    scale = sd[:, None, None] if common_sd is None else common_sd
    return (images - mean[:, None, None]) / scale * sign


def _chosen_rows(group: Tensor, seed: int) -> np.ndarray:
    """Random rows, ascending, with at least ``SURVEYED_OF_GROUP`` of each group if it has as many."""
    order = np.random.default_rng(seed).permutation(len(group))
    chosen = [order[:SURVEYED]]
    for number in range(int(group.max()) + 1):
        mine = order[group.numpy()[order] == number]
        chosen.append(mine[:SURVEYED_OF_GROUP])
    return np.unique(np.concatenate(chosen))


def _survey_blocks(particles: Particles, chosen: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Rows and images as on disk, block by block: a thousand large images would take gigabytes."""
    for rows in np.array_split(chosen, max(1, round(len(chosen) * particles.box**2 / SURVEY_PIXELS))):
        yield rows, torch.from_numpy(particles.images(rows))


def _of_usual_power(particles: Particles, chosen: np.ndarray, group: Tensor) -> tuple[float | None, np.ndarray]:
    """``common_sd`` of :class:`Survey`, and the rows whose images have the power that most of them have.

    Carbon edges and ice have ten times a particle's power: a few would make the particle as large as the box, and the noise
    as strong as they are. An edge may show in the background alone.
    """
    background = background_mask(particles.box, particles.box / 2)
    found = []
    for _, images in _survey_blocks(particles, chosen):
        mean, sd = background_mean_sd(images, background)
        outside = (images - mean[:, None, None]) * background
        low = [fourier_resize(x, min(particles.box, SMALL_BOX), 2).var(dim=(1, 2)) for x in (images, outside)]
        found.append((images.var(dim=(1, 2)), sd, *low))
    variance, sd, whole, outside = (torch.cat(column) for column in zip(*found, strict=True))
    common_sd = sd.median().item() if variance.median() > 2 * sd.square().median() else None
    unit = 1.0 if common_sd is not None else sd.square().clamp(min=1e-30)
    usual = torch.ones(len(chosen), dtype=torch.bool)
    # each noise group by itself: another detector has another noise
    for number in group.unique():
        mine = group == number
        usual[mine] = ~(of_unusual_power((whole / unit)[mine]) | of_unusual_power((outside / unit)[mine]))
    return common_sd, chosen[usual.numpy()]


@dataclass(frozen=True)
class _Statistics:
    """Statistics of normalised images (b, n, n).

    Attributes
    ----------
    rings : (b, r) means over rings.
    noise_sum : (G, n_shells) noise power, summed over the images of each group.
    power : (n_shells,) mean power.
    square : mean square.
    small : (b, s, s) the images, Fourier-cropped.
    """

    rings: Tensor
    noise_sum: Tensor
    power: Tensor
    square: Tensor
    small: Tensor


def _statistics(images: Tensor, group: Tensor, n_groups: int) -> _Statistics:
    box = images.shape[-1]
    half_plane, background = HalfPlane.within(box), background_mask(box, box / 2)
    noise_sum = torch.zeros(n_groups, box // 2 + 1)
    for number in group.unique().tolist():
        mine = images[group == number]
        noise_sum[number] = len(mine) * noise_power(mine, background, half_plane)
    power = half_plane.from_image(images).abs().square().mean(0)
    in_shells = shell_sums(power, half_plane.shell, box // 2) / shell_sums(torch.ones_like(power), half_plane.shell, box // 2)
    return _Statistics(_ring_means(images), noise_sum, in_shells, images.square().mean(), fourier_resize(images, min(box, 32), 2))


def _ring_means(images: Tensor) -> Tensor:
    """Means (b, r) of images (b, n, n) over overlapping rings about the centre."""
    n = images.shape[-1]
    radius = radius_grid(n, 2)
    width = max(2.0, n / 16)
    rings = torch.stack([((radius - r).abs() < width) & (radius < 0.45 * n) for r in torch.arange(0, 0.45 * n, width)])
    return images.flatten(1) @ (rings.flatten(1) / rings.sum((1, 2))[:, None]).T.to(images)


def _contrast(means: Tensor) -> tuple[float, float]:
    """Sign of the protein relative to the background and its z-score, from the ring means (b, r) of normalised images.

    The ring with the largest absolute mean decides. The centre alone is not enough: a hollow particle has no protein there, and
    because the CTF suppresses low frequencies the inside of a shell is darker than the background.
    """
    ring = means.mean(0).abs().argmax()
    mean, error = means[:, ring].mean().item(), (means[:, ring].std() / len(means) ** 0.5).item()
    return (1.0 if mean >= 0 else -1.0), mean / max(error, 1e-12)


def _diameter_px(images: Tensor) -> float:
    """Particle diameter in pixels from the radial distribution of the excess variance of normalised images (b, n, n).

    It is three times the radius that encloses 80 % of the variance. For the structures tested this was 0.85 to 0.9 of the largest
    extent (1.1 for a ball), blurred by the shifts. Second moments give the same on simulated images, but depend on the outer
    rings, which in real images contain noise and neighbouring particles.
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
