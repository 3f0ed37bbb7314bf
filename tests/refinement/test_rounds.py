"""Rounds of search: when they stop, what they explain, and that they mend poses."""

import dataclasses
from typing import Any

import pytest
import roma
import torch

from ace_em.config import SearchConfig
from ace_em.data.preprocess import WorkingSet
from ace_em.maths.rotations import angular_distance_deg
from ace_em.physics.imaging import clean_image_ft, shift_phase
from ace_em.physics.pose import Pose
from ace_em.refinement.backprojection import Halves
from ace_em.refinement.rounds import Round, band_per_diameter, explained_share, finished, search_rounds, still_exploring

CONFIG = SearchConfig(explore_rounds=6, max_rounds=5, explored=0.9, stable_share=0.97)


def round_of(exploring: bool, stable: float = 0.0, explained: float = 0.0) -> Round:
    nothing = torch.zeros(1)
    return Round(1, exploring, Pose(nothing, nothing), Halves(*[nothing] * 4), 5.0, nothing, stable, explained)


def exploring(*explained: float) -> list[Round]:
    return [round_of(True, explained=e) for e in explained]


def full(*stable: float) -> list[Round]:
    return [round_of(False, stable=s) for s in stable]


@pytest.mark.parametrize(
    ("history", "wanted"),
    [
        ([], True),
        (exploring(0.99, 0.99, 0.99), True),  # too few rounds to see a gain
        (exploring(0.95, 0.95, 0.95, 0.955), False),  # explains and no longer gains
        (exploring(0.92, 0.93, 0.94, 0.95), True),  # still gaining
        (exploring(0.5, 0.5, 0.5, 0.5), True),  # stuck, but it explains too little
        (exploring(0.2, 0.95, 0.95, 0.95, 0.95), False),  # an early gain is forgotten
        (exploring(0.95, 0.95, 0.95, 0.5), True),
        (exploring(0.1, 0.2, 0.3, 0.4, 0.5, 0.6), False),  # the set number of rounds
        (exploring(0.1) + full(0.5), False),  # never back
    ],
)
def test_exploring_ends_when_it_gains_no_more(history: list[Round], wanted: bool) -> None:
    assert still_exploring(history, CONFIG) is wanted


@pytest.mark.parametrize(
    ("history", "wanted"),
    [
        ([], False),
        (exploring(*[0.99] * 6), False),
        (full(0.99), False),  # one round on all images is no comparison
        (full(0.5, 0.98), True),
        (full(0.98, 0.5), False),
        (exploring(0.9, 0.9) + full(0.98), False),
        (full(0.5, 0.6, 0.7, 0.8), False),  # still gaining
        (full(0.5, 0.8, 0.7, 0.8), True),  # no more than before
        (full(0.7, 0.7, 0.7), False),
        (full(0.1, 0.2, 0.3, 0.4, 0.5), True),  # the most rounds
    ],
)
def test_rounds_end_when_poses_stand_still(history: list[Round], wanted: bool) -> None:
    assert finished(history, CONFIG) is wanted


def test_a_good_round_long_ago_is_forgotten() -> None:
    config = dataclasses.replace(CONFIG, max_rounds=9)
    assert not finished(full(0.9, 0.5, 0.6, 0.7, 0.8), config)
    assert finished(full(0.9, 0.5, 0.6, 0.7, 0.7), config)


def test_band_grows_while_exploring() -> None:
    config = SearchConfig(first_band=5.0, last_band=9.0, explore_rounds=4)
    assert [band_per_diameter(n, config) for n in (1, 2, 3, 4, 5, 6, 20)] == [5, 6, 7, 8, 9, 9, 9]


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_explained_share_tells_right_from_wrong(particle: Any, noise: float) -> None:
    p = particle(400, noise=noise, brightness=3.0)
    images = p.images.band(7)

    def share(volume_ft: Any, pose: Pose) -> float:
        predicted = clean_image_ft(volume_ft, images.transfer, images.half_plane, pose)
        return explained_share(images, (images.image_ft - predicted).abs().square().sum(-1))

    assert share(p.volume_ft, p.pose) == pytest.approx(1, abs=0.02)
    nothing = dataclasses.replace(p.volume_ft, grid=0 * p.volume_ft.grid)
    assert share(nothing, p.pose) == pytest.approx(0, abs=1e-5)
    # half of the amplitude explains three quarters of the power
    assert share(dataclasses.replace(p.volume_ft, grid=0.5 * p.volume_ft.grid), p.pose) == pytest.approx(0.75, abs=0.02)
    random = Pose(roma.random_rotmat(400, generator=torch.Generator().manual_seed(9)), p.pose.shift_px)
    assert share(p.volume_ft, random) < 0.7


