"""Image -> pose -> image (eq. 3-10)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.config import AceConfig
from ace_em.data.working_set import WorkingSet
from ace_em.maths.filters import gaussian_kernels, kernel_transfer
from ace_em.maths.image_rotation import half_turn
from ace_em.maths.rotations import MATES, squared_frobenius
from ace_em.models.decoder import Projector
from ace_em.models.encoder import Hypotheses, PoseEncoder
from ace_em.physics.imaging import shift_phase
from ace_em.tasks.losses import image_loss, image_residual, shift_loss
from ace_em.tasks.schedules import StepPlan


@dataclass(frozen=True)
class ImagePoseImage:
    """Losses (scalars), the batch's hypotheses, and which of its images show a particle (b,), 1 or 0."""

    image: Tensor
    shift: Tensor
    mate: Tensor
    hypotheses: Hypotheses
    shown: Tensor

    @property
    def shift_sd_px(self) -> Tensor:
        """Standard deviation, along an axis, of the shifts of the images that show a particle."""
        shift, weight = self.hypotheses.shift_px.detach(), self.shown[:, None]
        n = (2 * weight.sum()).clamp(min=2)
        mean = (weight * shift).sum() / n
        return ((weight * (shift - mean).square()).sum() / (n - 1)).sqrt()


def image_copies(batch: WorkingSet, config: AceConfig, generator: torch.Generator) -> WorkingSet:
    """The batch in the copies that the image loss takes the better of, one whole copy (b rows) after the other.

    Eq. 5 has one, the images. Eq. 6 has the images and their 180-degree turns about the centre, which is complex conjugation;
    the CTF is even and stays. Eq. 7 has two random turns, each mirrored or not, the astigmatism turning with the image.
    """
    if config.symmetric_loss == "none":
        return batch
    if config.symmetric_loss == "half-turn":
        return WorkingSet.cat([batch, batch.with_images(half_turn(batch.image_ft))])
    copies = []
    for _ in range(2):
        angle_deg = 360 * torch.rand(len(batch), device=generator.device, generator=generator)
        mirror = torch.rand(len(batch), device=generator.device, generator=generator) < 0.5
        copies.append(batch.turned(angle_deg, mirror))
    return WorkingSet.cat(copies)


def image_pose_image(
    encoder: PoseEncoder, project: Projector, batch: WorkingSet, plan: StepPlan, power: float, config: AceConfig
) -> ImagePoseImage:
    """L_IPI's parts for one batch.

    Parameters
    ----------
    batch : whitened images on the whole working half-plane, in ``plan.copies`` copies (:func:`image_copies`); the encoder sees
        all of it, never the low-passed label.
    plan : the residual counts ``|k| <= plan.band``; ``plan.mate`` 1, 2 or 3 is the half turn about z, x or y that is scored
        beside every hypothesis; ``plan.label`` the kernel that low-passes the label, or 0.
    power : mean squared norm of an image, for eq. 5's scale.
    """
    hypotheses = encoder(batch.image_ft)
    inner = batch.band(plan.band)
    if plan.label:
        inner = inner.with_images(low_passed(inner, plan.label))
    transfer = inner.transfer * shift_phase(inner.half_plane, hypotheses.shift_px)
    rotation, is_mate = choose_rotation(project, inner, hypotheses.rotation, transfer, plan.mate if config.mates else 0)
    residual = image_residual(inner.image_ft, project(inner.half_plane, rotation) * transfer)
    shown = shows_particle(inner, residual.detach()) if config.blank else torch.ones_like(residual)
    residual = torch.where(shown > 0, residual, blank_residual(inner))
    nearest = squared_frobenius(rotation.detach()[:, None], hypotheses.rotation).amin(1)
    return ImagePoseImage(
        image_loss(residual.view(plan.copies, -1), power),
        shift_loss(shown[:, None] * hypotheses.shift_px / batch.box),
        (shown * nearest * is_mate).mean() / 9,
        hypotheses,
        shown,
    )


def blank_residual(batch: WorkingSet) -> Tensor:
    """Residual (b,) of the blank hypothesis, that an image shows no particle: what is predicted is zero, without a gradient.

    Otherwise an image of noise pulls the volume towards its noise, at the view that fits it best by chance, and the volume
    then draws more such images to that view.
    """
    return image_residual(batch.image_ft, torch.zeros_like(batch.image_ft))


def shows_particle(batch: WorkingSet, residual: Tensor) -> Tensor:
    """1 or 0 (b,): whether the best hypothesis, which leaves ``residual`` (b,), fits an image better than the blank one.

    A volume that fits the batch as a whole no better than nothing, as one without a shape yet, tells no image from noise.
    """
    blank = blank_residual(batch)
    return ((residual < blank) | (residual.mean() >= blank.mean())).to(residual.dtype)


def low_passed(batch: WorkingSet, kernel: int) -> Tensor:
    """``f_filter-k(Y)`` of eq. 9 (b, n): the images through the k-th filter of the bank, ``kernel`` from 1 to 5."""
    kernels = gaussian_kernels()[kernel - 1 : kernel].to(batch.transfer.device)
    return batch.image_ft * kernel_transfer(kernels, batch.half_plane)


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
