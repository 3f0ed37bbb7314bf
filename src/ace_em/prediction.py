"""Poses of particles that no map was made from: the encoder's hypotheses, and a local step from the likeliest of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.config import PredictConfig
from ace_em.data.working_set import WorkingSet
from ace_em.maths.point_group import nearest_copy
from ace_em.maths.rotations import angular_distance_deg
from ace_em.maths.slices import VolumeFT, central_slices
from ace_em.physics.imaging import shift_phase
from ace_em.physics.pose import Pose
from ace_em.refinement.local import LocalResult, refine_poses
from ace_em.tasks.losses import image_residual
from ace_em.training.loop import candidates
from ace_em.training.step import AutoEncoder

LEAST_SCORED = 250
"""Images whose candidates are scored at a time: their slices fit in a processor's cache."""


DOUBT = 0.01
"""Share of particles that are expected to have their pose among the answers that were not tried."""


@dataclass(frozen=True)
class Usual:
    """The residuals that right poses leave: median and spread of ``Predicted.excess`` over particles that a map was made from."""

    median: float
    spread: float

    @staticmethod
    def of(excess: Tensor) -> "Usual":
        """Median, and the standard deviation that the median absolute deviation of Gaussian numbers stands for."""
        median = excess.median()
        return Usual(median.item(), max(1.4826 * (excess - median).abs().median().item(), 1e-3))


@dataclass(frozen=True)
class Predicted:
    """Poses of N particles, pixels of the working box, and how sure they are.

    Attributes
    ----------
    pose : (N,).
    rivals : (N,) sum over the distinct other answers that were tried of their likelihood, in units of the pose's.
    excess : (N,) residual above what noise leaves, in standard deviations of that.
    gap : (N,) log-likelihood of the pose less that of the best distinct other answer, natural units.
    spread_deg : (N,) median angle between the pose and the encoder's hypotheses, or their mates: small when they all say the
        same.
    """

    pose: Pose
    rivals: Tensor
    excess: Tensor
    gap: Tensor
    spread_deg: Tensor

    def probability(self, usual: Usual) -> Tensor:
        """Of each pose (N,): against the other answers that were tried, and against all that were not.

        Right poses leave the residual that is ``usual``. A pose that leaves more may be the best of those tried and wrong:
        some ``DOUBT`` of a better answer elsewhere grows with the likelihood that such an answer would have.
        """
        z = ((self.excess - usual.median) / usual.spread).clamp(0, 12)
        return 1 / (1 + self.rivals + DOUBT * (z.square() / 2).exp())

    def __len__(self) -> int:
        return len(self.pose)

    @staticmethod
    def cat(parts: list["Predicted"]) -> "Predicted":
        names = ("rivals", "excess", "gap", "spread_deg")
        return Predicted(Pose.cat([p.pose for p in parts]), *(torch.cat([getattr(p, n) for p in parts]) for n in names))


@torch.no_grad()
def predict_poses(
    model: AutoEncoder,
    volume_ft: VolumeFT,
    images: WorkingSet,
    diameter_px: float,
    group: Tensor,
    config: PredictConfig,
    known: Pose | None = None,
    independent: float = 1.0,
) -> Predicted:
    """The best pose of every image (N,), and how much better it is than the others.

    Parameters
    ----------
    volume_ft : of the map that the encoder was taught.
    group : (g, 3, 3) point group; copies under it are one answer.
    known : (N,) poses that are kept, and only compared with the encoder's.
    independent : share of the coefficients that are independent of each other. A disc that takes away noise outside of the
        particle makes neighbours alike; a log-likelihood counts them all, and is that share of what they say.
    """
    model.eval()
    proposed = candidates(model, images)
    bands = [band * images.box / diameter_px for band in config.bands]
    best = _likeliest(volume_ft, images.band(bands[0]) if bands else images, proposed, config.hypotheses)
    answers = [] if known is None else [refine_poses(volume_ft, images, known, 1)]
    for column in range(best.rotation.shape[1]):
        pose = best.column(column)
        for band in bands:
            pose = refine_poses(volume_ft, images.band(band), pose, 1).pose
        answers.append(refine_poses(volume_ft, images, pose, 1))
    expected = images.noise_variance.sum(), (images.noise_variance.square().sum() / independent).sqrt()
    compared = _compared(answers, group, config, known is not None, independent)
    found = compared.pose, compared.rivals, (compared.excess - expected[0]) / expected[1], compared.gap
    return Predicted(*found, _spread(proposed, compared.pose, group, model.config.mates))


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


def _compared(
    answers: list[LocalResult], group: Tensor, config: PredictConfig, keep_first: bool, independent: float = 1.0
) -> Predicted:
    """The best of several answers per image, or the first, and the others beside it; ``excess`` is the residual yet."""
    residual = torch.stack([a.residual for a in answers], 1)
    pose = Pose.stack([a.pose for a in answers])
    rows = torch.arange(len(residual))
    chosen = torch.zeros_like(rows) if keep_first else residual.argmin(1)
    kept, left = Pose(pose.rotation[rows, chosen], pose.shift_px[rows, chosen]), residual[rows, chosen]
    # for whitened images the log-likelihood is minus the residual
    likelihood = independent * (left[:, None] - residual)
    # several ways to one answer count once: an answer near to a likelier one that counts is left out
    counted, rivals = [(kept.rotation, torch.ones(len(rows), dtype=torch.bool))], []
    for k in likelihood.argsort(1, descending=True).T:
        rotation = pose.rotation[rows, k]
        near = [(_angle(rotation, other, group) <= config.distinct_deg) & counts for other, counts in counted]
        distinct = ~torch.stack(near).any(0)
        rivals.append(torch.where(distinct, likelihood[rows, k], -torch.inf))
        counted.append((rotation, distinct))
    others = torch.stack(rivals, 1)
    best = others.amax(1)
    gap = torch.where(best.isfinite(), -best, torch.nan)
    return Predicted(kept, others.clamp(max=80).exp().sum(1), left, gap, torch.empty(0))


def _spread(proposed: Pose, kept: Pose, group: Tensor, with_mates: bool) -> Tensor:
    """Median over the hypotheses, each the nearest of its mates, of the angle (N,) to the pose that was kept."""
    n = proposed.rotation.shape[1]
    angle = torch.stack([_angle(proposed.rotation[:, k], kept.rotation, group) for k in range(n)], 1)
    return angle.view(len(angle), -1, 4 if with_mates else 1).amin(2).quantile(0.5, dim=1)


def _angle(rotation: Tensor, to: Tensor, group: Tensor) -> Tensor:
    """Degrees (N,) between rotations up to the point group."""
    return angular_distance_deg(nearest_copy(rotation, to, group), to)
