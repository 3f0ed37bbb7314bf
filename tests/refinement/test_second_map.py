"""A second map for the images of another particle, which no residual gives away while the arrangement of views is wrong."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from ace_em.config import SearchConfig
from ace_em.maths.slices import volume_to_ft
from ace_em.physics.image_content import Content
from ace_em.physics.imaging import project
from ace_em.physics.pose import Pose
from ace_em.refinement import abinitio as abinitio_module
from ace_em.refinement.abinitio import AbInitioSetup, Round, ab_initio, of_first_map, subset_size
from ace_em.refinement.pose_refinement import LocalResult
from ace_em.refinement.search import SearchSpace
from ace_em.refinement.second_map import Searched, search_maps
from ace_em.simulation.density import density_map
from ace_em.simulation.structure import Atoms
from stacks import FixedStack

CONFIG = SearchConfig(
    spacing=0.9, shift=0.1, shift_step=0.05, first_band=4.5, last_band=4.5, ab_initio_images=120, ab_initio_rounds=7
)
C1 = torch.eye(3)[None]
N, OTHER = 180, 3
"""Every third image shows another particle."""


def is_other() -> Tensor:
    return torch.arange(N) % OTHER == 1


def other_volume(amplitude: float = 5.0) -> Tensor:
    generator = torch.Generator().manual_seed(91)
    position = torch.randn(12, 3, generator=generator).clamp(-1.6, 1.6) * torch.tensor([2.0, 2.4, 3.0])
    return density_map(Atoms(position, amplitude * (1.5 * torch.rand(12, generator=generator) - 0.3)), 20, 1.0, 4.0)


def mixed(p: Any, amplitude: float = 5.0) -> FixedStack:
    """The particle's images, every third replaced by one of the other volume."""
    images = p.images
    noise = images.image_ft - project(p.volume_ft, images.effective_ctf, images.half_plane, p.pose)
    others = project(volume_to_ft(other_volume(amplitude)), images.effective_ctf, images.half_plane, p.pose) + noise
    return images.with_images(torch.where(is_other()[:, None], others, images.image_ft))


def likeness(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


def setup_of(p: Any, images: FixedStack) -> AbInitioSetup:
    return AbInitioSetup(images, p.mask, SearchSpace(20, 13.0, CONFIG, C1), CONFIG)


def test_images_go_to_the_map_that_fits_them(particle: Any) -> None:
    p = particle(N, noise=1.0, brightness=4.0)
    images, maps = mixed(p, 8.0).band(7), [p.volume_ft, volume_to_ft(other_volume(8.0))]
    grid = setup_of(p, images).space.grid(7.0, torch.Generator().manual_seed(0))
    found = search_maps(maps, images, [p.pose, p.pose], grid, CONFIG)
    assert (found.nearest.bool() == is_other()).float().mean() > 0.98
    assert found.content.shows_particle.float().mean() > 0.98
    assert torch.equal(found.swapped().rows_of(0), found.rows_of(1))
    # against the first map alone they are something else
    alone = search_maps(maps[:1], images, [p.pose], grid, CONFIG)
    assert (alone.rows_of(0) == ~is_other()).float().mean() > 0.97


def test_a_second_map_begins_with_the_images_that_fit_worst() -> None:
    n = 50
    pose = Pose(torch.eye(3).expand(n, 3, 3), torch.zeros(n, 2))
    searched = Searched(
        (LocalResult(pose, torch.zeros(n)),), torch.zeros(n, dtype=torch.long), Content.of_particles(n, torch.ones(1))
    )
    divided = searched.divided(torch.arange(50.0))
    assert len(divided.found) == 2
    assert torch.equal(divided.rows_of(1), torch.arange(n) >= 30) and torch.equal(divided.rows_of(0), torch.arange(n) < 30)


def test_the_search_gives_another_particle_a_map_of_its_own(particle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a map of both, when the search is said to stall; the next start then leaves the other particle's images out."""
    p = particle(N, noise=1.0, brightness=4.0)
    setup = setup_of(p, mixed(p))
    monkeypatch.setattr(abinitio_module, "stalled", lambda history, config: len(history) == 1)
    both = 0.6 * p.volume + 0.4 * other_volume()
    history: list[Round] = []
    blocks: list[tuple[int, int, int]] = []
    generator = torch.Generator().manual_seed(1)
    rounds = ab_initio(setup, both, p.pose, torch.arange(N), generator, lambda *done: blocks.append(done), history)
    *_, last = rounds
    assert history[0].second is None and history[1].second is not None and last.second is not None
    first, second = last.maps
    assert likeness(first.volume, p.volume) > 0.8 > likeness(second.volume, p.volume)
    assert last.in_second == pytest.approx(1 / OTHER, abs=0.12) and last.shown == pytest.approx(1 - 1 / OTHER, abs=0.12)
    kept = of_first_map(setup, last, generator)
    assert is_other()[kept].float().mean() < 0.15 and kept[~is_other()].float().mean() > 0.8
    # subsets are larger, so that the first map has as many images as before
    assert subset_size([], CONFIG) == 120 < subset_size(history[:-1], CONFIG) and blocks[-1][1] > 150


def test_a_second_map_of_few_images_is_given_up(particle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    p = particle(N, noise=1.0, brightness=4.0)
    setup = setup_of(p, p.images)
    setup = dataclasses.replace(setup, config=dataclasses.replace(CONFIG, ab_initio_images=60, ab_initio_rounds=3))
    monkeypatch.setattr(abinitio_module, "stalled", lambda history, config: True)
    last = next(ab_initio(setup, p.volume, p.pose, torch.arange(N), torch.Generator().manual_seed(1)))
    # 40 % of 60 images are too few for a map
    assert last.second is None and last.in_second > 0
