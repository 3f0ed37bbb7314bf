"""Blank images: detection from the likelihood of the best pose, and exclusion from all maps and statistics."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from ace_em.config import SearchConfig
from ace_em.maths.slices import VolumeFT
from ace_em.physics.image_content import ContentTest
from ace_em.physics.pose import Pose
from ace_em.refinement import abinitio as abinitio_module
from ace_em.refinement import half_sets as half_sets_module
from ace_em.refinement.abinitio import AbInitioSetup, ab_initio
from ace_em.refinement.backprojection import accumulate
from ace_em.refinement.half_sets import HalfSets, next_round, shared_start
from ace_em.refinement.noise_scale import shell_power
from ace_em.refinement.pose_refinement import LocalResult, refine_poses
from ace_em.refinement.search import PoseGrid, SearchSpace, find_poses
from stacks import FixedStack

C1 = torch.eye(3)[None]
CONFIG = SearchConfig(spacing=0.9, shift=0.1, shift_step=0.05)
N, JUNK = 160, 4
"""Every fourth image is pure noise."""


def is_junk(n: int = N) -> Tensor:
    return torch.arange(n) % JUNK == 1


def with_junk(p: Any) -> FixedStack:
    """The images, every fourth replaced by noise."""
    image_ft = p.images.image_ft.clone()
    parts = torch.randn(*image_ft.shape, 2, generator=torch.Generator().manual_seed(77)) * 0.5**0.5
    image_ft[is_junk(len(image_ft))] = torch.view_as_complex(parts)[is_junk(len(image_ft))]
    return p.images.with_images(image_ft)


def search_space() -> SearchSpace:
    return SearchSpace(20, 13.0, CONFIG, C1)


def test_blank_images_are_separated_from_particles(particle: Any) -> None:
    p = particle(N, noise=1.0, brightness=4.0)
    images, grid = with_junk(p).band(7), search_space().grid(7.0, torch.Generator().manual_seed(0))
    far = Pose(torch.eye(3).expand(N, 3, 3), p.pose.shift_px)
    found = find_poses(p.volume_ft, images, far, grid, CONFIG, keep_before=False)
    gain = images.power() - found.residual
    assert len(grid) > 1000
    shells = shell_power(p.volume_ft, images, found.pose)
    torch.testing.assert_close(shells.gain, gain, rtol=1e-3, atol=1e-2)
    assert torch.equal(ContentTest(len(grid)).content(shells).shows_particle, ~is_junk())
    # by chance something is found in noise as well: the best of as many poses is no evidence
    flat = dataclasses.replace(p.volume_ft, grid=0.04 * p.volume_ft.grid)
    by_chance = images.power() - find_poses(flat, images, far, grid, CONFIG, keep_before=False).residual
    assert by_chance[is_junk()].mean() > 1 and ContentTest(len(grid)).log_odds(by_chance[is_junk()]).max() < 0


def test_search_sums_the_likelihoods_of_the_grid(particle: Any) -> None:
    """In ab initio and half-set rounds: faint images that the best pose alone would have rejected."""
    p = particle(N, noise=1.0, brightness=0.6)
    images, grid = p.images.band(5), search_space().grid(5.0, torch.Generator().manual_seed(0))
    found = find_poses(p.volume_ft, images, p.pose, grid, CONFIG)
    gain, test = images.power() - found.residual, ContentTest(len(grid))
    assert (test.log_odds(gain, found.of_grid) > test.log_odds(gain)).float().mean() > 0.3
    followed = refine_poses(p.volume_ft, images, p.pose, 1)
    assert followed.log_sum is not None and (followed.of_grid == -torch.inf).all()
    assert torch.equal(test.log_odds(gain, followed.of_grid), test.log_odds(gain))


def recorded(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[Tensor]:
    """The rows that are back-projected."""
    rows_of: list[Tensor] = []

    def recording(images: Any, pose: Pose, rows: Tensor, **kwargs: Any) -> Any:
        rows_of.append(rows)
        return accumulate(images, pose, rows, **kwargs)

    monkeypatch.setattr(module, "accumulate", recording)
    return rows_of


def test_ab_initio_search_leaves_blank_images_out(particle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    p, inserted = particle(N, noise=1.0, brightness=4.0), recorded(monkeypatch, abinitio_module)
    images = with_junk(p)
    config = dataclasses.replace(CONFIG, first_band=4.5, last_band=4.5, ab_initio_images=N)
    setup = AbInitioSetup(images, p.mask, SearchSpace(20, 13.0, config, C1), config)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    last = next(ab_initio(setup, p.volume, p.pose, torch.arange(N), torch.Generator().manual_seed(1)))
    assert last.shown == pytest.approx(0.75)
    assert not is_junk()[order[torch.cat(inserted)]].any() and len(torch.cat(inserted)) == 0.75 * N
    # the explained fraction is that of the particles
    assert last.explained == pytest.approx(1, abs=0.06) and last.stable > 0.9


def follow(reference: VolumeFT, images: FixedStack, pose: Pose, rows: Tensor, done: int) -> LocalResult:
    return refine_poses(reference, images, pose, 2)


def test_half_sets_leave_blank_images_out(particle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    p, inserted = particle(N, noise=1.0, brightness=4.0), recorded(monkeypatch, half_sets_module)
    half_set = 1 + (torch.arange(N) % 5 % 2)
    sets = HalfSets(with_junk(p), half_set, p.mask, C1, test=ContentTest(1000.0))
    start = shared_start(sets.stack, p.volume, p.pose, 7.0)
    state = next_round(sets, start, 7.0, follow)
    assert torch.equal(state.shown, ~is_junk())
    for half, rows in enumerate(inserted, start=1):
        assert torch.equal(rows, torch.nonzero((half_set == half) & ~is_junk())[:, 0])
    # maps, noise and intensity scales are those of the particles by themselves
    few = HalfSets(p.images.subset(~is_junk()), half_set[~is_junk()], p.mask, C1, test=ContentTest(1000.0))
    start = shared_start(few.stack, p.volume, p.pose[~is_junk()], 7.0)
    alone = next_round(few, start, 7.0, follow)
    assert alone.shown.all()
    torch.testing.assert_close(state.halves.weak1, alone.halves.weak1, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state.halves.half2, alone.halves.half2, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state.noise.whitening_power, alone.noise.whitening_power)
    torch.testing.assert_close(state.intensity_scale[~is_junk()], alone.intensity_scale)
    assert state.intensity_scale[is_junk()].std() < 1e-6
    assert state.explained == pytest.approx(1, abs=0.06)
    # the poses of blank images may change without delaying convergence
    jumping = dataclasses.replace(state, moved_deg=torch.where(is_junk(), 90.0, 1.0))
    assert jumping.stable_share(10.0) == 1 and jumping.particles_moved_deg.max() == 1


def test_a_grid_counts_its_poses() -> None:
    assert len(PoseGrid(torch.eye(3).expand(7, 3, 3), torch.zeros(5, 2))) == 35
