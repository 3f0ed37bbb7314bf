"""Image -> pose -> image (eq. 3-8)."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.config import AceConfig
from ace_em.data.preprocess import WorkingSet
from ace_em.maths.rotations import MATES, squared_frobenius
from ace_em.models.decoder import Projector
from ace_em.models.pose_encoder import Hypotheses, PoseEncoder
from ace_em.physics.imaging import shift_phase
from ace_em.tasks.losses import image_loss, image_residual, shift_loss, symmetric_loss


@dataclass(frozen=True)
class ImagePoseImage:
    """Losses (scalars) and the batch's hypotheses."""

    image: Tensor
    shift: Tensor
    mate: Tensor
    hypotheses: Hypotheses


def image_pose_image(
    encoder: PoseEncoder, project: Projector, batch: WorkingSet, band: float, mate: int, power: float, config: AceConfig
) -> ImagePoseImage:
    """L_IPI's parts for one batch.

    Parameters
    ----------
    batch : whitened images on the whole working half-plane; the encoder sees all of it.
    band : the residual counts ``|k| <= band``.
    mate : 1, 2 or 3: the half turn about z, x or y that is scored beside every hypothesis.
    power : mean squared norm of an image, for eq. 5's scale.
    """
    residual, mate_pull, hypotheses = _best_residual(encoder, project, batch, band, mate, config)
    if config.symmetric_loss == "half-turn":
        # a 180-degree turn about the centre is complex conjugation
        turned = dataclasses.replace(batch, image_ft=batch.image_ft.conj())
        residual_turned, pull_turned, _ = _best_residual(encoder, project, turned, band, mate, config)
        image = symmetric_loss(residual, residual_turned, power)
        mate_pull = (mate_pull + pull_turned) / 2
    else:
        image = image_loss(residual, power)
    return ImagePoseImage(image, shift_loss(hypotheses.shift_px / batch.box), mate_pull, hypotheses)


def _best_residual(
    encoder: PoseEncoder, project: Projector, batch: WorkingSet, band: float, mate: int, config: AceConfig
) -> tuple[Tensor, Tensor, Hypotheses]:
    """Residual (b,) of the best hypothesis, and the pull (scalar) towards winning mates."""
    hypotheses = encoder(batch.image_ft)
    inner = batch.band(band)
    transfer = inner.transfer * shift_phase(inner.half_plane, hypotheses.shift_px)
    rotation, is_mate = choose_rotation(project, inner, hypotheses.rotation, transfer, mate if config.mates else 0)
    residual = image_residual(inner.image_ft, project(inner.half_plane, rotation) * transfer)
    nearest = squared_frobenius(rotation.detach()[:, None], hypotheses.rotation).amin(1)
    return residual, (nearest * is_mate).mean() / 9, hypotheses


def choose_rotation(
    project: Projector, batch: WorkingSet, rotations: Tensor, transfer: Tensor, mate: int
) -> tuple[Tensor, Tensor]:
    """The hypothesis (b, 3, 3) of (b, M, 3, 3), or its mate, with the smallest residual, and whether it is a mate (b,).

    Scored without gradients; the choice keeps the gradient of the hypothesis it came from. ``mate`` 0 scores none.
    """
    m = rotations.shape[1]
    if m == 1 and mate == 0:
        return rotations[:, 0], torch.zeros(len(rotations), device=rotations.device)
    turn = MATES[mate].to(rotations)
    with torch.no_grad():
        candidates = rotations if mate == 0 else torch.cat([rotations, rotations @ turn], dim=1)
        predicted = project(batch.half_plane, candidates) * transfer[:, None]
        winner = image_residual(batch.image_ft[:, None], predicted).argmin(1)
    is_mate = winner >= m
    chosen = rotations[torch.arange(len(rotations), device=rotations.device), winner % m]
    return torch.where(is_mate[:, None, None], chosen @ turn, chosen), is_mate.to(rotations.dtype)
