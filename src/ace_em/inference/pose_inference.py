"""Poses of new particles: the encoder's hypotheses, and local refinement from the likeliest of them."""

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
"""Images that the encoder reads at a time."""
SCORED = 250
"""Images whose candidates are scored at a time: their slices fit in a processor's cache."""


@dataclass(frozen=True)
class Predicted:
    """Poses of N particles, pixels of the working box, and how sure they are.

    Attributes
    ----------
    pose : (N,).
    log_odds_against, residual_z : (N,), see :func:`ace_em.inference.confidence.pose_probability`.
    gap : (N,) log-likelihood of the pose less that of the best distinct other one, natural units.
    spread_deg : (N,) median angle between the pose and the encoder's hypotheses, or their 180-degree alternatives: small when
        they agree.
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
    """The best pose of every image (N,), and how much better it is than the others.

    Parameters
    ----------
    volume_ft : of the map that the encoder was trained on.
    group : (g, 3, 3) point group; copies under it are one pose.
    test : an empty image is as likely a priori as one that shows the particle.
    """
    proposed = proposed_poses(model, stack)
    bands = [band * stack.box / diameter_px for band in config.bands]
    best = _likeliest(volume_ft, stack.band(bands[0]) if bands else stack, proposed, config.hypotheses)
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
    """Median angle (N,) in degrees between poses and the encoder's hypotheses for their images, or their alternatives."""
    return _spread(proposed_poses(model, stack), pose, group, model.config.alternatives)


@torch.no_grad()
def proposed_poses(model: AutoEncoder, stack: ParticleStack) -> Pose:
    """The encoder's candidates (N, K) for all images, on the CPU; the networks run where the model is."""
    model.eval()
    device = next(model.parameters()).device
    parts = [candidates(model, stack.batch(rows, device)).to(CPU) for rows in torch.arange(len(stack)).split(ENCODED)]
    return Pose.cat(parts)


def _likeliest(volume_ft: VolumeFT, stack: ParticleStack, proposed: Pose, n: int) -> Pose:
    """The ``n`` poses per image, of (N, K), whose projections are nearest to it."""
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
    """The best of several poses per image, its residual, the log odds of the others together, and the gap to the best other."""

    pose: Pose
    residual: Tensor
    log_odds_against: Tensor
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


def _spread(proposed: Pose, kept: Pose, group: Tensor, with_alternatives: bool) -> Tensor:
    """Median over the hypotheses, each the nearest of its alternatives, of the angle (N,) to the pose that was kept."""
    n = proposed.rotation.shape[1]
    angle = torch.stack([angle_deg(proposed.rotation[:, k], kept.rotation, group) for k in range(n)], 1)
    return angle.view(len(angle), -1, 4 if with_alternatives else 1).amin(2).quantile(0.5, dim=1)
