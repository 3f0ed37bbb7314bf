"""What the images say about their own noise and brightness once a map and poses are there.

The survey measures the noise outside of the particle; the residuals measure it where the particle is. Every particle's
brightness (ice, dose) is one number with a prior about 1, as a free one would follow the noise of a faint image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.data.working_set import Images, WorkingSet, at_a_time
from ace_em.maths.fourier import shell_sums
from ace_em.maths.slices import VolumeFT
from ace_em.physics.imaging import clean_image_ft
from ace_em.physics.pose import Pose

BLOCK = 256
SCALE_SD = 0.2
"""Prior spread of the particles' brightness."""


@dataclass(frozen=True)
class Calibration:
    """``noise`` (box // 2 + 1,): noise power per shell, in units of the survey's; ``scale`` (N,): brightness, mean 1."""

    noise: Tensor
    scale: Tensor

    @staticmethod
    def none(box: int, n: int) -> "Calibration":
        return Calibration(torch.ones(box // 2 + 1), torch.ones(n))

    def at_box(self, box: int) -> "Calibration":
        """For another working box; shells that were not seen yet keep the survey's noise."""
        noise = torch.ones(box // 2 + 1)
        seen = min(len(noise), len(self.noise))
        noise[:seen] = self.noise[:seen]
        return Calibration(noise, self.scale)

    def apply_(self, images: Images) -> None:
        """Whiten and scale images by this, in place; their noise stays of unit variance."""
        images.whiten_(self.noise.sqrt()[images.half_plane.shell], self.scale)


@dataclass(frozen=True)
class Residuals:
    """Of some images against a map: ``power`` and ``count`` per shell, ``overlap`` <y, p> and ``strength`` <p, p> (N,)."""

    power: Tensor
    count: Tensor
    overlap: Tensor
    strength: Tensor


@torch.no_grad()
def residuals(volume_ft: VolumeFT, images: WorkingSet, pose: Pose) -> Residuals:
    """Compare images (N, n) with the map's projections at ``pose`` (N,), on the map's device."""
    device, home = volume_ft.device, pose.rotation.device
    half_plane = images.half_plane.to(device)
    n_shells = images.box // 2 + 1
    power = torch.zeros(n_shells, device=device)
    overlaps, strengths = [], []
    block = at_a_time(images, BLOCK)
    for start in range(0, len(images), block):
        rows = slice(start, start + block)
        batch = images.rows(rows).to(device)
        predicted = clean_image_ft(volume_ft, batch.transfer, half_plane, pose[rows].to(device))
        left = (batch.image_ft - predicted).abs().square().sum(0)
        power += shell_sums(left, half_plane.shell, n_shells)
        overlaps.append((batch.image_ft * predicted.conj()).real.sum(1))
        strengths.append(predicted.abs().square().sum(1))
    count = shell_sums(torch.ones_like(half_plane.radius), half_plane.shell, n_shells) * len(images)
    return Residuals(power.to(home), count.to(home), torch.cat(overlaps).to(home), torch.cat(strengths).to(home))


def recalibrated_(images: Images, before: Calibration, parts: list[tuple[Tensor, Residuals]]) -> tuple[Calibration, Calibration]:
    """Bring a working set up to date in place; its calibration, and the step to it from the one before.

    Parameters
    ----------
    images : as calibrated by ``before``.
    parts : rows of ``images`` that show a particle, and their residuals. The others keep their brightness beside these.

    Notes
    -----
    Shells in which the whitening's floor stands above the noise keep it. A shell's noise changes by a factor of 2 at most
    in one step.
    """
    power, count = (torch.stack([getattr(r, name) for _, r in parts]).sum(0) for name in ("power", "count"))
    factor = (power / count.clamp(min=1)).clamp(0.5, 2.0)
    variance = shell_sums(images.noise_variance, images.half_plane.shell, len(factor))
    in_plane = shell_sums(torch.ones_like(images.noise_variance), images.half_plane.shell, len(factor))
    floored = variance < 0.99 * in_plane
    factor = torch.where(floored | (count == 0), 1.0, factor)
    scale = before.scale.clone()
    for rows, r in parts:
        old = before.scale[rows]
        # least squares of y ~ scale * p with a Gaussian prior about 1; <y, p> holds both parts, noise has variance 1/2 in each
        prior = 0.5 / SCALE_SD**2
        scale[rows] = ((r.overlap / old + prior) / (r.strength / old.square() + prior)).clamp(0.3, 3.0)
    scale = scale / scale[torch.cat([rows for rows, _ in parts])].mean()
    step = Calibration(factor, scale / before.scale)
    step.apply_(images)
    return Calibration(before.noise * factor, scale), step
