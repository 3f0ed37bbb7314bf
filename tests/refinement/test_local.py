"""Gauss-Newton steps: back to the truth from near, nowhere from the truth, and never uphill."""

from typing import Any

import pytest
import roma
import torch

from ace_em.maths.rotations import angular_distance_deg
from ace_em.physics.imaging import clean_image_ft
from ace_em.physics.pose import Pose
from ace_em.refinement import local
from ace_em.refinement.local import LocalResult, better, refine_poses


def perturbed(pose: Pose, degrees: float, px: float, seed: int = 4) -> Pose:
    """Every pose wrong by just that, in a random direction."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.nn.functional.normalize(torch.randn(len(pose), 3, generator=generator), dim=-1)
    direction = torch.nn.functional.normalize(torch.randn(len(pose), 2, generator=generator), dim=-1)
    return Pose(
        pose.rotation @ roma.rotvec_to_rotmat(axis * torch.deg2rad(torch.tensor(degrees))), pose.shift_px + px * direction
    )


def residual(p: Any, images: Any, pose: Pose) -> torch.Tensor:
    return (images.image_ft - clean_image_ft(p.volume_ft, images.transfer, images.half_plane, pose)).abs().square().sum(-1)


def test_recovers_perturbed_poses(particle: Any) -> None:
    p = particle(60)
    start = perturbed(p.pose, 3.0, 0.3)
    found = refine_poses(p.volume_ft, p.images, start, 8)
    error = angular_distance_deg(found.pose.rotation, p.pose.rotation)
    assert angular_distance_deg(start.rotation, p.pose.rotation).min() > 2.9
    assert error.max() < 0.005
    assert (found.pose.shift_px - p.pose.shift_px).norm(dim=-1).max() < 0.01
    torch.testing.assert_close(torch.linalg.det(found.pose.rotation), torch.ones(60))


def test_converges_within_its_usual_three_steps(particle: Any) -> None:
    p = particle(60)
    errors = [
        angular_distance_deg(
            refine_poses(p.volume_ft, p.images, perturbed(p.pose, 3.0, 0.3), steps).pose.rotation, p.pose.rotation
        )
        for steps in (0, 1, 3)
    ]
    assert errors[0].min() > 2.9
    assert errors[1].median() < 0.8
    # less and less damped: in the end the number of right digits doubles
    assert errors[2].median() < 0.002
    assert errors[2].max() < 0.1


@pytest.mark.parametrize(("degrees", "brightness"), [(3.0, 3.0), (40.0, 3.0), (40.0, 0.3)])
def test_never_increases_the_residual(particle: Any, degrees: float, brightness: float) -> None:
    """Also from far away, in noise, where most steps are no good."""
    p = particle(60, noise=1.0, brightness=brightness)
    images = p.images.band(8)
    start = perturbed(p.pose, degrees, 1.0)
    before = residual(p, images, start)
    for steps in (1, 3, 6):
        found = refine_poses(p.volume_ft, images, start, steps)
        # up to the order of the sum
        assert (found.residual <= before * (1 + 1e-5)).all()
        torch.testing.assert_close(found.residual, residual(p, images, found.pose), rtol=1e-3, atol=0.01)
        before = found.residual
    # and nearly always lowers it
    assert (before < residual(p, images, start) - 1e-3).float().mean() > 0.9


def test_right_poses_stay(particle: Any) -> None:
    p = particle(30)
    found = refine_poses(p.volume_ft, p.images, p.pose, 3)
    assert angular_distance_deg(found.pose.rotation, p.pose.rotation).max() < 0.05
    torch.testing.assert_close(found.pose.shift_px, p.pose.shift_px, atol=1e-3, rtol=0)
    assert (found.residual <= residual(p, p.images, p.pose) + 1e-6).all()


def test_no_step_changes_nothing(particle: Any) -> None:
    p = particle(10)
    start = perturbed(p.pose, 3.0, 0.3)
    found = refine_poses(p.volume_ft, p.images, start, 0)
    assert torch.equal(found.pose.rotation, start.rotation) and torch.equal(found.pose.shift_px, start.shift_px)
    torch.testing.assert_close(found.residual, residual(p, p.images, start), rtol=1e-4, atol=0)


def test_images_do_not_see_each_other(particle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    p = particle(10, noise=1.0)
    start = perturbed(p.pose, 3.0, 0.3)
    whole = refine_poses(p.volume_ft, p.images, start, 3)
    monkeypatch.setattr(local, "BLOCK", 3)
    parts = refine_poses(p.volume_ft, p.images, start, 3)
    torch.testing.assert_close(parts.pose.rotation, whole.pose.rotation, atol=2e-4, rtol=0)
    torch.testing.assert_close(parts.pose.shift_px, whole.pose.shift_px, atol=1e-3, rtol=0)
    torch.testing.assert_close(parts.residual, whole.residual, rtol=1e-3, atol=0)


def test_jacobian_of_the_shift(particle: Any) -> None:
    """Gauss-Newton's gradient ``J^T r`` is minus half of the residual's, by finite differences in double steps."""
    p = particle(5, brightness=3.0)
    start = perturbed(p.pose, 2.0, 0.4)
    _, gradient = local._normal_equations(p.volume_ft, p.images, start)
    step = 0.02
    for axis in (0, 1):
        move = torch.zeros(2)
        move[axis] = step
        up, down = (residual(p, p.images, Pose(start.rotation, start.shift_px + s * move)) for s in (1, -1))
        torch.testing.assert_close(
            gradient[:, 3 + axis], -(up - down) / (4 * step), rtol=0.02, atol=0.02 * float(gradient.abs().max())
        )
    for axis in range(3):
        turn = roma.rotvec_to_rotmat(step * torch.eye(3)[axis])
        up, down = (residual(p, p.images, Pose(start.rotation @ t, start.shift_px)) for t in (turn, turn.T))
        torch.testing.assert_close(gradient[:, axis], -(up - down) / (4 * step), rtol=0.1, atol=0.1 * float(gradient.abs().max()))


def test_better_takes_the_smaller_residual_per_image() -> None:
    pose = Pose(roma.random_rotmat(3, generator=torch.Generator().manual_seed(0)), torch.ones(3, 2))
    other = Pose(pose.rotation.mT, torch.zeros(3, 2))
    best = better(LocalResult(pose, torch.tensor([1.0, 5, 2])), LocalResult(other, torch.tensor([3.0, 4, 2])))
    assert best.residual.tolist() == [1, 4, 2]
    assert best.pose.shift_px.tolist() == [[1, 1], [0, 0], [1, 1]]
    assert torch.equal(best.pose.rotation[1], other.rotation[1]) and torch.equal(best.pose.rotation[0], pose.rotation[0])
