"""Poses of new particles: hypotheses of the encoder, and local refinement of the most likely ones."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ace_em.config import PredictConfig
from ace_em.data.particle_stack import CPU, ParticleStack
from ace_em.inference.confidence import angle_deg, distinct_residuals, residual_z
from ace_em.maths.slices import VolumeFT, central_slices
from ace_em.physics.image_content import ContentTest
from ace_em.physics.pose import Pose
from ace_em.refinement.pose_refinement import LocalResult, refine_poses
from ace_em.training.autoencoder import AutoEncoder
from ace_em.training.infer import candidate_residuals, candidates

ENCODED = 2000
"""Images per encoder batch."""
SCORED = 250
"""Images scored at a time; their slices fit into the processor cache."""


@dataclass(frozen=True)
class Predicted:
    """Poses of N particles and their confidence.

    Attributes
    ----------
    pose : (N,) shifts in pixels of the working box.
    log_odds_against, residual_z : (N,), see :func:`ace_em.inference.confidence.pose_probability`.
    gap : (N,) log-likelihood of the pose minus that of the best distinct other pose, in nats.
    spread_deg : (N,) median angle between the pose and the encoder's hypotheses (the closest of their 180-degree
        alternatives).
    """

    pose: Pose
    log_odds_against: Tensor
    residual_z: Tensor
    gap: Tensor
    spread_deg: Tensor

    def __len__(self) -> int:
        return len(self.pose)

    @staticmethod
    def cat(parts: list["Predicted"]) -> "Predicted":
        names = ("log_odds_against", "residual_z", "gap", "spread_deg")
        return Predicted(Pose.cat([p.pose for p in parts]), *(torch.cat([getattr(p, n) for p in parts]) for n in names))


@torch.no_grad()
def predict_poses(
    model: AutoEncoder,
    volume_ft: VolumeFT,
    stack: ParticleStack,
    diameter_px: float,
    group: Tensor,
    config: PredictConfig,
    test: ContentTest,
) -> Predicted:
    """The best pose of every image (N,) and the evidence for it.

    Parameters
    ----------
    volume_ft : transform of the map that the encoder was trained on.
    group : (g, 3, 3) point group; symmetric copies count as one pose.
    test : test against an empty image, which is a priori as probable as an image of the particle.
    """
    proposed = proposed_poses(model, stack)
    bands = [band * stack.box / diameter_px for band in config.bands]
    best = _most_likely(volume_ft, stack.band(bands[0]) if bands else stack, proposed, config.hypotheses)
    answers = []
    for column in range(best.rotation.shape[1]):
        pose = best.column(column)
        for band in bands:
            pose = refine_poses(volume_ft, stack.band(band), pose, 1).pose
        answers.append(refine_poses(volume_ft, stack, pose, 1))
    compared = _compared(answers, group, config.distinct_deg, test.independent)
    empty = -test.log_odds(stack.power() - compared.residual)
    against = torch.logaddexp(compared.log_odds_against, empty)
    z = residual_z(compared.residual, stack, test.independent)
    spread = _spread(proposed, compared.pose, group, model.config.alternatives)
    return Predicted(compared.pose, against, z, compared.gap, spread)


@torch.no_grad()
def hypothesis_spread(model: AutoEncoder, stack: ParticleStack, pose: Pose, group: Tensor) -> Tensor:
    """Median angle (N,) in degrees between poses and the encoder's hypotheses or their 180-degree alternatives."""
    return _spread(proposed_poses(model, stack), pose, group, model.config.alternatives)


@torch.no_grad()
def proposed_poses(model: AutoEncoder, stack: ParticleStack) -> Pose:
    """Candidate poses (N, K) of the encoder for all images, on the CPU; the encoder runs on the device of the model."""
    model.eval()
    device = next(model.parameters()).device
    parts = [candidates(model, stack.batch(rows, device)).to(CPU) for rows in torch.arange(len(stack)).split(ENCODED)]
    return Pose.cat(parts)


def _most_likely(volume_ft: VolumeFT, stack: ParticleStack, proposed: Pose, n: int) -> Pose:
    """Of the candidates (N, K), the ``n`` poses per image with the smallest residuals."""
    residuals = []
    for rows in torch.arange(len(stack)).split(SCORED):
        batch = stack.batch(rows, volume_ft.device)
        slices = partial(central_slices, volume_ft)
        residuals.append(candidate_residuals(slices, batch, proposed[rows].to(volume_ft.device)).to(CPU))
    order = torch.cat(residuals).argsort(1)[:, :n]
    rows_of = torch.arange(len(order))[:, None]
    return Pose(proposed.rotation[rows_of, order], proposed.shift_px[rows_of, order])


@dataclass(frozen=True)
class Compared:
    """The best of several poses per image, its residual, the log odds of all others together, and the gap to the best other."""

    pose: Pose
    residual: Tensor
    log_odds_against: Tensor
    gap: Tensor


def _compared(answers: list[LocalResult], group: Tensor, distinct_deg: float, independent: float) -> Compared:
    residual = torch.stack([a.residual for a in answers], 1)
    pose = Pose.stack([a.pose for a in answers])
    rows = torch.arange(len(residual))
    chosen = residual.argmin(1)
    kept, least = Pose(pose.rotation[rows, chosen], pose.shift_px[rows, chosen]), residual[rows, chosen]
    # the log-likelihood of a whitened image is minus its residual
    others = independent * (least[:, None] - distinct_residuals(kept, answers, group, distinct_deg))
    best = others.amax(1)
    return Compared(kept, least, others.logsumexp(1), torch.where(best.isfinite(), -best, torch.nan))


def _spread(proposed: Pose, kept: Pose, group: Tensor, with_alternatives: bool) -> Tensor:
    """Angle (N,) to the kept pose, median over the hypotheses; the closest alternative of each hypothesis counts."""
    n = proposed.rotation.shape[1]
    angle = torch.stack([angle_deg(proposed.rotation[:, k], kept.rotation, group) for k in range(n)], 1)
    return angle.view(len(angle), -1, 4 if with_alternatives else 1).amin(2).quantile(0.5, dim=1)
