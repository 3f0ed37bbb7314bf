"""Pose -> image -> pose (eq. 11-13)."""

import contextlib

import roma
import torch
from torch import Tensor

from ace_em.config import AceConfig
from ace_em.data.working_set import WorkingSet
from ace_em.models.decoder import Projector
from ace_em.models.pose_encoder import PoseEncoder
from ace_em.physics.imaging import shift_phase
from ace_em.physics.pose import Pose
from ace_em.tasks.losses import pose_loss


def draw_poses(n: int, shift_sd_px: Tensor | float, generator: torch.Generator) -> Pose:
    """Uniform rotations and Gaussian shifts (eq. 11's synthesised poses)."""
    device = generator.device
    rotation = roma.random_rotmat(n, device=device, generator=generator)
    return Pose(rotation, torch.randn(n, 2, device=device, generator=generator) * shift_sd_px)


def background_noise(n: int, variance: Tensor, generator: torch.Generator) -> Tensor:
    """Complex Gaussian noise (n, m) of ``variance`` (m,): the background of whitened images (epsilon of eq. 12)."""
    parts = torch.randn(n, len(variance), 2, device=variance.device, generator=generator)
    return torch.view_as_complex(parts) * (variance / 2).sqrt()


def pose_image_pose(
    encoder: PoseEncoder,
    project: Projector,
    batch: WorkingSet,
    shift_sd_px: Tensor | float,
    generator: torch.Generator,
    config: AceConfig,
) -> Tensor:
    """L_PIP of eq. 13: fresh poses, the batch's own CTFs, background noise; the decoder frozen or not."""
    drawn = draw_poses(len(batch), shift_sd_px, generator)
    with torch.no_grad() if config.pip_freeze_decoder else contextlib.nullcontext():
        clean = project(batch.half_plane, drawn.rotation)
        image_ft = clean * batch.transfer * shift_phase(batch.half_plane, drawn.shift_px)
        image_ft = image_ft + background_noise(len(batch), batch.noise_variance, generator)
    predicted = encoder(image_ft)
    box = batch.box
    return pose_loss(drawn.rotation, drawn.shift_px / box, predicted.rotation, predicted.shift_px / box, config.pip_spread)
