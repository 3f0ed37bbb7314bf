"""Pose errors of known poses."""

import math

import pytest
import roma
import torch

from ace_em.metrics.pose_error import pose_error
from ace_em.physics.pose import Pose


def poses(n: int, seed: int) -> Pose:
    generator = torch.Generator().manual_seed(seed)
    return Pose(roma.random_rotmat(n, generator=generator), torch.randn(n, 2, generator=generator))


def test_true_poses_have_no_error() -> None:
    pose = poses(50, 0)
    error = pose_error(pose, pose)
    assert (error.rot_mean, error.rot_median, error.trans, error.within_10deg) == (0, 0, 0, 1)


def test_random_poses_have_mean_6() -> None:
    error = pose_error(poses(20_000, 0), poses(20_000, 1))
    assert error.rot_mean == pytest.approx(6, abs=0.06)
    # the median of 4 - 4 cos(a), a with density (1 - cos a) / pi, is 6.6
    assert error.rot_median == pytest.approx(6.6, abs=0.1)
    # two normal deviates of variance 2 on each of two axes
    assert error.trans == pytest.approx(4, abs=0.15)
    # fraction of SO(3) within 10 degrees: (a - sin a) / pi
    a = math.radians(10)
    assert error.within_10deg == pytest.approx((a - math.sin(a)) / math.pi, abs=5e-4)


def test_known_angles_and_shifts() -> None:
    true = poses(4, 0)
    angle = torch.deg2rad(torch.tensor([0.0, 9.9, 10.1, 180.0]))
    axis = torch.nn.functional.normalize(torch.tensor([1.0, 2, 3]), dim=0)
    moved = Pose(true.rotation @ roma.rotvec_to_rotmat(angle[:, None] * axis), true.shift_px + torch.tensor([3.0, -4.0]))
    error = pose_error(moved, true)
    squares = (8 * torch.sin(angle / 2).square()).tolist()
    assert error.rot_mean == pytest.approx(sum(squares) / 4, rel=1e-4)
    assert squares[1] * 0.999 <= error.rot_median <= squares[2] * 1.001
    assert error.within_10deg == 0.5
    assert error.trans == pytest.approx(25, rel=1e-4)
