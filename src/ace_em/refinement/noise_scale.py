"""Updates of the noise spectra and of the per-particle intensity scales from the residuals against a map.

The survey measures the noise outside the particle; the residuals measure it over the particle too. The intensity scale of each
particle (ice thickness, dose) is one number with a Gaussian prior about 1. Without the prior, the scale of a faint image would
fit noise.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.data.particle_stack import ParticleStack
from ace_em.maths.fourier import shell_sums
from ace_em.maths.slices import VolumeFT
from ace_em.physics.image_content import ShellPower
from ace_em.physics.imaging import project
from ace_em.physics.noise import NoiseModel
from ace_em.physics.pose import Pose
from ace_em.refinement.posterior import Posterior

BLOCK = 256
SCALE_SD = 0.2
"""Prior standard deviation of the intensity scale."""
LEAST_OF_GROUP = 100
"""Minimum number of images for a group to get its own noise update; smaller groups use the residuals of all images."""


@dataclass(frozen=True)
class Residuals:
    """Residual statistics of images against a map.

    Attributes
    ----------
    rows : (b,) rows of the images in the stack.
    power : (G, n_shells) squared residuals, summed over the coefficients of each shell and the images of each noise group.
    n_images : (G,) number of images in each group.
    overlap, strength : (b,) ``<y, p>`` and ``<p, p>`` of whitened images y and projections p at an intensity scale of 1.
    """

    rows: Tensor
    power: Tensor
    n_images: Tensor
    overlap: Tensor
    strength: Tensor


@torch.no_grad()
def shell_power(volume_ft: VolumeFT, stack: ParticleStack, pose: Pose) -> ShellPower:
    """Power of the images of a stack, and of what is left of them at poses (N,), shell by shell; on the poses' device."""
    device, home = volume_ft.device, pose.rotation.device
    half_plane = stack.half_plane.to(device)
    parts = []
    for some in torch.arange(len(stack)).split(stack.at_a_time(BLOCK)):
        batch = stack.batch(some, device)
        predicted = project(volume_ft, batch.effective_ctf, half_plane, pose[some].to(device))
        parts.append(ShellPower.of(batch.image_ft, predicted, half_plane).to(home))
    return ShellPower.cat(parts)


@torch.no_grad()
def residuals(volume_ft: VolumeFT, stack: ParticleStack, pose: Pose | Posterior, rows: Tensor) -> Residuals:
    """Compare images ``rows`` (b,) with projections of the map at poses ``pose`` (b,), on the device of the map.

    With several poses an image, the statistics are their means, weighted with the probabilities.
    """
    posterior = pose if isinstance(pose, Posterior) else Posterior.certain(pose)
    image, at, weight = posterior.entries(torch.arange(len(rows)))
    weight = weight / posterior.probability.sum(1)[image]
    device, home = volume_ft.device, weight.device
    half_plane, n_shells = stack.half_plane.to(device), stack.box // 2 + 1
    n_groups = len(stack.noise.variance)
    power = torch.zeros(n_groups, n_shells, device=device)
    overlaps, strengths = [], []
    for some in torch.arange(len(image)).split(stack.at_a_time(BLOCK)):
        row, share = rows[image[some]], weight[some].to(device)
        batch, scale = stack.batch(row, device), stack.intensity_scale[row].to(device)
        predicted = project(volume_ft, batch.effective_ctf, half_plane, at[some].to(device))
        left = shell_sums((batch.image_ft - predicted).abs().square(), half_plane.shell, n_shells)
        power.index_add_(0, stack.noise_group[row].to(device), share[:, None] * left)
        overlaps.append(share * (batch.image_ft * predicted.conj()).real.sum(1) / scale)
        strengths.append(share * predicted.abs().square().sum(1) / scale.square())
    n_images = torch.bincount(stack.noise_group[rows], minlength=n_groups)
    none = torch.zeros(len(rows)).to(weight)
    overlap, strength = (none.index_add(0, image, torch.cat(parts).to(home)) for parts in (overlaps, strengths))
    return Residuals(rows, power.to(home), n_images, overlap, strength)


def updated_noise(stack: ParticleStack, parts: list[Residuals]) -> NoiseModel:
    """Noise model, updated from the residuals.

    Shells at the noise floor are left unchanged. The noise power of a shell changes by at most a factor of 2 per update.
    """
    power, n_images = (torch.stack([getattr(part, name) for part in parts]).sum(0) for name in ("power", "n_images"))
    n_shells = power.shape[1]
    in_shell = shell_sums(torch.ones_like(stack.half_plane.radius), stack.half_plane.shell, n_shells).to(power)
    # whitened noise has a variance of 1, so the mean residual power is the correction factor
    of_group = power / (in_shell * n_images[:, None]).clamp(min=1)
    of_all = power.sum(0) / (in_shell * n_images.sum()).clamp(min=1)
    factor = torch.where(n_images[:, None] >= LEAST_OF_GROUP, of_group, of_all).clamp(0.5, 2.0)
    no_data = (in_shell == 0) | (n_images.sum() == 0)
    return stack.noise.scaled(torch.where(stack.noise.floored[:, :n_shells].to(power.device) | no_data, 1.0, factor))


def updated_intensity_scale(stack: ParticleStack, parts: list[Residuals]) -> Tensor:
    """Intensity scales (N,) from least squares of ``y ~ scale * p`` with a Gaussian prior about 1, normalised to a mean of 1.

    Images in none of the ``parts`` keep their scale, up to the common normalisation.
    """
    scale = stack.intensity_scale.clone()
    for part in parts:
        # the real and imaginary parts of whitened noise each have variance 1/2
        prior = 0.5 / SCALE_SD**2
        scale[part.rows] = ((part.overlap + prior) / (part.strength + prior)).clamp(0.3, 3.0)
    return scale / scale[torch.cat([part.rows for part in parts])].mean()
