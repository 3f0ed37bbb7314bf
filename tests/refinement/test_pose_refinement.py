"""Gauss-Newton steps: convergence from nearby poses, and no increase of the residual."""

from typing import Any

import pytest
import roma
import torch

from ace_em.maths.rotations import angular_distance_deg
from ace_em.physics.imaging import project
from ace_em.physics.pose import Pose
from ace_em.refinement import pose_refinement as local
from ace_em.refinement.pose_refinement import LocalResult, better, refine_candidates, refine_poses, replaced


def perturbed(pose: Pose, degrees: float, px: float, seed: int = 4) -> Pose:
    """Every pose perturbed by exactly these amounts, in random directions."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.nn.functional.normalize(torch.randn(len(pose), 3, generator=generator), dim=-1)
    direction = torch.nn.functional.normalize(torch.randn(len(pose), 2, generator=generator), dim=-1)
    return Pose(
        pose.rotation @ roma.rotvec_to_rotmat(axis * torch.deg2rad(torch.tensor(degrees))), pose.shift_px + px * direction
    )


def residual(p: Any, images: Any, pose: Pose) -> torch.Tensor:
    return (images.image_ft - project(p.volume_ft, images.effective_ctf, images.half_plane, pose)).abs().square().sum(-1)


def test_recovers_perturbed_poses(particle: Any) -> None:
    p = particle(60)
    start = perturbed(p.pose, 3.0, 0.3)
    found = refine_poses(p.volume_ft, p.images, start, 8)
    error = angular_distance_deg(found.pose.rotation, p.pose.rotation)
    assert angular_distance_deg(start.rotation, p.pose.rotation).min() > 2.9
    # the last step is at most 1/50 of a sample at the edge of the band (0.1 degree); the remaining error is far smaller
    assert error.max() < 0.05 and error.median() < 0.002
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
    # convergence is quadratic as the damping vanishes
    assert errors[2].median() < 0.002
    assert errors[2].max() < 0.1


@pytest.mark.parametrize(("degrees", "brightness"), [(3.0, 3.0), (40.0, 3.0), (40.0, 0.3)])
def test_never_increases_the_residual(particle: Any, degrees: float, brightness: float) -> None:
    """Also from distant poses and in noise, where most steps are rejected."""
    p = particle(60, noise=1.0, brightness=brightness)
    images = p.images.band(8)
    start = perturbed(p.pose, degrees, 1.0)
    before = residual(p, images, start)
    for steps in (1, 3, 6):
        found = refine_poses(p.volume_ft, images, start, steps)
        # up to rounding in the order of the sum
        assert (found.residual <= before * (1 + 1e-5)).all()
        torch.testing.assert_close(found.residual, residual(p, images, found.pose), rtol=1e-3, atol=0.01)
        before = found.residual
    # and it nearly always decreases
    assert (before < residual(p, images, start) - 1e-3).float().mean() > 0.9


def test_correct_poses_do_not_change(particle: Any) -> None:
    p = particle(30)
    found = refine_poses(p.volume_ft, p.images, p.pose, 3)
    assert angular_distance_deg(found.pose.rotation, p.pose.rotation).max() < 0.05
    torch.testing.assert_close(found.pose.shift_px, p.pose.shift_px, atol=1e-3, rtol=0)
    assert (found.residual <= residual(p, p.images, p.pose) + 1e-6).all()


def test_zero_steps_change_nothing(particle: Any) -> None:
    p = particle(10)
    start = perturbed(p.pose, 3.0, 0.3)
    found = refine_poses(p.volume_ft, p.images, start, 0)
    assert torch.equal(found.pose.rotation, start.rotation) and torch.equal(found.pose.shift_px, start.shift_px)
    torch.testing.assert_close(found.residual, residual(p, p.images, start), rtol=1e-4, atol=0)


def test_images_are_independent(particle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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
    _, gradient = local._normal_equations(p.volume_ft, p.images.batch(slice(None)), start)
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


def test_replaced_changes_only_the_given_rows() -> None:
    pose = Pose(roma.random_rotmat(4, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 2))
    old, before = LocalResult(pose, torch.zeros(4)), pose.rotation.clone()
    new = LocalResult(Pose(pose.rotation[:2].mT, torch.tensor([[1.0, 2], [3, 4]])), torch.tensor([5.0, 6]))
    by_index = replaced(old, torch.tensor([3, 1]), new)
    assert by_index.residual.tolist() == [0, 6, 0, 5]
    assert by_index.pose.shift_px.tolist() == [[0, 0], [3, 4], [0, 0], [1, 2]]
    assert torch.equal(by_index.pose.rotation, torch.stack([before[0], before[1].T, before[2], before[0].T]))
    by_mask = replaced(old, torch.tensor([True, False, False, True]), new)
    assert by_mask.residual.tolist() == [5, 0, 0, 6]
    # the input is not modified
    assert torch.equal(old.pose.rotation, before) and not old.pose.shift_px.any() and not old.residual.any()


def counted_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the number of images in each refinement step."""
    steps: list[int] = []
    original = local._normal_equations

    def counted(volume_ft: Any, images: Any, pose: Pose) -> Any:
        steps.append(len(pose))
        assert len(images) == len(pose)
        return original(volume_ft, images, pose)

    monkeypatch.setattr(local, "_normal_equations", counted)
    return steps


