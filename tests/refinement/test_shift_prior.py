"""The Gaussian prior of the shifts: its estimate, its weight against the images, and what it prevents."""

from typing import Any

import roma
import torch

from ace_em.config import SearchConfig
from ace_em.physics.imaging import project
from ace_em.physics.pose import Pose
from ace_em.refinement.pose_refinement import refine_candidates, refine_poses
from ace_em.refinement.search import PoseGrid, find_poses, search, shift_grid
from ace_em.refinement.shift_prior import ShiftPrior

CONFIG = SearchConfig(factors="float32")
CENTRE = torch.tensor([0.4, -0.3])


def test_centre_and_spread_are_those_of_most_images() -> None:
    generator = torch.Generator().manual_seed(1)
    shift = CENTRE + 0.8 * torch.randn(4000, 2, generator=generator)
    # a sixth of the poses is wrong, and so are their shifts
    shift[::6] = 10 * torch.randn(len(shift[::6]), 2, generator=generator)
    prior = ShiftPrior.of(shift, 0.1, 0.5)
    torch.testing.assert_close(prior.centre_px, CENTRE, atol=0.1, rtol=0)
    sd = (1 / (2 * prior.weight * 0.5)) ** 0.5
    assert 0.8 < sd < 1.05
    assert ShiftPrior.of(shift * 0.01, 0.3).weight == 1 / (2 * 0.3**2)
    assert ShiftPrior.of(shift[:10], 0.1).weight == 0


def test_cost_is_the_log_of_a_gaussian() -> None:
    """Scaled by the share of independent coefficients it is the log density of a Gaussian, up to a constant."""
    shift = torch.randn(500, 2, generator=torch.Generator().manual_seed(2)).double()
    prior = ShiftPrior.of(shift, 0.1, 0.6)
    sd = (1 / (2 * prior.weight * 0.6)) ** 0.5
    log_density = torch.distributions.Normal(prior.centre_px, sd).log_prob(shift).sum(-1)
    difference = -0.6 * prior.cost(shift) - log_density
    torch.testing.assert_close(difference, difference[:1].expand(500))


def test_refined_pose_minimises_residual_and_cost(particle: Any) -> None:
    """In float64: no small change of rotation or shift lowers the sum, and the residual alone would be lower elsewhere."""
    p = particle(8, noise=1.0, brightness=3.0).double()
    images, prior = p.images.band(7), ShiftPrior(CENTRE.double(), 20.0)

    def cost(pose: Pose, weight: float) -> torch.Tensor:
        predicted = project(p.volume_ft, images.effective_ctf, images.half_plane, pose)
        return (images.image_ft - predicted).abs().square().sum(-1) + weight * (pose.shift_px - CENTRE.double()).square().sum(-1)

    found = refine_poses(p.volume_ft, images, p.pose, 40, prior).pose
    least = cost(found, prior.weight)
    for axis in range(2):
        for step in (-0.02, 0.02):
            moved = Pose(found.rotation, found.shift_px + step * torch.eye(2).double()[axis])
            assert (cost(moved, prior.weight) > least).all()
    free = refine_poses(p.volume_ft, images, p.pose, 40).pose
    assert (cost(free, 0.0) < cost(found, 0.0)).all()
    assert ((found.shift_px - CENTRE).norm(dim=-1) < (free.shift_px - CENTRE).norm(dim=-1)).all()


def test_search_adds_the_cost_to_every_score(particle: Any) -> None:
    p = particle(6, noise=1.0)
    shifts, prior = shift_grid(2.0, 1.0), ShiftPrior(CENTRE, 3.0)
    settings = (p.pose.rotation, shifts, p.pose.shift_px + 1, 6, lambda done: None, "float32")
    found = search(p.volume_ft, p.images, *settings, prior=prior)
    # one shift at a time, without a prior, and the cost of that shift
    alone = []
    for shift in shifts:
        one = search(p.volume_ft, p.images, p.pose.rotation, shift[None], p.pose.shift_px + 1, 6, factors="float32")
        order = torch.stack([(one.pose.rotation - r).abs().sum((-1, -2)).argmin(1) for r in p.pose.rotation], 1)
        alone.append(one.log_likelihood.gather(1, order) - prior.cost(p.pose.shift_px + 1 + shift)[:, None])
    expected = torch.stack(alone).amax(0).sort(1, descending=True).values
    torch.testing.assert_close(found.log_likelihood, expected, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(found.log_sum, expected.logsumexp(1), rtol=1e-4, atol=1e-2)


def test_noise_does_not_drift_away(particle: Any) -> None:
    """Searched round after round, images of noise walk off; with the prior they stay."""
    p = particle(40, noise=1.0, brightness=0.0)
    reference = particle(1, brightness=1.0).volume_ft
    rotations = roma.random_rotmat(60, generator=torch.Generator().manual_seed(3))
    prior = ShiftPrior.of(torch.zeros(100, 2), 0.4)
    ends = []
    for each in (ShiftPrior.none(), prior):
        grid, pose = PoseGrid(rotations, shift_grid(1.5, 0.75), prior=each), Pose(p.pose.rotation, torch.zeros(40, 2))
        for _ in range(6):
            pose = find_poses(reference, p.images, pose, grid, CONFIG, keep_before=False).pose
        ends.append(pose.shift_px.norm(dim=-1).mean())
    assert ends[0] > 2 and ends[1] < 0.5 * ends[0]


def test_a_lost_image_is_found_from_the_centre(particle: Any) -> None:
    """The shift of an earlier wrong pose is out of reach of the grid about it, but the truth is near the prior's centre."""
    p = particle(20, noise=0.5)
    lost = Pose(p.pose.rotation[torch.randperm(20, generator=torch.Generator().manual_seed(1))], p.pose.shift_px + 5)
    grid = PoseGrid(p.pose.rotation, shift_grid(1.5, 0.5), prior=ShiftPrior.of(p.pose.shift_px, 0.1))
    found = [find_poses(p.volume_ft, p.images, lost, grid, CONFIG, recentred=centre).pose.shift_px for centre in (False, True)]
    error = [(shift - p.pose.shift_px).norm(dim=-1).median() for shift in found]
    assert error[0] > 2 and error[1] < 0.3


def test_candidates_are_compared_with_the_prior(particle: Any) -> None:
    """A pose far from the centre loses to one near it whose residual is only a little larger."""
    p = particle(10, noise=1.0, brightness=0.0)
    reference = particle(1).volume_ft
    near, far = (Pose(p.pose.rotation, torch.full((10, 2), shift)) for shift in (0.0, 4.0))
    candidates = Pose.stack([near, far])
    strong = refine_candidates(reference, p.images, candidates, 1, far, ShiftPrior(torch.zeros(2), 50.0)).best
    assert strong.pose.shift_px.norm(dim=-1).max() < 1
    free = refine_candidates(reference, p.images, candidates, 1, far).best
    assert free.pose.shift_px.norm(dim=-1).max() > 3
