"""Posterior of the pose: probabilities against a sum over all poses, sparse, and its use in maps and statistics."""

import dataclasses
from typing import Any

import pytest
import roma
import torch

from ace_em.config import RefineConfig, SearchConfig
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.point_group import point_group
from ace_em.metrics.alignment import Frame
from ace_em.physics.imaging import project
from ace_em.physics.pose import Pose
from ace_em.refinement.backprojection import Halves, accumulate
from ace_em.refinement.half_sets import HalfSets, first_state, refine_half_sets, settled_rows
from ace_em.refinement.noise_scale import residuals
from ace_em.refinement.pose_refinement import refine_poses, with_other_poses
from ace_em.refinement.posterior import Posterior
from ace_em.refinement.search import PoseGrid, find_poses, shift_grid
from stacks import FixedStack

C1 = torch.eye(3)[None]
CONFIG = SearchConfig(factors="float32", local_steps=4)
NOTHING = -torch.inf


def poses(n: int, k: int, seed: int = 0) -> Pose:
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.stack([roma.random_rotmat(n, generator=generator) for _ in range(k)], 1)
    return Pose(rotation, torch.randn(n, k, 2, generator=generator))


def test_probabilities_are_shares_of_the_likelihood() -> None:
    pose, likelihood = poses(3, 3), torch.tensor([[1.0, 3.0, 2.0], [0.0, 9.0, -60.0], [5.0, 5.0, 5.0]]).log()
    likelihood[1] = torch.tensor([0.0, 9.0, -60.0])
    found = Posterior.of(pose, likelihood, torch.full((3,), NOTHING), C1)
    torch.testing.assert_close(found.probability[0], torch.tensor([3.0, 2.0, 1.0]) / 6)
    # the first pose of the second image holds 99.99 %: it is kept alone, with a weight of exactly 1
    assert found.probability[1].tolist() == [1.0, 0.0, 0.0]
    torch.testing.assert_close(found.probability[2], torch.full((3,), 1 / 3))
    assert torch.equal(found.best.rotation[:2], pose.rotation[[0, 1], [1, 1]])
    assert found.n_poses.tolist() == [3, 1, 3]


def test_many_poses_beside_the_candidates_take_their_share() -> None:
    """An image that fits everything equally adds next to nothing."""
    likelihood, n_grid = torch.zeros(1, 4), 1000.0
    found = Posterior.of(poses(1, 4), likelihood, torch.tensor([n_grid]).log(), C1)
    torch.testing.assert_close(found.probability, torch.full((1, 4), 1 / n_grid))


def test_converged_candidates_count_once_up_to_the_point_group() -> None:
    pose = poses(5, 2)
    near = pose.rotation[:, 0] @ roma.rotvec_to_rotmat(torch.tensor([[0.05, 0.0, 0.0]]))
    candidates = Pose(torch.stack([pose.rotation[:, 0], near, pose.rotation[:, 1]], 1), pose.shift_px[:, [0, 0, 1]])
    likelihood = torch.tensor([0.0, -0.1, -0.2]).expand(5, 3)
    none = torch.full((5,), NOTHING)
    found = Posterior.of(candidates, likelihood, none, C1)
    assert (found.n_poses == 2).all()
    torch.testing.assert_close(found.probability[:, 0], torch.sigmoid(torch.full((5,), 0.2)))
    group = point_group("D2").float()
    copies = Pose(torch.stack([pose.rotation[:, 0], group[2] @ near], 1), pose.shift_px)
    assert (Posterior.of(copies, likelihood[:, :2], none, group).n_poses == 1).all()
    assert (Posterior.of(copies, likelihood[:, :2], none, C1).n_poses == 2).all()


