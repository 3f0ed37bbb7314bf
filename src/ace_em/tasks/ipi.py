"""Image-pose-image, IPI (eq. 3): ``f_IPI = D_PI o E_IP`` (eq. 4) and its loss (eq. 5-10)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.config import AceConfig
from ace_em.data.particle_stack import CPU, Batch
from ace_em.maths.filters import gaussian_kernels, kernel_transfer
from ace_em.maths.image_rotation import half_turn
from ace_em.maths.masks import disc_share
from ace_em.maths.rotations import HALF_TURNS, squared_frobenius
from ace_em.models.decoder import Projector
from ace_em.models.encoder import Hypotheses, PoseEncoder
from ace_em.physics.image_content import ContentTest, ShellPower
from ace_em.physics.imaging import image_of_slice
from ace_em.tasks.losses import image_loss, image_residual, shift_loss
from ace_em.tasks.schedules import StepPlan

NOISY = 4.0
"""Images whose power is less than this many times the noise power count as noisy."""


@dataclass(frozen=True)
class ImagePoseImage:
    """Result of IPI for a batch of b images.

    Attributes
    ----------
    losses : scalars by name: ``image`` (eq. 5, eq. 6 or eq. 7), ``shift`` (second term of eq. 8), and ``alternative``, which
        penalises images whose best rotation is a half turn of a hypothesis.
    hypotheses : poses predicted by the encoder.
    shown : (b,) 1 for images that show a particle, 0 for blank images.
    """

    losses: dict[str, Tensor]
    hypotheses: Hypotheses
    shown: Tensor

    @property
    def shift_sd_px(self) -> Tensor:
        """Standard deviation per axis of the predicted shifts of images that show a particle."""
        shift, weight = self.hypotheses.shift_px.detach(), self.shown[:, None]
        n = (2 * weight.sum()).clamp(min=2)
        mean = (weight * shift).sum() / n
        return ((weight * (shift - mean).square()).sum() / (n - 1)).sqrt()


def image_copies(batch: Batch, config: AceConfig, generator: torch.Generator) -> Batch:
    """The copies of a batch among which the image loss takes the minimum, concatenated copy after copy (b rows each).

    Eq. 5 has one copy, the images themselves. Eq. 6 has the images and the images rotated by 180 degrees about the centre,
    which is complex conjugation; the CTF is even and does not change. Eq. 7 has two randomly rotated copies, each mirrored with
    probability 1/2; the astigmatism rotates with the image.
    """
    if config.symmetric_loss == "none":
        return batch
    if config.symmetric_loss == "half-turn":
        return Batch.cat([batch, batch.with_images(half_turn(batch.image_ft))])
    copies = []
    for _ in range(2):
        angle_deg = 360 * torch.rand(len(batch), device=generator.device, generator=generator)
        mirror = torch.rand(len(batch), device=generator.device, generator=generator) < 0.5
        copies.append(batch.turned(angle_deg, mirror))
    return Batch.cat(copies)


def image_pose_image(
    encoder: PoseEncoder, project: Projector, batch: Batch, plan: StepPlan, power: float, config: AceConfig
) -> ImagePoseImage:
    """Terms of L_IPI (eq. 8) for one batch.

    Parameters
    ----------
    batch : whitened images on the full working half-plane, in ``plan.copies`` copies (:func:`image_copies`). The encoder always
        receives these images; only the label of the loss is low-passed.
    plan : the residual is summed over ``|k| <= plan.band``. ``plan.half_turn`` (1, 2 or 3) selects the half turn about z, x or
        y that is tried in addition to each hypothesis. ``plan.label`` is the low-pass kernel of the label, 0 for none.
    power : mean squared norm of an image, which normalises the image loss.
    """
    hypotheses = encoder(batch.image_ft)
    inner = batch.band(plan.band)
    if plan.label:
        inner = inner.with_images(low_passed(inner, plan.label))
    turn = plan.half_turn if config.alternatives else 0
    rotation, is_alternative = choose_rotation(project, inner, hypotheses, turn)
    predicted = image_of_slice(project(inner.half_plane, rotation), inner.effective_ctf, inner.half_plane, hypotheses.shift_px)
    residual = image_residual(inner.image_ft, predicted)
    shown = shows_particle(inner, predicted.detach()) if config.blank else torch.ones_like(residual)
    residual = torch.where(shown > 0, residual, blank_residual(inner))
    nearest = squared_frobenius(rotation.detach()[:, None], hypotheses.rotation).amin(1)
    losses = {
        "image": image_loss(residual.view(plan.copies, -1), power),
        "shift": shift_loss(shown[:, None] * hypotheses.shift_px / batch.box),
        "alternative": (shown * nearest * is_alternative).mean() / 9,
    }
    return ImagePoseImage(losses, hypotheses, shown)


def blank_residual(batch: Batch) -> Tensor:
    """Residual (b,) under the hypothesis that an image shows no particle: the prediction is zero and has no gradient.

    Without it, a pure noise image adds its noise to the volume at the view that fits best by chance, and the volume then
    attracts further noise images to that view.
    """
    return image_residual(batch.image_ft, torch.zeros_like(batch.image_ft))


@torch.no_grad()
def shows_particle(batch: Batch, predicted_ft: Tensor) -> Tensor:
    """1 where an image shows the particle by its best pose, whose prediction is ``predicted_ft`` (b, n), else 0; (b,).

    It does not if a blank prediction fits better or, in noisy images, if it has more residual power than the others of the batch
    (:class:`ContentTest`). While the volume fits the batch on average no better than the blank prediction, as at the start of
    training, all images count as showing a particle.
    """
    shells = ShellPower.of(batch.image_ft, predicted_ft, batch.half_plane)
    shown = shells.gain > 0
    # with little noise, the residuals are those of the poses, which the encoder has yet to learn
    if shells.power.sum() < NOISY * batch.noise_variance.sum():
        # a few numbers an image, in double precision, which not every device has
        content = ContentTest(1, disc_share(batch.box)).content(shells.to(CPU))
        shown = shown & content.shows_particle.to(shown.device)
    return (shown | (shells.gain.mean() <= 0)).to(predicted_ft.real.dtype)


def low_passed(batch: Batch, kernel: int) -> Tensor:
    """``f_filter-k(Y)`` of eq. 9 (b, n): the images low-passed by filter k of the filter bank, ``kernel`` from 1 to 5."""
    kernels = gaussian_kernels()[kernel - 1 : kernel].to(batch.effective_ctf.device)
    return batch.image_ft * kernel_transfer(kernels, batch.half_plane)


def choose_rotation(project: Projector, batch: Batch, hypotheses: Hypotheses, turn: int) -> tuple[Tensor, Tensor]:
    """The rotation (b, 3, 3) with the lowest residual among M hypotheses and their half turns.

    Also returns, as (b,) 0 or 1, whether it is a half turn. The residuals are computed without gradients; the chosen rotation
    keeps the gradient of its hypothesis. With ``turn`` 0 no half turns are tried.
    """
    rotations = hypotheses.rotation
    m = rotations.shape[1]
    if m == 1 and turn == 0:
        return rotations[:, 0], torch.zeros(len(rotations), device=rotations.device)
    half = HALF_TURNS[turn].to(rotations)
    with torch.no_grad():
        candidates = rotations if turn == 0 else torch.cat([rotations, rotations @ half], dim=1)
        slices = project(batch.half_plane, candidates)
        shift_px = hypotheses.shift_px[:, None]
        predicted = image_of_slice(slices, batch.effective_ctf[:, None], batch.half_plane, shift_px)
        best = image_residual(batch.image_ft[:, None], predicted).argmin(1)
    is_turned = best >= m
    chosen = rotations[torch.arange(len(rotations), device=rotations.device), best % m]
    return torch.where(is_turned[:, None, None], chosen @ half, chosen), is_turned.to(rotations.dtype)
