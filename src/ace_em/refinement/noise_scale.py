"""What the images say about their own noise and intensity once a map and poses are there.

The survey measures the noise outside of the particle; the residuals measure it where the particle is. Every particle's intensity
scale (ice, dose) is one number with a prior about 1: a free one would follow the noise of a faint image.
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

BLOCK = 256
SCALE_SD = 0.2
"""Prior spread of the particles' intensity scale."""
LEAST_OF_GROUP = 100
"""Images of a group whose residuals are worth a noise spectrum of its own; of fewer, all images' residuals stand in."""


@dataclass(frozen=True)
class Residuals:
    """Of some images against a map.

    Attributes
    ----------
    rows : (b,) their rows in the stack.
    power : (G, n_shells) squared residuals, summed over the coefficients of each shell and the images of each noise group.
    n_images : (G,) images of each group.
    overlap, strength : (b,) ``<y, p>`` and ``<p, p>`` of whitened images y and projections p with an intensity scale of 1.
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
def residuals(volume_ft: VolumeFT, stack: ParticleStack, pose: Pose, rows: Tensor) -> Residuals:
    """Compare images ``rows`` (b,) of a stack with the map's projections at their poses ``pose`` (b,), on the map's device."""
    device, home = volume_ft.device, pose.rotation.device
    half_plane, n_shells = stack.half_plane.to(device), stack.box // 2 + 1
    n_groups = len(stack.noise.variance)
    power = torch.zeros(n_groups, n_shells, device=device)
    overlaps, strengths = [], []
    for some in torch.arange(len(rows)).split(stack.at_a_time(BLOCK)):
        batch, scale = stack.batch(rows[some], device), stack.intensity_scale[rows[some]].to(device)
        predicted = project(volume_ft, batch.effective_ctf, half_plane, pose[some].to(device))
        left = shell_sums((batch.image_ft - predicted).abs().square(), half_plane.shell, n_shells)
        power.index_add_(0, stack.noise_group[rows[some]].to(device), left)
        overlaps.append((batch.image_ft * predicted.conj()).real.sum(1) / scale)
        strengths.append(predicted.abs().square().sum(1) / scale.square())
    n_images = torch.bincount(stack.noise_group[rows], minlength=n_groups)
    return Residuals(rows, power.to(home), n_images, torch.cat(overlaps).to(home), torch.cat(strengths).to(home))


def updated_noise(stack: ParticleStack, parts: list[Residuals]) -> NoiseModel:
    """The noise model that the residuals of some images give.

    Shells whitened by the floor keep it. A shell's noise changes by a factor of 2 at most at a time.
    """
    power, n_images = (torch.stack([getattr(part, name) for part in parts]).sum(0) for name in ("power", "n_images"))
    n_shells = power.shape[1]
    in_shell = shell_sums(torch.ones_like(stack.half_plane.radius), stack.half_plane.shell, n_shells).to(power)
    # whitened noise has a variance of 1
    mine = power / (in_shell * n_images[:, None]).clamp(min=1)
    shared = power.sum(0) / (in_shell * n_images.sum()).clamp(min=1)
    factor = torch.where(n_images[:, None] >= LEAST_OF_GROUP, mine, shared).clamp(0.5, 2.0)
    unseen = (in_shell == 0) | (n_images.sum() == 0)
    return stack.noise.scaled(torch.where(stack.noise.floored[:, :n_shells].to(power.device) | unseen, 1.0, factor))


def updated_intensity_scale(stack: ParticleStack, parts: list[Residuals]) -> Tensor:
    """Intensity scales (N,): least squares of ``y ~ scale * p`` with a Gaussian prior about 1, and 1 on average.

    Images that are in none of the parts keep theirs beside the others.
    """
    scale = stack.intensity_scale.clone()
    for part in parts:
        # <y, p> holds real and imaginary parts, each with noise of variance 1/2
        prior = 0.5 / SCALE_SD**2
        scale[part.rows] = ((part.overlap + prior) / (part.strength + prior)).clamp(0.3, 3.0)
    return scale / scale[torch.cat([part.rows for part in parts])].mean()
