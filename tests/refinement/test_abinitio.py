"""The ab initio search: stopping, explained signal, correction of wrong poses, and validation by held-out images."""

import dataclasses
from typing import Any

import pytest
import roma
import torch
from torch import Tensor

from ace_em.config import SearchConfig
from ace_em.maths.fourier import centred_fft, radius_grid
from ace_em.maths.radial_mean import features
from ace_em.maths.rotations import angular_distance_deg
from ace_em.maths.slices import volume_to_ft
from ace_em.metrics.fsc import fourier_shell_correlation
from ace_em.physics.imaging import project, shift_phase
from ace_em.physics.pose import Pose
from ace_em.refinement import held_out as held_out_module
from ace_em.refinement.abinitio import AbInitioSetup, Round, ab_initio, band_per_diameter, finished, stalled
from ace_em.refinement.backprojection import Halves, accumulate, reconstruct_halves
from ace_em.refinement.explained import expected_share, explained_share
from ace_em.refinement.held_out import held_out_rows, judge_held_out, with_spectrum_of
from ace_em.refinement.search import SearchSpace
from ace_em.refinement.second_map import PosedMap
from ace_em.simulation.density import density_map
from ace_em.simulation.structure import Atoms
from stacks import FixedStack

CONFIG = SearchConfig(ab_initio_rounds=6, ab_initio_explained=0.9)
# a shift grid about the last shift of each image, fine enough to find its pose in one round
FINE = SearchConfig(spacing=0.9, shift=0.1, shift_step=0.05)
DIAMETER = 13.0
C1 = torch.eye(3)[None]


def setup_of(p: Any, config: SearchConfig, images: FixedStack | None = None, diameter: float = DIAMETER) -> AbInitioSetup:
    images = p.images if images is None else images
    return AbInitioSetup(images, p.mask, SearchSpace(images.box, diameter, config, C1), config)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_pose(n: int, seed: int, shift_px: Tensor) -> Pose:
    return Pose(roma.random_rotmat(n, generator=generator(seed)), shift_px)


def round_of(explained: float, expected: float = 1.0, second: bool = False) -> Round:
    nothing = torch.zeros(1)
    pose = Pose(nothing, nothing)
    posed = PosedMap(nothing, pose) if second else None
    return Round(1, pose, Halves(*[nothing] * 7), 5.0, nothing, 0.0, explained, expected, 1.0, 0.3 * second, posed)


def round_with(volume: Tensor, pose: Pose, band: float) -> Round:
    """A state with the given map."""
    halves = Halves(volume, volume, volume, fsc := torch.ones(len(volume) // 2 + 1), volume, volume, fsc)
    return Round(1, pose, halves, band, torch.zeros(1), 1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("explained", "wanted"),
    [
        ([], True),
        ([0.99, 0.99, 0.99], True),  # too few rounds to see a gain
        ([0.95, 0.95, 0.95, 0.955], False),  # high and levelled off
        ([0.92, 0.93, 0.94, 0.95], True),  # still improving
        ([0.5, 0.5, 0.5, 0.5], True),  # levelled off, but too low
        ([0.2, 0.95, 0.95, 0.95, 0.95], False),  # early improvements do not count
        ([0.95, 0.95, 0.95, 0.5], True),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], False),  # the maximum number of rounds
    ],
)
def test_search_stops_when_explained_levels_off(explained: list[float], wanted: bool) -> None:
    assert finished([round_of(e) for e in explained], CONFIG) is not wanted


def test_beside_a_second_map_it_ends_when_the_first_gains_no_more() -> None:
    config = dataclasses.replace(CONFIG, ab_initio_rounds=20)
    single, flat = [round_of(0.6)] * 4, [round_of(0.6, second=True)] * 10
    assert not finished(single, config) and not finished([*single, *flat[:-1]], config) and finished([*single, *flat], config)
    gaining = [round_of(0.6 + 0.01 * i, second=True) for i in range(12)]
    assert not finished([*single, *gaining], config)


@pytest.mark.parametrize(
    ("explained", "expected", "wanted"),
    [
        ([0.7, 0.7], 0.9, False),  # too early
        ([0.7, 0.7, 0.7], 0.9, True),
        ([0.6, 0.7, 0.75], 0.9, False),  # still gaining
        ([0.6, 0.75, 0.74, 0.745], 0.9, True),
        ([0.7, 0.7, 0.7], 0.74, False),  # noise allows no more
        ([0.95, 0.95, 0.95], 0.97, False),
    ],
)
def test_a_search_that_stalls(explained: list[float], expected: float, wanted: bool) -> None:
    assert stalled([round_of(e, expected) for e in explained], CONFIG) is wanted