def test_rounds_mend_wrong_poses(particle: Any) -> None:
    """From a blurred map and random poses to the right ones; exploring on subsets, then on all images."""
    n, diameter = 120, 13.0
    p = particle(n, box=20, noise=0.5)
    # far beyond the grid of shifts: found only about the last ones
    far = torch.tensor([4.0, -4.0])
    p.images.image_ft.mul_(shift_phase(p.images.half_plane, far))
    p.pose.shift_px.add_(far)
    config = SearchConfig(
        first_band=3.5, last_band=4.5, explore_rounds=1, explore_images=80, max_rounds=2, spacing=0.9, shift=0.1, shift_step=0.05
    )
    start = Pose(roma.random_rotmat(n, generator=torch.Generator().manual_seed(1)), p.pose.shift_px + 0.4)
    blocks: list[tuple[int, int, int]] = []
    generator = torch.Generator().manual_seed(2)
    states = list(
        search_rounds(p.images, p.volume, start, p.mask, diameter, config, generator, lambda *done: blocks.append(done))
    )
    assert [s.number for s in states] == [1, 2, 3] and [s.exploring for s in states] == [True, False, False]
    assert [len(s.moved_deg) for s in states] == [80, n, n]
    assert blocks[-1] == (3, n, n) and blocks[0][0] == 1 and blocks[0][2] == 80
    # images that the first round did not look at keep their pose
    same = (states[0].pose.rotation == start.rotation).all(-1).all(-1)
    assert same.sum() == n - 80 and torch.equal(states[0].pose.shift_px[same], start.shift_px[same])
    error = angular_distance_deg(states[-1].pose.rotation, p.pose.rotation)
    assert (error < 10).float().mean() > 0.9
    assert (states[-1].pose.shift_px - p.pose.shift_px).norm(dim=-1).median() < 0.3
    last = states[-1]
    assert last.stable == (last.moved_deg < config.stable_deg).float().mean().item() and last.stable > 0.8
    assert 0.8 < last.explained < 1.1
    torch.testing.assert_close(
        last.moved_deg.sort().values,
        angular_distance_deg(states[-2].pose.rotation, last.pose.rotation).sort().values,
        atol=0.05,
        rtol=0,
    )
    assert [s.band for s in states] == pytest.approx([3.5 * 20 / diameter, 4.5 * 20 / diameter, 4.5 * 20 / diameter])
    # the poses that came in are not written to
    assert torch.equal(start.shift_px, p.pose.shift_px + 0.4)


def test_small_sets_are_not_split_into_subsets(particle: Any) -> None:
    p = particle(30, box=16)
    config = SearchConfig(first_band=2.0, last_band=2.0, explore_images=30, spacing=2.0)
    state = next(search_rounds(p.images, p.volume, p.pose, p.mask, 10.0, config, torch.Generator().manual_seed(0)))
    assert not state.exploring and len(state.moved_deg) == 30


def test_rounds_follow_the_generator(particle: Any) -> None:
    p = particle(30, box=16, noise=1.0)
    config = SearchConfig(first_band=2.0, last_band=2.0, explore_images=20, spacing=2.0)

    def first(seed: int) -> Round:
        return next(search_rounds(p.images, p.volume, p.pose, p.mask, 10.0, config, torch.Generator().manual_seed(seed)))

    one, same, other = first(0), first(0), first(1)
    assert torch.equal(one.pose.rotation, same.pose.rotation) and torch.equal(one.halves.combined, same.halves.combined)
    assert not torch.equal(one.pose.rotation, other.pose.rotation)


def test_each_round_reads_its_band_and_the_last_rounds_map(particle: Any) -> None:
    """From the right poses and half of the true map, with rubbish beyond the band."""
    p = particle(60, box=16)
    config = SearchConfig(first_band=3.0, last_band=3.0, explore_images=60, spacing=0.9, shift=0.05, shift_step=0.05)

    def two_rounds(images: WorkingSet) -> list[Round]:
        rounds = search_rounds(images, p.volume / 2, p.pose, p.mask, 10.0, config, torch.Generator().manual_seed(0))
        return [next(rounds), next(rounds)]

    first, second = two_rounds(p.images)
    # half of the amplitude explains three quarters of the power; the map of the first round is whole
    assert first.explained == pytest.approx(0.75, abs=0.05)
    assert second.explained > 0.9
    beyond = p.images.half_plane.radius > first.band
    assert beyond.sum() > 10
    rubbish = dataclasses.replace(p.images, image_ft=torch.where(beyond, 300.0, p.images.image_ft))
    assert torch.equal(two_rounds(rubbish)[0].pose.rotation, first.pose.rotation)
