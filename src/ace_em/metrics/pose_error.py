"""Pose errors as in the paper: squared Frobenius norm for rotations, squared norm for shifts."""

import math
from dataclasses import dataclass

from ace_em.maths.rotations import squared_frobenius
from ace_em.physics.pose import Pose


@dataclass(frozen=True)
class PoseError:
    """Pose errors of a set of particles.

    Attributes
    ----------
    rot_mean, rot_median : mean and median of ``||R - R_true||_F^2``.
    trans : mean squared shift error in pixels^2.
    within_10deg : fraction of rotations within 10 degrees of the truth.
    """

    rot_mean: float
    rot_median: float
    trans: float
    within_10deg: float


def pose_error(aligned: Pose, truth: Pose) -> PoseError:
    """Errors of poses that have been aligned to the true frame."""
    error = squared_frobenius(aligned.rotation, truth.rotation)
    ten_degrees = 8 * math.sin(math.radians(10) / 2) ** 2
    return PoseError(
        rot_mean=error.mean().item(),
        rot_median=error.median().item(),
        trans=(aligned.shift_px - truth.shift_px).square().sum(-1).mean().item(),
        within_10deg=(error < ten_degrees).float().mean().item(),
    )