def test_the_band_grows() -> None:
    config = SearchConfig(first_band=5.0, last_band=9.0, ab_initio_rounds=4)
    assert [band_per_diameter(n, config) for n in (1, 2, 3, 4, 5, 6, 20)] == [5, 6, 7, 8, 9, 9, 9]


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_explained_share_separates_correct_from_wrong_poses(particle: Any, noise: float) -> None:
    p = particle(400, noise=noise, brightness=3.0)
    images = p.images.band(7)

    def share(volume_ft: Any, pose: Pose) -> float:
        predicted = project(volume_ft, images.effective_ctf, images.half_plane, pose)
        residual = (images.image_ft - predicted).abs().square().sum(-1)
        return explained_share(images.power(), residual, images.noise_power())

    assert share(p.volume_ft, p.pose) == pytest.approx(1, abs=0.02)
    nothing = dataclasses.replace(p.volume_ft, grid=0 * p.volume_ft.grid)
    assert share(nothing, p.pose) == pytest.approx(0, abs=1e-5)
    # half of the amplitude explains three quarters of the power
    assert share(dataclasses.replace(p.volume_ft, grid=0.5 * p.volume_ft.grid), p.pose) == pytest.approx(0.75, abs=0.02)
    assert share(p.volume_ft, random_pose(400, 9, p.pose.shift_px)) < 0.7


def test_rounds_correct_wrong_poses(particle: Any) -> None:
    """From random to correct poses, on subsets of the images that are not held out."""
    n = 120
    p = particle(n, box=20, noise=0.5)
    # far beyond the shift grid, so they are found only if it is centred on the last shifts
    far = torch.tensor([4.0, -4.0])
    p = dataclasses.replace(p, images=p.images.with_images(p.images.image_ft * shift_phase(p.images.half_plane, far)))
    p.pose.shift_px.add_(far)
    config = dataclasses.replace(FINE, first_band=3.5, last_band=4.5, ab_initio_rounds=3, ab_initio_images=80)
    start = random_pose(n, 1, p.pose.shift_px + 0.4)
    held_out, seen = torch.arange(0, n, 10), torch.tensor([i for i in range(n) if i % 10])
    blocks: list[tuple[int, int, int]] = []
    states = list(ab_initio(setup_of(p, config), p.volume, start, seen, generator(2), lambda *done: blocks.append(done)))
    assert [s.number for s in states] == [1, 2, 3]
    assert [len(s.moved_deg) for s in states] == [80] * 3
    assert blocks[-1] == (3, 80, 80) and blocks[0][:2] == (1, 80)
    # each round changes only the poses of a new random subset, and never those held out
    poses = [start, *(s.pose for s in states)]
    changed = [(a.rotation != b.rotation).any(-1).any(-1) for a, b in zip(poses, poses[1:], strict=False)]
    assert [int(c.sum()) for c in changed] == [80] * 3
    assert not torch.equal(changed[0], changed[1]) and not torch.equal(changed[1], changed[2])
    for state in states:
        assert torch.equal(state.pose.rotation[held_out], start.rotation[held_out])
        assert torch.equal(state.pose.shift_px[held_out], start.shift_px[held_out])
    last, looked_at = states[-1], torch.stack(changed).any(0)
    assert looked_at.sum() > 100
    error = angular_distance_deg(last.pose.rotation, p.pose.rotation)[looked_at]
    assert (error < 10).float().mean() > 0.9
    assert (last.pose.shift_px - p.pose.shift_px)[looked_at].norm(dim=-1).median() < 0.3
    assert last.stable == (last.moved_deg < config.stable_deg).float().mean().item() and last.stable > 0.5
    assert states[0].stable < 0.1
    assert 0.8 < last.explained < 1.1
    torch.testing.assert_close(
        last.moved_deg.sort().values,
        angular_distance_deg(states[-2].pose.rotation, last.pose.rotation)[changed[2]].sort().values,
        atol=0.05,
        rtol=0,
    )
    assert [s.band for s in states] == pytest.approx([b * 20 / DIAMETER for b in (3.5, 3.5 + 1 / 3, 3.5 + 2 / 3)])
    # the input poses are not modified
    assert torch.equal(start.shift_px, p.pose.shift_px + 0.4)


