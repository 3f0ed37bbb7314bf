"""The probability of a pose: it means what it says, also for the images that the maps were made from."""

import dataclasses
from typing import Any

import pytest
import roma
import torch
from torch import Tensor

from ace_em.config import SearchConfig
from ace_em.inference.confidence import (
    ResidualBaseline,
    _on_grid,
    arrangement_probability,
    evidence,
    pose_probability,
    residual_z,
)
from ace_em.maths.point_group import point_group
from ace_em.maths.rotations import angular_distance_deg
from ace_em.maths.slices import volume_to_ft
from ace_em.physics.imaging import project
from ace_em.physics.pose import Pose
from ace_em.refinement import search as search_module
from ace_em.refinement.half_sets import HalfSets, HalfSetState, next_round, shared_start
from ace_em.refinement.posterior import Posterior
from ace_em.refinement.search import PoseGrid, SearchSpace, find_poses
from stacks import FixedStack
from volumes import symmetrise_volume

C1 = torch.eye(3)[None]
CONFIG = SearchConfig(spacing=0.9, shift=0.1, shift_step=0.05, last_band=4.5)
DISTINCT = 15.0


def space_of(group: Tensor = C1) -> SearchSpace:
    return SearchSpace(20, 13.0, CONFIG, group)


def half_of(n: int) -> Tensor:
    return 1 + torch.arange(n) % 2


def settled(images: FixedStack, pose: Pose, mask: Tensor, volume: Tensor, group: Tensor = C1) -> tuple[HalfSets, HalfSetState]:
    """Half-sets, and their maps from these poses."""
    sets = HalfSets(images, half_of(len(images)), mask, group)
    start = shared_start(images, volume, pose, 7.0)
    return sets, next_round(sets, start, 7.0, None)


def probability(sets: HalfSets, state: HalfSetState, group: Tensor = C1) -> Tensor:
    found = evidence(sets, state, space_of(group), DISTINCT)
    return pose_probability(found.log_odds_against, found.residual_z, ResidualBaseline.of(found.residual_z))


def turned(pose: Pose, rows: Tensor, seed: int = 3) -> Pose:
    """Some of the rotations wrong by 60 to 180 degrees."""
    n = int(rows.sum())
    axis = torch.nn.functional.normalize(torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)), dim=-1)
    rotation = pose.rotation.clone()
    rotation[rows] = rotation[rows] @ roma.rotvec_to_rotmat(axis * torch.linspace(1.05, 3.1, n)[:, None])
    return Pose(rotation, pose.shift_px)


def test_right_poses_are_probable_and_wrong_ones_are_not(particle: Any) -> None:
    p = particle(300, noise=1.0, brightness=4.0)
    wrong = torch.arange(300) % 6 == 1
    sets, state = settled(p.images, turned(p.pose, wrong), p.mask, p.volume)
    found = probability(sets, state)
    assert (found[~wrong] > 0.9).float().mean() > 0.9 and found[wrong].max() < 0.1


def test_a_wrong_arrangement_explains_little_of_the_other_half(particle: Any) -> None:
    """Two thirds of the poses wrong: each half's map is made of them, and does not fit the images of the other."""
    p = particle(300, noise=1.0, brightness=4.0)
    right, wrong = (
        evidence(*settled(p.images, turned(p.pose, rows), p.mask, p.volume), space_of(), DISTINCT)
        for rows in (torch.zeros(300, dtype=torch.bool), torch.arange(300) % 3 > 0)
    )
    assert right.explained > right.expected > 0.8
    assert wrong.explained < wrong.expected - 0.1


@pytest.mark.parametrize(("explained", "said"), [(1.0, 1.0), (0.9, 1.0), (0.825, 0.5), (0.75, 0.0), (0.3, 0.0)])
def test_the_arrangement_is_believed_as_far_as_it_explains(explained: float, said: float) -> None:
    config = SearchConfig(tolerance=0.05, shortfall=0.2)
    assert arrangement_probability(explained, 0.95, config) == pytest.approx(said)
    # one bound for both: believed or not
    strict = SearchConfig(tolerance=0.125, shortfall=0.125)
    assert arrangement_probability(explained, 0.95, strict) in (0.0, 1.0)


def test_noise_is_judged_by_a_map_that_it_is_not_part_of(particle: Any) -> None:
    """Images of nothing, each at the pose where it fits the map of its half best: to that map all of them look right."""
    n = 30
    p = particle(n, noise=1.0, brightness=0.0)
    volume = particle(1, brightness=1.0).volume
    grid = space_of().grid(7.0, torch.Generator().manual_seed(1))
    sets, state = settled(p.images, p.pose, p.mask, volume)
    for _ in range(3):
        pose = state.pose.rotation.clone()
        for mine, own in zip(sets.rows, (state.halves.half1, state.halves.half2), strict=True):
            found = find_poses(volume_to_ft(own), sets.stack.subset(mine).band(7), state.pose[mine], grid, CONFIG)
            pose[mine] = found.pose.rotation
        state = next_round(
            sets, dataclasses.replace(state, posterior=Posterior.certain(Pose(pose, state.pose.shift_px))), 7.0, None
        )
    # as strong as the images have them: a map that is believed
    loud = dataclasses.replace(state.halves, half1=state.halves.weak1 * p.mask, half2=state.halves.weak2 * p.mask)
    state = dataclasses.replace(state, halves=loud)
    assert probability(sets, state).max() < 0.1
    swapped = dataclasses.replace(loud, half1=loud.half2, half2=loud.half1)
    assert probability(sets, dataclasses.replace(state, halves=swapped)).median() > 0.3


