"""Pose-image-pose, PIP (eq. 11), with noise (eq. 12) and its loss (eq. 13)."""

import contextlib

import roma
import torch
from torch import Tensor

from ace_em.config import AceConfig
from ace_em.data.particle_stack import Batch
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.masks import particle_disc
from ace_em.models.decoder import Projector
from ace_em.models.encoder import PoseEncoder
from ace_em.physics.imaging import image_of_slice
from ace_em.physics.pose import Pose
from ace_em.tasks.losses import pose_loss


def draw_poses(n: int, shift_sd_px: Tensor | float, generator: torch.Generator) -> Pose:
    """Sample n poses for PIP (eq. 11): uniform rotations and Gaussian shifts."""
    device = generator.device
    rotation = roma.random_rotmat(n, device=device, generator=generator)
    return Pose(rotation, torch.randn(n, 2, device=device, generator=generator) * shift_sd_px)


def background_noise(n: int, half_plane: HalfPlane, variance: Tensor, generator: torch.Generator) -> Tensor:
    """Background noise of whitened images (epsilon of eq. 12): complex Gaussian (n, m) of ``variance`` (m,) or (n, m).

    As in the images, the noise is confined to the particle disc. It is normalised to the given variance per coefficient, so
    inside the disc it is stronger than noise of the same variance over the whole box.
    """
    disc = particle_disc(half_plane.box).to(variance.device)
    white = torch.randn(n, *disc.shape, device=variance.device, generator=generator)
    return half_plane.from_image(white * disc) * (variance / disc.square().sum()).sqrt()


def pose_image_pose(
    encoder: PoseEncoder,
    project: Projector,
    batch: Batch,
    shift_sd_px: Tensor | float,
    generator: torch.Generator,
    config: AceConfig,
) -> dict[str, Tensor]:
    """L_PIP of eq. 13, as ``{"pose": scalar}``.

    Images are simulated at random poses with the CTFs and the noise level of the batch, and the encoder predicts the poses.
    ``config.pip_freeze_decoder`` stops the gradient at the decoder.
    """
    drawn = draw_poses(len(batch), shift_sd_px, generator)
    with torch.no_grad() if config.pip_freeze_decoder else contextlib.nullcontext():
        slices = project(batch.half_plane, drawn.rotation)
        image_ft = image_of_slice(slices, batch.effective_ctf, batch.half_plane, drawn.shift_px)
        image_ft = image_ft + background_noise(len(batch), batch.half_plane, batch.noise_variance, generator)
    predicted = encoder(image_ft)
    shift, shift_predicted = drawn.shift_px / batch.box, predicted.shift_px / batch.box
    return {"pose": pose_loss(drawn.rotation, shift, predicted.rotation, shift_predicted, config.pip_spread)}