def test_rounds_follow_the_generator(particle: Any) -> None:
    p = particle(30, box=16, noise=1.0)
    setup = setup_of(p, SearchConfig(first_band=2.0, last_band=2.0, ab_initio_images=20, spacing=2.0), diameter=10.0)

    def first(seed: int) -> Round:
        return next(ab_initio(setup, p.volume, p.pose, torch.arange(30), generator(seed)))

    one, same, other = first(0), first(0), first(1)
    assert torch.equal(one.pose.rotation, same.pose.rotation) and torch.equal(one.halves.combined, same.halves.combined)
    assert not torch.equal(one.pose.rotation, other.pose.rotation)


def test_each_round_uses_its_band_and_the_previous_map(particle: Any) -> None:
    """From the correct poses and half of the true map, with noise beyond the band."""
    p = particle(60, box=16)
    config = dataclasses.replace(FINE, first_band=3.0, last_band=3.0, ab_initio_images=60)

    def two_rounds(images: FixedStack) -> list[Round]:
        setup = setup_of(p, config, images, diameter=10.0)
        rounds = ab_initio(setup, p.volume / 2, p.pose, torch.arange(60), generator(0))
        return [next(rounds), next(rounds)]

    first, second = two_rounds(p.images)
    # half of the amplitude explains three quarters of the power; the map of the first round is whole
    assert first.explained == pytest.approx(0.75, abs=0.05)
    assert second.explained > 0.9
    beyond = p.images.half_plane.radius > first.band
    assert beyond.sum() > 10
    rubbish = p.images.with_images(torch.where(beyond, 300.0, p.images.image_ft))
    assert torch.equal(two_rounds(rubbish)[0].pose.rotation, first.pose.rotation)


@pytest.mark.parametrize(("n", "wanted"), [(1000, 150), (300, 60), (101, 20)])
def test_at_most_a_fifth_is_held_out(n: int, wanted: int) -> None:
    config = SearchConfig(held_out=150)
    held_out, seen = held_out_rows(n, config, generator(0))
    assert len(held_out) == wanted
    # every image is in exactly one of the two sets
    assert sorted([*held_out.tolist(), *seen.tolist()]) == list(range(n))
    again, other = held_out_rows(n, config, generator(0))[0], held_out_rows(n, config, generator(1))[0]
    assert torch.equal(held_out, again)
    assert set(held_out.tolist()) != set(other.tolist())
    # spread over the file, whose order may be sorted
    assert held_out.max() - held_out.min() > n / 2


def another_map(p: Any) -> Tensor:
    """Different atoms with the same total weight."""
    fixed = generator(99)
    position = torch.randn(25, 3, generator=fixed).clamp(-1.6, 1.6) * torch.tensor([3.0, 2.5, 2.0])
    volume = density_map(Atoms(position, 1.5 * torch.rand(25, generator=fixed) - 0.5), p.images.box, 1.0, 4.0)
    return volume * (p.volume.norm() / volume.norm())


def test_held_out_images_identify_the_correct_map(particle: Any) -> None:
    n, rows = 200, torch.arange(0, 200, 3)
    p = particle(n, noise=1.0, brightness=4.0)
    setup = setup_of(p, dataclasses.replace(FINE, top_k=2))
    start = random_pose(n, 5, p.pose.shift_px)
    judged, right = judge_held_out(setup, round_with(p.volume, start, 7.0), rows, generator(0))
    assert right.explained == pytest.approx(1, abs=0.05)
    assert right.against_null > 10 and 0.8 < right.expected <= right.explained
    # only the poses of held-out images change
    error = angular_distance_deg(judged.pose.rotation, p.pose.rotation)
    assert (error[rows] < 10).float().mean() > 0.9
    others = torch.ones(n, dtype=torch.bool)
    others[rows] = False
    assert torch.equal(judged.pose.rotation[others], start.rotation[others])
    wrong = judge_held_out(setup, round_with(another_map(p), start, 7.0), rows, generator(0))[1]
    assert wrong.explained < right.explained - 0.2 and wrong.explained < wrong.expected - 0.1
    assert wrong.against_null < right.against_null