def test_answers_that_are_alike_share_the_probability(particle: Any) -> None:
    """A map with a two-fold axis, searched without it: two poses are right; with it they are one."""
    p, group = particle(200, noise=1.0, brightness=4.0), point_group("C2").float()
    volume = symmetrise_volume(p.volume * p.mask, group)
    clean = project(volume_to_ft(volume), p.images.effective_ctf, p.images.half_plane, p.pose)
    noise = p.images.image_ft - project(p.volume_ft, p.images.effective_ctf, p.images.half_plane, p.pose)
    images = p.images.with_images(clean + noise)
    sets, state = settled(images, p.pose, p.mask, volume)
    exact = dataclasses.replace(state.halves, half1=volume, half2=volume)
    state = dataclasses.replace(state, halves=exact)
    assert probability(sets, state).median() == pytest.approx(0.5, abs=0.1)
    assert probability(dataclasses.replace(sets, group=group), state, group).median() > 0.95


def test_an_image_of_something_else_leaves_more(particle: Any) -> None:
    baseline = ResidualBaseline(0.0, 1.0)
    said = pose_probability(torch.full((5,), -50.0), torch.tensor([-3.0, 0.0, 2.0, 3.0, 5.0]), baseline)
    assert said[0] == said[1] == pytest.approx(1 / 1.01)
    assert said[1] > said[2] > 0.9 > said[3] > 0.5 > 0.01 > said[4]
    spread = ResidualBaseline.of(torch.tensor([1.0, 2.0, 3.0, 4.0, 1000.0]))
    assert (spread.median, spread.spread) == (3.0, pytest.approx(1.4826))
    # noise alone leaves nothing, within its spread, of which neighbours that are alike make more
    p = particle(500, noise=1.0, brightness=0.0)
    z = residual_z(p.images.power(), p.images, 1.0)
    assert z.mean().abs() < 0.2 and z.std() == pytest.approx(1, abs=0.1)
    half = residual_z(p.images.power(), p.images, 0.25)
    torch.testing.assert_close(half, z / 2)


def test_the_grid_is_summed_without_the_pose_that_is_kept(particle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, against every pose written out; in chunks and blocks too."""
    p = particle(5, noise=1.0, brightness=2.0).double()
    group = point_group("C2").double()
    rotations = torch.cat(
        [p.pose.rotation, roma.random_rotmat(40, dtype=torch.float64, generator=torch.Generator().manual_seed(2))]
    )
    grid = PoseGrid(rotations, torch.tensor([[0.0, 0.0], [1.0, -0.5], [0.5, 2.0]], dtype=torch.float64))
    space, share = dataclasses.replace(space_of(group), config=dataclasses.replace(CONFIG, top_k=3)), 0.4
    kept = Pose(group[1] @ p.pose.rotation, p.pose.shift_px + 0.3)
    wanted, best = [], []
    for i in range(5):
        turns = group @ kept.rotation[i]
        near = angular_distance_deg(rotations[:, None], turns).amin(1) <= DISTINCT
        assert near[i] and near.sum() < 10
        pose = Pose(
            rotations[~near][:, None].expand(-1, 3, -1, -1), (kept.shift_px[i] + grid.shifts_px).expand(sum(~near), -1, -1)
        )
        predicted = project(p.volume_ft, p.images.effective_ctf[i], p.images.half_plane, pose)
        image = p.images.image_ft[i]
        likelihood = image.abs().square().sum() - (image - predicted).abs().square().sum(-1)
        wanted.append((share * likelihood).flatten().logsumexp(0))
        best.append(rotations[~near][likelihood.amax(1).argmax()])
    for memory in (2**28, 10 * 12 * len(p.images.half_plane)):
        monkeypatch.setattr(search_module, "REFERENCE_BYTES", memory)
        found = _on_grid(p.volume_ft, p.images, kept, grid, space, share, DISTINCT)
        torch.testing.assert_close(found.log_sum, torch.stack(wanted))
        assert torch.equal(found.pose.rotation[:, 0], torch.stack(best)) and found.pose.rotation.shape == (5, 3, 3, 3)
        monkeypatch.setattr(search_module, "BLOCK_BYTES", 4 * 3 * len(rotations) * 2)