def test_converged_images_are_skipped(particle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the images start near the truth and converge early; the others continue."""
    p, steps = particle(60, noise=1.0), counted_steps(monkeypatch)
    near, far = perturbed(p.pose, 0.02, 0.002), perturbed(p.pose, 6.0, 0.5)
    first = (torch.arange(60) < 30)[:, None]
    start = Pose(torch.where(first[..., None], near.rotation, far.rotation), torch.where(first, near.shift_px, far.shift_px))
    found = refine_poses(p.volume_ft, p.images, start, 30)
    assert steps[0] == 60 and sorted(steps, reverse=True) == steps
    # nearly all converge long before the maximum number of steps
    assert steps[4] < 40 and steps[8] < 25 and sum(steps) < 10 * 60
    # and the result is as good as with all steps for all images
    monkeypatch.setattr(local, "CONVERGED", 0.0)
    steps.clear()
    patient = refine_poses(p.volume_ft, p.images, start, 30)
    assert sum(steps) > 20 * 60
    assert angular_distance_deg(found.pose.rotation, patient.pose.rotation).max() < 0.5
    torch.testing.assert_close(found.residual, patient.residual, rtol=2e-3, atol=0)


def test_a_rejected_step_is_retried_with_more_damping(particle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step of every other image raises the residual; these images do not count as converged."""
    p, steps = particle(60), counted_steps(monkeypatch)
    start, uphill = perturbed(p.pose, 3.0, 0.3), torch.arange(60) % 2 == 0
    solve, damping_seen = local.damped_step, []

    def misled(normal: torch.Tensor, gradient: torch.Tensor, damping: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
        damping_seen.append(damping)
        move = solve(normal, gradient, damping, floor)
        return torch.where(uphill[:, None], -move, move) if len(damping_seen) == 1 else move

    monkeypatch.setattr(local, "damped_step", misled)
    monkeypatch.setattr(local, "CONVERGED", float("inf"))
    found = refine_poses(p.volume_ft, p.images, start, 6)
    assert steps == [60, 30]
    # rejected, and the damping raised
    assert damping_seen[1].tolist() == pytest.approx([10 * float(damping_seen[0][0])] * 30)
    after_one = refine_poses(p.volume_ft, p.images, start, 1)
    torch.testing.assert_close(found.residual[~uphill], after_one.residual[~uphill])
    assert angular_distance_deg(found.pose.rotation, p.pose.rotation).median() < 0.8
    assert angular_distance_deg(found.pose.rotation, p.pose.rotation).max() < 2


def test_edge_move(particle: Any) -> None:
    """At radius 5, 0.1 rad is half a sample, and a shift of 1 px of 20 changes the phase by 5 / 20 of a cycle."""
    images = particle(1).images.band(5)
    moves = torch.tensor([[0.0, 0.1, 0, 0, 0], [0, 0, 0, 0.6, 0.8], [0.3, 0, 0.4, 0, 0.1]])
    assert float(images.half_plane.radius[-1]) == 5
    assert local._edge_move(images.batch(slice(None)), moves).tolist() == pytest.approx([0.5, torch.pi / 2, 2.5])


def test_the_best_of_several_starts_wins(particle: Any) -> None:
    """One candidate of each image is near the truth, a different one for each."""
    n, k = 30, 5
    p = particle(n, noise=0.5)
    generator = torch.Generator().manual_seed(6)
    right = torch.arange(n) % k
    candidates = Pose(roma.random_rotmat(n * k, generator=generator).view(n, k, 3, 3), p.pose.shift_px[:, None].repeat(1, k, 1))
    near = perturbed(p.pose, 4.0, 0.3)
    candidates.rotation[torch.arange(n), right], candidates.shift_px[torch.arange(n), right] = near.rotation, near.shift_px
    found = refine_candidates(p.volume_ft, p.images, candidates, 4).best
    assert angular_distance_deg(found.pose.rotation, p.pose.rotation).max() < 1
    assert (found.pose.shift_px - p.pose.shift_px).norm(dim=-1).max() < 0.2
    torch.testing.assert_close(found.residual, residual(p, p.images, found.pose), rtol=1e-3, atol=0.01)


def test_the_second_best_start_is_refined_fully(particle: Any) -> None:
    """The best two starts get all steps: the second best after one step may be the best in the end."""
    p = particle(40, noise=1.0, brightness=3.0)
    candidates = Pose.stack([perturbed(p.pose, degrees, 0.5, seed) for seed, degrees in enumerate((40.0, 40.0, 45.0, 50.0))])
    two = refine_candidates(p.volume_ft, p.images, candidates, 6).best
    first = [refine_poses(p.volume_ft, p.images, candidates.column(i), 1) for i in range(4)]
    ahead = torch.stack([f.residual for f in first]).argmin(0)
    rows = torch.arange(40)
    tried = Pose.stack([f.pose for f in first])
    one = refine_poses(p.volume_ft, p.images, Pose(tried.rotation[rows, ahead], tried.shift_px[rows, ahead]), 6)
    assert (two.residual <= one.residual + 1e-3).all()
    assert (two.residual < one.residual - 1).any()


def test_a_single_start_is_refined_directly(particle: Any) -> None:
    p = particle(10, noise=1.0)
    start = perturbed(p.pose, 4.0, 0.3)
    found = refine_candidates(p.volume_ft, p.images, Pose.stack([start]), 3).best
    first = refine_poses(p.volume_ft, p.images, start, 1).pose
    assert torch.equal(found.pose.rotation, refine_poses(p.volume_ft, p.images, first, 3).pose.rotation)