@pytest.mark.parametrize("brightness", [1.0, 3.0])
def test_a_correct_map_reaches_the_expected_share(particle: Any, brightness: float) -> None:
    """A map from 300 images at their true poses, limited only by noise, tested on 300 other images."""
    p = particle(600, noise=1.0, brightness=brightness)
    halves = [accumulate(p.images.subset(slice(i, 300, 2)), p.pose[i:300:2]) for i in (0, 1)]
    volume_ft = volume_to_ft(reconstruct_halves(halves[0], halves[1], p.mask).combined)
    others, pose, band = p.images.subset(slice(300, None)), p.pose[300:], 7.0
    images = others.band(band)
    predicted = project(volume_ft, images.effective_ctf, images.half_plane, pose)
    residual, power = (images.image_ft - predicted).abs().square().sum(-1), images.power()
    noise_power, n = images.noise_power(), len(images.half_plane)
    explained = explained_share(power, residual, noise_power)
    expected = expected_share(power, noise_power, n, band, 300)
    assert expected < explained < 1.0
    # the bound is within a few times the effect of the noise in the map
    noise = (others.band(band).image_ft.abs().square().sum(1).mean() - len(images.half_plane)).item()
    in_noise_powers = (1 - expected) * noise / len(images.half_plane)
    assert 0.06 < in_noise_powers < 0.12
    # fewer images make a worse map; without signal the bound is 0
    assert expected_share(power, noise_power, n, band, 50) < expected
    drowned = particle(300, noise=1.0, brightness=0.05).images.band(band)
    assert expected_share(drowned.power(), drowned.noise_power(), n, band, 50) == 0


def test_with_spectrum_of_keeps_the_phases(particle: Any) -> None:
    p = particle(1)
    volume = torch.randn(20, 20, 20, generator=generator(0))
    found = with_spectrum_of(volume, p.volume)
    shells = radius_grid(20, 3).round().long().flatten()
    power, wanted = (torch.zeros(20).index_add_(0, shells, centred_fft(v, 3).abs().square().flatten()) for v in (found, p.volume))
    torch.testing.assert_close(power, wanted, rtol=1e-3, atol=1e-6 * float(wanted.max()))
    # within each shell the volume is only scaled
    fsc = fourier_shell_correlation(found, volume)
    assert fsc.min() > 0.999
    assert fourier_shell_correlation(found, p.volume)[2:].abs().max() < 0.4


def test_noise_is_explained_no_better_than_by_the_null_map(particle: Any) -> None:
    """Noise fits any map to some extent, and a phase-randomised map equally well."""
    n = 300
    p = particle(n, box=16, noise=1.0, brightness=0.0)
    config = SearchConfig(first_band=4.0, last_band=4.0, ab_initio_rounds=3, ab_initio_images=120, spacing=1.5, top_k=2)
    setup = setup_of(p, config, diameter=10.0)
    held_out, seen = held_out_rows(n, config, generator(1))
    reference = particle(1, box=16).volume
    *_, last = ab_initio(setup, reference, random_pose(n, 3, p.pose.shift_px), seen, generator(2))
    found = judge_held_out(setup, last, held_out, generator(3))[1]
    assert found.explained > 0.5 and found.expected == 0
    assert abs(found.against_null) < 5


def test_a_radially_symmetric_map_is_no_evidence_for_the_poses(particle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of a spherical shell, and a map with wrong lumps on it: all signal is explained by the radial mean alone."""
    n, rows = 300, torch.arange(0, 300, 2)
    p = particle(n, noise=1.0, brightness=0.0)
    shell = 3 * torch.exp(-(radius_grid(20, 3) - 5).square() / 3)
    lumps = p.mask * features(torch.randn(20, 20, 20, generator=generator(4))) * 0.15
    clean = project(volume_to_ft(shell), p.images.effective_ctf, p.images.half_plane, p.pose)
    images = p.images.with_images(p.images.image_ft + clean)
    setup = setup_of(p, dataclasses.replace(FINE, top_k=2), images)
    start = round_with(shell + lumps, random_pose(n, 5, p.pose.shift_px), 7.0)
    found = judge_held_out(setup, start, rows, generator(0))[1]
    assert found.explained > 0.8 and found.against_null < SearchConfig().least_z
    # the shell itself beats random phases by far
    monkeypatch.setattr(held_out_module, "radial_mean", torch.zeros_like)
    monkeypatch.setattr(held_out_module, "features", lambda volume: volume)
    assert judge_held_out(setup, start, rows, generator(0))[1].against_null > 2 * SearchConfig().least_z