def test_rows_frames_and_widths() -> None:
    narrow, wide = Posterior.certain(poses(4, 1).column(0)), Posterior(poses(3, 2, 1), torch.tensor([[0.7, 0.3]] * 3))
    both = Posterior.cat([narrow, wide])
    assert both.n_poses.tolist() == [1, 1, 1, 1, 2, 2, 2]
    image, pose, weight = both[torch.tensor([5, 0])].entries(torch.tensor([1, 0]))
    assert image.tolist() == [1, 0, 0] and weight.tolist() == pytest.approx([1.0, 0.7, 0.3])
    torch.testing.assert_close(pose.rotation[2], wide.pose.rotation[1, 1])
    turn = roma.random_rotmat(generator=torch.Generator().manual_seed(1))
    turned = wide.in_frame(Frame(turn, False, torch.zeros(3)))
    torch.testing.assert_close(turned.pose.rotation, turn @ wide.pose.rotation)
    torch.testing.assert_close(wide.rescaled(2.0).pose.shift_px, 2 * wide.pose.shift_px)
    mixed = narrow.replaced(torch.tensor([False, True, False, False]), wide[:1])
    assert mixed.n_poses.tolist() == [1, 2, 1, 1]


def test_posterior_of_the_search_is_that_of_all_poses(particle: Any) -> None:
    """In images with little signal the probabilities agree with the likelihoods of the refined poses, summed over all of them."""
    p = particle(60, noise=1.0, brightness=0.9)
    rotations = roma.random_rotmat(5, generator=torch.Generator().manual_seed(3))
    grid = PoseGrid(rotations, torch.zeros(1, 2), independent=0.8)
    config = dataclasses.replace(CONFIG, top_k=5, local_steps=8)
    found = find_poses(p.volume_ft, p.images, Pose(p.pose.rotation, torch.zeros(60, 2)), grid, config, keep_before=False)
    assert found.posterior is not None and (found.posterior.n_poses > 1).float().mean() > 0.3
    torch.testing.assert_close(found.posterior.best.rotation, found.pose.rotation)
    for k in range(found.posterior.probability.shape[1]):
        kept = found.posterior.probability[:, k] > 0
        pose = found.posterior.pose.column(k)
        left = p.images.image_ft - project(p.volume_ft, p.images.effective_ctf, p.images.half_plane, pose)
        less = 0.8 * (left.abs().square().sum(1) - found.residual)
        ratio = found.posterior.probability[:, k] / found.posterior.probability[:, 0]
        torch.testing.assert_close(ratio[kept], (-less[kept]).exp(), rtol=2e-2, atol=1e-3)


def test_clear_images_have_one_pose_with_full_weight(particle: Any) -> None:
    p = particle(30, noise=1.0)
    rotations = torch.cat([p.pose.rotation, roma.random_rotmat(60, generator=torch.Generator().manual_seed(3))])
    grid = PoseGrid(rotations, shift_grid(1.0, 0.5))
    found = find_poses(p.volume_ft, p.images, p.pose, grid, CONFIG)
    assert found.posterior is not None and (found.posterior.probability == 1).all() and (found.posterior.n_poses == 1).all()


def test_back_projection_is_the_weighted_sum(particle: Any) -> None:
    p = particle(40, noise=1.0).double()
    first, second, share = p.pose, poses(40, 1).column(0), 0.3
    second = Pose(second.rotation.double(), second.shift_px.double())
    weights = torch.tensor([[1 - share, share]]).expand(40, 2).double()
    both = accumulate(p.images, Posterior(Pose.stack([first, second]), weights)).grid
    alone = [accumulate(p.images, pose).grid for pose in (first, second)]
    torch.testing.assert_close(both, (1 - share) * alone[0] + share * alone[1])
    rows = torch.tensor([3, 1, 20])
    torch.testing.assert_close(
        accumulate(p.images, Posterior(Pose.stack([first, second]), weights), rows).grid,
        sum(w * accumulate(p.images, pose, rows).grid for w, pose in ((1 - share, first), (share, second))),
    )


