"""Rigid-body alignment of two maps of the same particle that differ by a small rotation and shift."""

import math

import roma
import torch
from torch import Tensor

from ace_em.maths.fourier import fourier_resize
from ace_em.maths.levenberg_marquardt import damped_step
from ace_em.maths.slices import VolumeFT, sample, volume_to_ft
from ace_em.metrics.alignment import Frame

POINTS = 4000
STEPS = 6
LEAST_BAND = 4


def align_maps(moving: Tensor, reference: Tensor, fsc: Tensor, band: float, copies: Tensor | None = None) -> Frame:
    """The frame for which ``turn_volume(moving, frame)`` is aligned with ``reference``, both (n, n, n).

    Levenberg-Marquardt on the Fourier transforms, sampled at random points of a ball, first at low and then at full resolution.
    It converges for rotations up to about a radian divided by the low-resolution band in shells. The drift between two
    half-maps is far smaller.

    Parameters
    ----------
    fsc : (n // 2 + 1,) FSC between the maps; it sets the weights of the shells.
    band : last shell to use.
    copies : (c, 3, 3) rotations to start from, for maps that are nearly the same after them; the best fit is kept. None: the
        identity alone.
    """
    n, last = moving.shape[-1], max(LEAST_BAND, min(int(band), moving.shape[-1] // 2 - 2))
    box = min(n, 2 * last + 4)
    pair = [volume_to_ft(fourier_resize(volume, box, 3)) for volume in (reference, moving)]
    best, lowest = Frame(torch.eye(3), False, torch.zeros(3)), math.inf
    for copy in torch.eye(3)[None] if copies is None else copies:
        rotvec, origin_px, misfit = torch.zeros(3), torch.zeros(3), math.inf
        for shell in sorted({max(LEAST_BAND, last // 3), last}):
            rotvec, origin_px, misfit = _fit(pair[0], pair[1], fsc, shell, copy, rotvec, origin_px)
        if misfit < lowest:
            best, lowest = Frame(roma.rotvec_to_rotmat(rotvec) @ copy, False, origin_px * (n / box)), misfit
    return best


def _fit(
    reference_ft: VolumeFT, moving_ft: VolumeFT, fsc: Tensor, band: int, copy: Tensor, rotvec: Tensor, origin_px: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Rotation vector and origin, refined from the given ones, after the rotation ``copy``; and the squared residual."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(POINTS, 3, generator=generator), dim=-1)
    radius = band * torch.rand(POINTS, generator=generator) ** (1 / 3)
    k, shell = direction * radius[:, None], radius.round().long()
    target = sample(reference_ft, k, torch.eye(3))
    power = torch.zeros(band + 1).index_add_(0, shell, target.abs().square())
    power = power / torch.bincount(shell, minlength=band + 1).clamp(min=1)
    ssnr = fsc.clamp(0.01, 0.95) / (1 - fsc.clamp(0.01, 0.95))
    weight = (ssnr[: band + 1] / power.clamp(min=1e-30)).sqrt()[shell]

    def residual(change: Tensor) -> Tensor:
        """Residuals (c, 2 POINTS) for changes (c, 6) of rotation vector and origin."""
        turn = roma.rotvec_to_rotmat(change[:, :3]) @ copy
        angle = 2 * math.pi / reference_ft.box * (change[:, 3:] @ k.T)
        values = sample(moving_ft, k, turn.mT) * torch.polar(torch.ones_like(angle), angle)
        return torch.view_as_real(weight * (target - values)).flatten(1)

    # noise in the maps has gradients of its own: central differences over a quarter of a shell average over them
    steps = torch.tensor([0.25 / band] * 3 + [0.25 * reference_ft.box / (2 * math.pi * band)] * 3)
    best, damping = torch.cat([rotvec, origin_px])[None], torch.tensor([1e-3])
    current = residual(best)
    for _ in range(STEPS):
        jacobian = (residual(best + torch.diag(steps)) - residual(best - torch.diag(steps))) / (2 * steps[:, None])
        change = -damped_step((jacobian @ jacobian.T)[None], (jacobian @ current[0])[None], damping, 1e-12)
        trial = residual(best + change)
        improved = bool(trial.square().sum() < current.square().sum())
        best, current = (best + change, trial) if improved else (best, current)
        damping = damping * (0.3 if improved else 10.0)
    return best[0, :3], best[0, 3:], current.square().sum().item()
