"""Exhaustive search: on a grid that contains the truth it is found, with the likelihood written out."""

from typing import Any

import pytest
import roma
import torch

from ace_em.maths.fourier import HalfPlane
from ace_em.physics.imaging import clean_image_ft
from ace_em.physics.pose import Pose
from ace_em.refinement import search as search_module
from ace_em.refinement.search import SearchResult, search, shift_grid


def grid_with(truth: Pose, n_wrong: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotations that hold every true one, shuffled among others, and where each is."""
    wrong = roma.random_rotmat(n_wrong, generator=torch.Generator().manual_seed(8))
    order = torch.randperm(n_wrong + len(truth), generator=torch.Generator().manual_seed(9))
    return torch.cat([truth.rotation, wrong])[order], order.argsort()[: len(truth)]


def test_shift_grid_fills_a_circle() -> None:
    shifts = shift_grid(2.0, 1.0)
    wanted = {(y, x) for y in range(-2, 3) for x in range(-2, 3) if x * x + y * y <= 4}
    assert {(int(y), int(x)) for y, x in shifts.tolist()} == wanted and len(shifts) == len(wanted)
    assert shift_grid(0.3, 1.0).tolist() == [[0, 0]]
    # 3 x 0.1 is the radius 0.3, up to rounding
    assert shift_grid(0.3, 0.1).abs().max() == pytest.approx(0.3)


@pytest.mark.parametrize("centred", [False, True])
def test_finds_the_true_pose_on_the_grid(particle: Any, centred: bool) -> None:
    """Each image's true shift is a grid point about its own centre, and not the same one for all."""
    p = particle(20)
    shifts = shift_grid(2.0, 1.0)
    true_shift = shifts[torch.arange(20) % len(shifts)]
    centre = torch.randn(20, 2, generator=torch.Generator().manual_seed(3)) if centred else torch.zeros(20, 2)
    pose = Pose(p.pose.rotation, true_shift + centre)
    images = p.images
    images.image_ft[:] = clean_image_ft(p.volume_ft, images.transfer, images.half_plane, pose)
    rotations, where = grid_with(pose)
    found = search(p.volume_ft, images, rotations, shifts, centre)
    assert torch.equal(found.best.rotation, rotations[where])
    torch.testing.assert_close(found.best.shift_px, pose.shift_px, atol=1e-6, rtol=0)
    # noise-free: the best likelihood is the images' power
    torch.testing.assert_close(found.log_likelihood[:, 0], images.image_ft.abs().square().sum(-1), rtol=1e-4, atol=0)


def test_likelihood_is_the_squared_difference(particle: Any) -> None:
    """``|y|^2 - |y - h S|^2`` of every rotation at its best shift, computed one by one; best first."""
    p = particle(6, noise=1.0)
    images = p.images.band(6)
    rotations = grid_with(p.pose, 20)[0]
    shifts, centre = shift_grid(1.0, 0.5), torch.randn(6, 2, generator=torch.Generator().manual_seed(3))
    found = search(p.volume_ft, images, rotations, shifts, centre, top_k=len(rotations))
    assert found.pose.rotation.shape == (6, 26, 3, 3) and found.pose.shift_px.shape == (6, 26, 2)
    power = images.image_ft.abs().square().sum(-1)
    for i in range(6):
        pose = Pose(rotations[:, None].expand(-1, len(shifts), -1, -1), (centre[i] + shifts).expand(len(rotations), -1, -1))
        predicted = clean_image_ft(p.volume_ft, images.transfer[i], images.half_plane, pose)
        likelihood = power[i] - (images.image_ft[i] - predicted).abs().square().sum(-1)
        best, at = likelihood.max(1)
        order = best.argsort(descending=True)
        torch.testing.assert_close(found.log_likelihood[i], best[order], rtol=1e-3, atol=0.02)
        # ties within rounding apart, the poses are those
        assert torch.equal(found.pose.rotation[i, 0], rotations[order[0]])
        assert torch.equal(found.pose.shift_px[i, 0], centre[i] + shifts[at[order[0]]])
    assert (found.log_likelihood.diff(dim=1) <= 0).all()


def test_weights_are_the_posterior() -> None:
    """Odds are the exponential of the difference of log-likelihoods."""
    likelihood = torch.tensor([[3.0, 2.0, -1.0], [500.0, 500.0, 100.0]])
    pose = Pose(torch.eye(3).expand(2, 3, 3, 3), torch.zeros(2, 3, 2))
    weights = SearchResult(pose, likelihood).weights
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    torch.testing.assert_close(weights[0, 0] / weights[0, 1], torch.tensor(1.0).exp())
    torch.testing.assert_close(weights[1], torch.tensor([0.5, 0.5, 0.0]))


def test_fewer_kept_are_the_first_of_many(particle: Any) -> None:
    p = particle(6, noise=1.0)
    rotations, shifts = grid_with(p.pose, 20)[0], shift_grid(1.0, 1.0)
    many = search(p.volume_ft, p.images, rotations, shifts, p.pose.shift_px, top_k=5)
    one = search(p.volume_ft, p.images, rotations, shifts, p.pose.shift_px)
    assert torch.equal(one.pose.rotation[:, 0], many.pose.rotation[:, 0])
    assert torch.equal(one.log_likelihood, many.log_likelihood[:, :1])


def test_blocks_do_not_change_the_answer(particle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    p = particle(11, noise=1.0)
    rotations, shifts = grid_with(p.pose, 20)[0], shift_grid(1.0, 1.0)
    done: list[int] = []
    whole = search(p.volume_ft, p.images, rotations, shifts, p.pose.shift_px, 3, done.append)
    assert done == [11]
    monkeypatch.setattr(search_module, "BLOCK_BYTES", 4 * len(rotations) * len(shifts) * 4)
    done.clear()
    parts = search(p.volume_ft, p.images, rotations, shifts, p.pose.shift_px, 3, done.append)
    assert done == [4, 8, 11]
    assert torch.equal(parts.pose.rotation, whole.pose.rotation) and torch.equal(parts.pose.shift_px, whole.pose.shift_px)
    torch.testing.assert_close(parts.log_likelihood, whole.log_likelihood, rtol=1e-4, atol=1e-3)
    # less room than one image needs is still one image at a time
    monkeypatch.setattr(search_module, "BLOCK_BYTES", 1)
    assert torch.equal(search(p.volume_ft, p.images, rotations, shifts, p.pose.shift_px, 3).pose.rotation, whole.pose.rotation)


def test_only_the_band_counts(particle: Any) -> None:
    p = particle(8)
    rotations, where = grid_with(p.pose)
    p.images.image_ft[:, p.images.half_plane.radius > 5] = 1e4
    found = search(p.volume_ft, p.images.band(5), rotations, torch.zeros(1, 2), p.pose.shift_px)
    assert torch.equal(found.best.rotation, rotations[where])
    assert len(HalfPlane.within(20, 5)) == len(p.images.band(5).half_plane)