def test_statistics_are_weighted_means(particle: Any) -> None:
    p, rows = particle(40, noise=1.0), torch.arange(5, 30)
    other = poses(40, 1).column(0)
    # probabilities that do not add up to 1 are scaled to do so
    mixed = Posterior(Pose.stack([p.pose, other]), torch.tensor([[0.6, 0.2]]).expand(40, 2))
    found = residuals(p.volume_ft, p.images, mixed[rows], rows)
    one, two = (residuals(p.volume_ft, p.images, pose[rows], rows) for pose in (p.pose, other))
    for name in ("power", "overlap", "strength"):
        torch.testing.assert_close(getattr(found, name), 0.75 * getattr(one, name) + 0.25 * getattr(two, name))
    assert torch.equal(found.n_images, one.n_images)


def test_refinement_weighs_the_poses_anew(particle: Any) -> None:
    """A wrong pose of large probability loses it when the true one, of less, is compared at more detail."""
    p = particle(20, noise=1.0)
    wrong = poses(20, 1).column(0)
    before = Posterior(Pose.stack([wrong, p.pose]), torch.tensor([[0.8, 0.2]]).expand(20, 2))
    best = refine_poses(p.volume_ft, p.images, wrong, 3)
    found = with_other_poses(p.volume_ft, p.images, best, before, 3, 0.7, C1)
    assert found.posterior is not None and (found.posterior.n_poses == 1).all()
    right = refine_poses(p.volume_ft, p.images, p.pose, 3)
    torch.testing.assert_close(found.pose.rotation, right.pose.rotation, atol=5e-3, rtol=0)
    torch.testing.assert_close(found.residual, right.residual, atol=0.1, rtol=1e-3)
    # with one pose an image nothing changes
    alone = with_other_poses(p.volume_ft, p.images, best, Posterior.certain(wrong), 3, 0.7, C1)
    assert alone is best


def test_uncertain_images_are_searched_again() -> None:
    pose = poses(4, 2)
    halves = Halves(*[torch.zeros(1)] * 7)
    half_plane = HalfPlane.within(8)
    stack = FixedStack.of(half_plane, torch.zeros(4, len(half_plane), dtype=torch.complex64), torch.zeros(4, len(half_plane)))
    state = dataclasses.replace(first_state(stack, pose.column(0), halves, 3.0), moved_deg=torch.tensor([1.0, 1.0, 90.0, 1.0]))
    uncertain = dataclasses.replace(state, posterior=Posterior(pose, torch.tensor([[1.0, 0], [0.6, 0.4], [1.0, 0], [1.0, 0]])))
    assert settled_rows([state, state, uncertain], CONFIG).tolist() == [True, False, False, True]  # type: ignore[union-attr]
    assert uncertain.poses_per_image == 1.25


def test_refined_half_sets_keep_the_other_poses(particle: Any) -> None:
    """The wrong first pose of some images is given up for their second one in the rounds of the refinement."""
    p = particle(300, noise=1.0)
    sets = HalfSets(p.images, 1 + torch.arange(300) % 2, p.mask, C1)
    start = first_state(p.images, p.pose, Halves(*[p.volume] * 3, torch.ones(11), p.volume, p.volume, torch.ones(11)), 6.0)
    first, second, probability = (
        p.pose.rotation.clone(),
        poses(300, 1).column(0).rotation,
        torch.tensor([[1.0, 0.0]]).repeat(300, 1),
    )
    # every tenth image has its true pose as the less probable of two
    some = torch.arange(0, 300, 10)
    first[some], second[some], probability[some] = second[some], first[some], torch.tensor([0.6, 0.4])
    rotation = torch.stack([first, second], 1)
    posterior = Posterior(Pose(rotation, p.pose.shift_px[:, None].expand(-1, 2, 2)), probability)
    states = list(refine_half_sets(sets, [dataclasses.replace(start, posterior=posterior)], RefineConfig(max_rounds=2)))
    error = (states[-1].pose.rotation - p.pose.rotation).flatten(1).norm(dim=1)
    assert error[some].max() < 0.2 and states[-1].poses_per_image < 1.01
