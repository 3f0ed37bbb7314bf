"""Poses of particles that no map was made from: the encoder's hypotheses, and a local step from the likeliest of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.config import PredictConfig
from ace_em.data.working_set import WorkingSet, image_power
from ace_em.inference.confidence import angle_deg, distinct_residuals, residual_excess
from ace_em.maths.slices import VolumeFT, central_slices
from ace_em.physics.imaging import shift_phase
from ace_em.physics.pose import Pose
from ace_em.refinement.blank import BlankTest
from ace_em.refinement.pose_refinement import LocalResult, refine_poses
from ace_em.tasks.losses import image_residual
from ace_em.training.autoencoder import AutoEncoder
from ace_em.training.loop import candidates

LEAST_SCORED = 250
"""Images whose candidates are scored at a time: their slices fit in a processor's cache."""


@dataclass(frozen=True)
class Predicted:
    """Poses of N particles, pixels of the working box, and how sure they are.

    Attributes
    ----------
    pose : (N,).
    against, excess : (N,), see :func:`ace_em.inference.confidence.pose_probability`.
    gap : (N,) log-likelihood of the pose less that of the best distinct other answer, natural units.
    spread_deg : (N,) median angle between the pose and the encoder's hypotheses, or their mates: small when they all say the
        same.
    """

    pose: Pose
    against: Tensor
    excess: Tensor
    gap: Tensor
    spread_deg: Tensor

    def __len__(self) -> int:
        return len(self.pose)

    @staticmethod
    def cat(parts: list["Predicted"]) -> "Predicted":
        names = ("against", "excess", "gap", "spread_deg")
        return Predicted(Pose.cat([p.pose for p in parts]), *(torch.cat([getattr(p, n) for p in parts]) for n in names))


@torch.no_grad()
def predict_poses(
    model: AutoEncoder,
    volume_ft: VolumeFT,
    images: WorkingSet,
    diameter_px: float,
    group: Tensor,
    config: PredictConfig,
    blank: BlankTest,
) -> Predicted:
    """The best pose of every image (N,), and how much better it is than the others.

    Parameters
    ----------
    volume_ft : of the map that the encoder was taught.
    group : (g, 3, 3) point group; copies under it are one answer.
    blank : the empty image is an answer too, as likely before as one that shows the particle.
    """
    model.eval()
    proposed = candidates(model, images)
    bands = [band * images.box / diameter_px for band in config.bands]
    best = _likeliest(volume_ft, images.band(bands[0]) if bands else images, proposed, config.hypotheses)
    answers = []
    for column in range(best.rotation.shape[1]):
        pose = best.column(column)
        for band in bands:
            pose = refine_poses(volume_ft, images.band(band), pose, 1).pose
        answers.append(refine_poses(volume_ft, images, pose, 1))
    compared = _compared(answers, group, config.distinct_deg, blank.independent)
    empty = -blank.log_odds(image_power(images) - compared.residual)
    against = torch.logaddexp(compared.rivals, empty)
    excess = residual_excess(compared.residual, images.noise_variance, blank.independent)
    return Predicted(compared.pose, against, excess, compared.gap, _spread(proposed, compared.pose, group, model.config.mates))


@torch.no_grad()
def hypothesis_spread(model: AutoEncoder, images: WorkingSet, pose: Pose, group: Tensor) -> Tensor:
    """Median angle (N,) in degrees between poses and the encoder's hypotheses for their images, or their mates."""
    model.eval()
    return _spread(candidates(model, images), pose, group, model.config.mates)


def _likeliest(volume_ft: VolumeFT, images: WorkingSet, proposed: Pose, n: int) -> Pose:
    """The ``n`` poses per image, of (N, K), whose projections are nearest to it."""
    residuals = []
    for start in range(0, len(images), LEAST_SCORED):
        rows = slice(start, start + LEAST_SCORED)
        batch = images.rows(rows)
        transfer = batch.transfer[:, None] * shift_phase(batch.half_plane, proposed.shift_px[rows])
        predicted = central_slices(volume_ft, batch.half_plane, proposed.rotation[rows]) * transfer
        residuals.append(image_residual(batch.image_ft[:, None], predicted))
    order = torch.cat(residuals).argsort(1)[:, :n]
    rows_of = torch.arange(len(order))[:, None]
    return Pose(proposed.rotation[rows_of, order], proposed.shift_px[rows_of, order])


@dataclass(frozen=True)
class Compared:
    """The best of several answers per image, what it leaves, and the log of the others' likelihood over its own: summed, best."""

    pose: Pose
    residual: Tensor
    rivals: Tensor
    gap: Tensor


def _compared(answers: list[LocalResult], group: Tensor, distinct_deg: float, independent: float) -> Compared:
    residual = torch.stack([a.residual for a in answers], 1)
    pose = Pose.stack([a.pose for a in answers])
    rows = torch.arange(len(residual))
    chosen = residual.argmin(1)
    kept, left = Pose(pose.rotation[rows, chosen], pose.shift_px[rows, chosen]), residual[rows, chosen]
    # for whitened images the log-likelihood is minus the residual
    others = independent * (left[:, None] - distinct_residuals(kept, answers, group, distinct_deg))
    best = others.amax(1)
    return Compared(kept, left, others.logsumexp(1), torch.where(best.isfinite(), -best, torch.nan))


def _spread(proposed: Pose, kept: Pose, group: Tensor, with_mates: bool) -> Tensor:
    """Median over the hypotheses, each the nearest of its mates, of the angle (N,) to the pose that was kept."""
    n = proposed.rotation.shape[1]
    angle = torch.stack([angle_deg(proposed.rotation[:, k], kept.rotation, group) for k in range(n)], 1)
    return angle.view(len(angle), -1, 4 if with_mates else 1).amin(2).quantile(0.5, dim=1)
