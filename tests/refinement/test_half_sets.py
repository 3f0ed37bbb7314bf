"""Two half-sets: each depends only on its own images beyond the shared band."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import roma
import torch
from torch import Tensor

from ace_em.config import RefineConfig, SearchConfig
from ace_em.maths.fourier import centred_fft, radius_grid
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.point_group import nearest_copy, point_group
from ace_em.maths.rotations import angular_distance_deg
from ace_em.maths.slices import VolumeFT, volume_to_ft
from ace_em.metrics.alignment import Frame, turn_volume
from ace_em.metrics.fsc import fourier_shell_correlation, resolution_shell
from ace_em.physics.image_content import Content
from ace_em.physics.imaging import project
from ace_em.physics.noise import NoiseModel
from ace_em.physics.pose import Pose
from ace_em.refinement import backprojection
from ace_em.refinement import half_sets as half_sets_module
from ace_em.refinement.backprojection import Halves, accumulate, ssnr_from_fsc, wiener
from ace_em.refinement.half_sets import (
    HalfSets,
    HalfSetState,
    SearchUpdate,
    at_box,
    change_box,
    first_state,
    low_pass,
    next_round,
    refine_half_sets,
    search_finished,
    search_half_sets,
    settled_rows,
    shared_start,
)
from ace_em.refinement.noise_scale import Residuals, updated_intensity_scale, updated_noise
from ace_em.refinement.pose_refinement import LocalResult, refine_poses
from ace_em.refinement.search import PoseGrid, SearchSpace
from ace_em.refinement.shift_prior import ShiftPrior
from stacks import FixedStack
from volumes import symmetrise_volume

C1 = torch.eye(3)[None]
DIAMETER = 13.0  # of the particles in a box of 20


def noise_volume(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, n, n, generator=torch.Generator().manual_seed(seed))


def perturbed(pose: Pose, degrees: float, px: float, seed: int = 4) -> Pose:
    generator = torch.Generator().manual_seed(seed)
    turn = roma.rotvec_to_rotmat(torch.deg2rad(torch.tensor(degrees)) * torch.randn(len(pose), 3, generator=generator))
    return Pose(pose.rotation @ turn, pose.shift_px + px * torch.randn(len(pose), 2, generator=generator))


def random_pose(n: int, shift_px: Tensor, seed: int = 4) -> Pose:
    return Pose(roma.random_rotmat(n, generator=torch.Generator().manual_seed(seed)), shift_px)


def half_of(n: int) -> Tensor:
    """1 or 2, neither sorted nor of equal size."""
    return 1 + (torch.arange(n) % 5 % 2)


def sets_of(p: Any, images: FixedStack | None = None, group: Tensor = C1) -> HalfSets:
    images = p.images if images is None else images
    return HalfSets(images, half_of(len(images)), p.mask, group)


def started(volume: Tensor, pose: Pose, band: float) -> HalfSetState:
    return shared_start(blank_stack(volume.shape[-1], len(pose)), volume, pose, band)


def blank_stack(box: int, n: int) -> FixedStack:
    """Noise model of n images with unit noise."""
    half_plane = HalfPlane.within(box)
    empty = torch.zeros(n, len(half_plane), dtype=torch.complex64)
    return FixedStack.of(half_plane, empty, empty.real)


def state_of(moved_deg: list[float], resolution: int = 4, box: int = 20) -> HalfSetState:
    """A state with a given FSC limit and given pose changes."""
    fsc = (torch.arange(box // 2 + 1) <= resolution).float()
    nothing = torch.zeros(1)
    moved = torch.tensor(moved_deg)
    pose = Pose(torch.eye(3).expand(len(moved), 3, 3), torch.zeros(len(moved), 2))
    halves = Halves(nothing, nothing, nothing, fsc, nothing, nothing, fsc)
    content = Content.of_particles(len(moved), torch.ones(1))
    stack = blank_stack(box, len(moved))
    return dataclasses.replace(first_state(stack, pose, halves, 4.0), moved_deg=moved, content=content, explained=0.5)


def test_low_pass_keeps_low_and_removes_high_frequencies() -> None:
    volume = noise_volume(24)
    before, after = centred_fft(volume, 3), centred_fft(low_pass(volume, 6), 3)
    radius = radius_grid(24, 3)
    torch.testing.assert_close(after[radius <= 5], before[radius <= 5], atol=1e-3, rtol=1e-3)
    assert after[radius >= 7].abs().max() < 1e-3
    edge = radius == 6
    torch.testing.assert_close(after[edge], before[edge] / 2, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("old", "new"), [(16, 24), (24, 16), (17, 24), (16, 21), (20, 20)])
def test_change_box_keeps_the_transform(old: int, new: int) -> None:
    volume = noise_volume(old)
    volume = low_pass(volume, min(old, new) / 2 - 2)
    before, after = centred_fft(volume, 3), centred_fft(change_box(volume, new), 3)
    for k in [(0, 0, 0), (1, -2, 3), (-4, 0, 2), (5, -1, -1)]:
        a = before[tuple(old // 2 + i for i in k)]
        torch.testing.assert_close(after[tuple(new // 2 + i for i in k)], a, atol=1e-3, rtol=1e-4)
        assert a.abs() > 1
    torch.testing.assert_close(after.abs().square().sum(), before.abs().square().sum())


def test_at_box_changes_maps_and_poses() -> None:
    maps = [low_pass(noise_volume(16, seed), 5) for seed in range(5)]
    pose = random_pose(3, torch.tensor([[1.0, -2], [0, 3], [4, 5]]))
    halves = Halves(maps[0], maps[1], maps[2], torch.linspace(1, 0, 9), maps[3], maps[4], torch.ones(9))
    before = dataclasses.replace(first_state(blank_stack(16, 3), pose, halves, 6.0), moved_deg=torch.arange(3.0))
    after = at_box(before, 16, 20)
    for name in ("half1", "half2", "combined", "weak1", "weak2"):
        assert torch.equal(getattr(after.halves, name), change_box(getattr(before.halves, name), 20)), name
    assert torch.equal(after.pose.rotation, pose.rotation)
    torch.testing.assert_close(after.pose.shift_px, pose.shift_px * 1.25)
    assert after.noise is before.noise and after.intensity_scale is before.intensity_scale
    # a shell is the same frequency in every box
    assert (after.band, after.fsc143_shell) == (before.band, before.fsc143_shell)


def test_shared_start_is_zero_beyond_its_band() -> None:
    volume, pose = noise_volume(20), random_pose(4, torch.ones(4, 2))
    state = started(volume, pose, 5.0)
    for name in ("half1", "half2", "combined", "weak1", "weak2"):
        transform = centred_fft(getattr(state.halves, name), 3)
        assert transform[radius_grid(20, 3) >= 6].abs().max() < 1e-3
        torch.testing.assert_close(transform[8, 10, 12], centred_fft(volume, 3)[8, 10, 12], atol=1e-3, rtol=1e-3)
    assert state.band == 5 and state.fsc143_shell == pytest.approx(5.86, abs=0.01)
    # no pose counts as stable
    assert state.stable_share(179) == 0


def test_images_settle_after_two_stable_searches() -> None:
    config = SearchConfig(stable_deg=10.0)
    start = state_of([180.0] * 4)
    assert settled_rows([start], config) is None
    first, second = state_of([1.0, 1.0, 50.0, 50.0]), state_of([2.0, 40.0, 3.0, 60.0])
    found = settled_rows([start, first, second], config)
    assert found is not None and found.tolist() == [True, False, False, False]
    # the starting state is not a search
    found = settled_rows([start, first], config)
    assert found is not None and not found.any()
    # only the last two count
    found = settled_rows([start, second, first, state_of([1.0, 1.0, 1.0, 1.0])], config)
    assert found is not None and found.tolist() == [True, True, False, False]


def searched(*stable: float) -> list[HalfSetState]:
    """A starting state and rounds with the given fractions of stable poses."""
    return [state_of([180.0] * 100)] + [state_of([1.0] * round(100 * s) + [90.0] * round(100 - 100 * s)) for s in stable]


@pytest.mark.parametrize(
    ("stable", "wanted"),
    [
        ([], False),
        ([0.99], False),  # too few rounds to compare
        ([0.5, 0.98], True),
        ([0.98, 0.5], False),
        ([0.5, 0.6, 0.7, 0.8], False),  # still improving
        ([0.5, 0.8, 0.7, 0.8], True),  # no improvement
        ([0.7, 0.7, 0.7], False),
        ([0.9, 0.5, 0.6, 0.7, 0.8], False),  # an early good round does not count
        ([0.9, 0.5, 0.6, 0.7, 0.7], True),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], True),  # the maximum number of rounds
    ],
)
def test_search_stops_when_poses_are_stable(stable: list[float], wanted: bool) -> None:
    assert search_finished(searched(*stable), SearchConfig(max_rounds=6, stable_share=0.97)) is wanted


def test_search_continues_while_the_fsc_improves() -> None:
    config = SearchConfig(max_rounds=6, stable_share=0.97)
    still = [1.0] * 4
    start = state_of([180.0] * 4)
    assert not search_finished([start, state_of(still, 4), state_of(still, 5)], config)
    assert search_finished([start, state_of(still, 5), state_of(still, 5)], config)


def search_run(p: Any, sets: HalfSets, start: HalfSetState, **settings: Any) -> list[HalfSetState]:
    settings = {"spacing": 1.2, "shift": 0.08, "shift_step": 0.08, "top_k": 2, "last_band": 5.0, "stable_share": 2.0} | settings
    box = sets.stack.box
    space = SearchSpace(box, DIAMETER * box / 20, SearchConfig(**settings), sets.group)
    return list(search_half_sets(sets, [start], space, torch.Generator().manual_seed(0)))


def refine_run(p: Any, sets: HalfSets, start: HalfSetState, rounds: int, **settings: Any) -> list[HalfSetState]:
    return list(refine_half_sets(sets, [start], RefineConfig(max_rounds=rounds, **settings)))


def test_search_finds_the_poses_of_all_images(particle: Any) -> None:
    """From the blurred true map without poses: the bands, the rounds and their progress reports."""
    n = 150
    p = particle(n, noise=0.7)
    start = started(p.volume, random_pose(n, p.pose.shift_px + 0.3), 4.0)
    done: list[tuple[int, int]] = []
    space = SearchSpace(20, DIAMETER, SearchConfig(spacing=1.2, shift=0.08, shift_step=0.04, max_rounds=4, last_band=4.5), C1)
    states = list(search_half_sets(sets_of(p), [start], space, torch.Generator().manual_seed(0), lambda *d: done.append(d)))
    assert 2 <= len(states) <= 4
    assert {number for number, _ in done} == set(range(1, len(states) + 1))
    assert {images for number, images in done if number == 1} == {90, 60}
    error = angular_distance_deg(states[-1].pose.rotation, p.pose.rotation)
    assert (error < 8).float().mean() > 0.95
    assert (states[-1].pose.shift_px - p.pose.shift_px).norm(dim=-1).median() < 0.3
    assert states[-1].stable_share(10) > 0.95 and states[0].stable_share(10) < 0.1
    torch.testing.assert_close(
        states[1].moved_deg, angular_distance_deg(states[0].pose.rotation, states[1].pose.rotation), atol=0.1, rtol=0
    )
    assert states[-1].explained == pytest.approx(1, abs=0.1)
    # the band starts at the shared band and grows with the FSC, by at most GROWTH, up to the last band
    bands = [start.band, *(s.band for s in states)]
    for one, other in zip(bands, bands[1:], strict=False):
        assert one <= other <= min(1.35 * one, 4.5 * 20 / DIAMETER) + 1e-6
    assert bands[-1] > bands[0]
    # the explained fraction is measured in the band of the last round
    assert states[0].halves.fsc[:5].min() > 0.5


def test_first_search_ignores_earlier_rotations(particle: Any) -> None:
    """The earlier rotations are not used in the first round; only the shifts are, as the centre of the shift grid."""
    p = particle(60, noise=1.0)
    one, other = (
        search_run(p, sets_of(p), started(p.volume, random_pose(60, p.pose.shift_px, seed), 4.0), max_rounds=1)[0]
        for seed in (1, 2)
    )
    assert torch.equal(one.pose.rotation, other.pose.rotation) and torch.equal(one.halves.half1, other.halves.half1)
    assert not torch.equal(one.moved_deg, other.moved_deg)


def test_update_maps_settled_images_to_rows_of_the_whole_set(particle: Any) -> None:
    """On a grid of the true poses only, settled images keep their wrong poses; rows refer to the whole set, not the half."""
    p = particle(40, noise=0.5)
    far = Pose(p.pose.rotation @ torch.diag(torch.tensor([-1.0, 1, -1])), p.pose.shift_px)
    settled, mine = torch.arange(40) < 10, torch.arange(0, 40, 2)
    grid = PoseGrid(p.pose.rotation, torch.zeros(1, 2))

    def off(update: SearchUpdate, pose: Pose) -> Tensor:
        found = update(p.volume_ft, p.images.subset(mine), pose[mine], mine, 0)
        return angular_distance_deg(found.pose.rotation, p.pose.rotation[mine])

    later = off(SearchUpdate(grid, SearchConfig(), settled, False, lambda done: None), far)
    assert later[:5].min() > 20 and later[5:].max() < 3
    # the first search uses only the grid, here of wrong poses, even if the earlier poses are correct
    wrong = PoseGrid(far.rotation[:1], torch.zeros(1, 2))
    assert off(SearchUpdate(wrong, SearchConfig(), None, False, lambda done: None), p.pose).median() > 20
    none_settled = SearchUpdate(wrong, SearchConfig(), torch.zeros(40, dtype=torch.bool), False, lambda done: None)
    assert off(none_settled, p.pose).max() < 3


def test_refines_poses_and_maps(particle: Any) -> None:
    p = particle(400, box=24, noise=1.0)
    start = perturbed(p.pose, 2.0, 0.3)
    states = refine_run(p, sets_of(p), started(p.volume, start, 6.0), 5)
    # the first round makes maps at the input poses
    assert torch.equal(states[0].pose.rotation, start.rotation) and states[0].band == 6
    before, after = (angular_distance_deg(q.rotation, p.pose.rotation).median() for q in (start, states[-1].pose))
    assert after < 0.4 * before
    assert states[-1].band > 9
    assert states[-1].halves.fsc[:9].min() > 0.9
    for volume in (states[-1].halves.half1, states[-1].halves.half2):
        assert fourier_shell_correlation(volume, p.volume)[1:9].min() > 0.9
    torch.testing.assert_close(
        states[1].moved_deg, angular_distance_deg(start.rotation, states[1].pose.rotation), atol=1e-2, rtol=0
    )
    # the band is limited by GROWTH, by the last pose changes, and by Nyquist
    for one, other in zip(states[1:], states[2:], strict=False):
        reach = max(1.35 * one.band, 0.5 / torch.deg2rad(one.moved_deg.median()).item())
        assert one.band <= other.band <= min(12, reach + 1e-6)


def test_refinement_stops_when_poses_are_stable(particle: Any) -> None:
    p = particle(300)
    start = dataclasses.replace(started(p.volume, p.pose, 10.0), moved_deg=torch.zeros(300))
    # only the first maps, without a further round
    assert len(refine_run(p, sets_of(p), start, 5)) == 1
    assert len(refine_run(p, sets_of(p), start, 3, stable_deg=0.0)) == 4
    # a pose that was never refined is not stable
    assert len(refine_run(p, sets_of(p), started(p.volume, p.pose, 10.0), 5)) > 1


def test_band_growth_is_limited_by_the_pose_changes(particle: Any) -> None:
    """At shell r refinement converges within 1 / r rad; if poses changed by more, the band grows by GROWTH at most."""
    p = particle(200)
    for moved_deg, wanted in ((180.0, 4 * 1.35), (4.0, 0.5 / 0.0698), (0.6, 10.0)):
        start = dataclasses.replace(started(p.volume, p.pose, 4.0), moved_deg=torch.full((200,), moved_deg))
        states = refine_run(p, sets_of(p), start, 1)
        assert states[0].fsc143_shell > 9
        assert [s.band for s in states] == [4, pytest.approx(wanted, rel=1e-3)]


def with_other(p: Any, half: int) -> FixedStack:
    """The same images, but those of one half show a different particle."""
    image_ft = p.images.image_ft.clone()
    mine = half_of(len(image_ft)) == half
    image_ft[mine] = image_ft[mine].roll(1, 0).conj() * 1.3
    return p.images.with_images(image_ft)


def own_noise_only(stack: FixedStack, parts: list[Residuals]) -> NoiseModel:
    """As ``updated_noise``, but from the first half only."""
    return updated_noise(stack, parts[:1])


def own_mean_only(stack: FixedStack, parts: list[Residuals]) -> Tensor:
    """As ``updated_intensity_scale``, but with a mean of 1 in each half."""
    first = updated_intensity_scale(stack, parts[:1])
    return torch.where(half_of(len(stack)) == 1, first, updated_intensity_scale(stack, parts[1:]))


def hold_what_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise and mean scale are those of the first half, and the prior of the shifts is fixed."""
    prior = ShiftPrior(torch.zeros(2), 0.5)
    monkeypatch.setattr(half_sets_module, "shift_prior", lambda state, space: prior)
    monkeypatch.setattr(half_sets_module, "updated_noise", own_noise_only)
    monkeypatch.setattr(half_sets_module, "updated_intensity_scale", own_mean_only)


def two_steps(reference: VolumeFT, images: FixedStack, pose: Pose, rows: Tensor, done: int) -> LocalResult:
    return refine_poses(reference, images, pose, 2)


def test_half_1_does_not_depend_on_half_2(particle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit through search and refinement, with the shared FSC, noise and prior of the shifts held fixed."""
    p = particle(120, noise=1.0)
    start, first = started(p.volume, random_pose(120, p.pose.shift_px), 4.0), half_of(120) == 1
    monkeypatch.setattr(backprojection, "fourier_shell_correlation", lambda a, b: torch.linspace(1, 0.2, 11))
    hold_what_is_shared(monkeypatch)

    def rounds(sets: HalfSets) -> list[HalfSetState]:
        states = search_run(p, sets, start, max_rounds=3)
        calm = dataclasses.replace(states[-1], moved_deg=torch.ones(120))
        return states + list(refine_half_sets(sets, [calm], RefineConfig(max_rounds=1, stable_deg=0.0)))

    one, other = rounds(sets_of(p)), rounds(sets_of(p, with_other(p, 2)))
    assert len(one) == len(other) == 5
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.halves.half1, b.halves.half1)
        assert torch.equal(a.halves.weak1, b.halves.weak1)
        assert torch.equal(a.pose.rotation[first], b.pose.rotation[first])
        assert torch.equal(a.pose.shift_px[first], b.pose.shift_px[first])
        assert torch.equal(a.intensity_scale[first], b.intensity_scale[first])
        assert not torch.equal(a.halves.half2, b.halves.half2)
        assert not torch.equal(a.pose.rotation[~first], b.pose.rotation[~first])
    # noise and scale did change
    assert not torch.allclose(one[-1].noise.whitening_power, torch.ones(11), atol=1e-3)


def test_half_2_depends_on_half_1_only_through_its_frame(particle: Any) -> None:
    """After a search from the shared map, a different first half only rotates and shifts the second as a whole."""
    p = particle(120, noise=1.0)
    start, second = started(p.volume, random_pose(120, p.pose.shift_px), 4.0), half_of(120) == 2
    one, other = (search_run(p, sets_of(p, images), start, max_rounds=1)[0] for images in (p.images, with_other(p, 1)))
    turn = other.pose.rotation[second] @ one.pose.rotation[second].mT
    torch.testing.assert_close(turn, turn[:1].expand_as(turn), atol=1e-4, rtol=0)
    # both halves have the same reference here, so there is no drift
    assert angular_distance_deg(turn[0], torch.eye(3)) < 0.5


def test_a_round_twice_gives_the_same_bits(particle: Any) -> None:
    """Sets and states are values, which a round does not modify."""
    p = particle(80, noise=1.0)
    sets, start = sets_of(p), started(p.volume, perturbed(p.pose, 2.0, 0.3), 6.0)
    one, again = (next_round(sets, next_round(sets, start, 6.0, two_steps), 6.0, two_steps) for _ in range(2))
    for name in ("pose.rotation", "halves.half1", "intensity_scale", "noise.whitening_power", "moved_deg"):
        a, b = one, again
        for part in name.split("."):
            a, b = getattr(a, part), getattr(b, part)
        assert torch.equal(a, b), name  # type: ignore[arg-type]
    searches = [search_run(p, sets, start, max_rounds=2)[-1] for _ in range(2)]
    assert torch.equal(searches[0].intensity_scale, searches[1].intensity_scale)
    assert searches[0].intensity_scale.std() > 0.01


def test_halves_interact_only_through_the_fsc(particle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the FSC held fixed, the poses of a round are the same and the maps differ only by the prior from the FSC."""
    hold_what_is_shared(monkeypatch)
    p = particle(120, noise=1.0)
    start, first = started(p.volume, perturbed(p.pose, 2.0, 0.3), 6.0), half_of(120) == 1
    runs = [(sets, next_round(sets, start, 6.0, two_steps)) for sets in (sets_of(p), sets_of(p, with_other(p, 2)))]
    (_, one), (_, other) = runs
    assert torch.equal(one.pose.rotation[first], other.pose.rotation[first])
    assert (one.halves.fsc - other.halves.fsc).abs().max() > 0.1
    for sets, state in runs:
        prior = ssnr_from_fsc(state.halves.fsc, combined=False).clamp(min=0.02)
        stack = sets.stack_of(state)
        alone = wiener(accumulate(stack.subset(sets.rows[0]), state.pose[sets.rows[0]]), prior) * p.mask
        torch.testing.assert_close(state.halves.half1, alone, atol=1e-4, rtol=1e-3)
        # the map of both has twice the signal over noise, and no more
        both = accumulate(stack, state.pose, torch.nonzero(state.shown)[:, 0])
        prior = ssnr_from_fsc(state.halves.fsc, combined=True).clamp(min=0.04)
        torch.testing.assert_close(state.halves.combined, wiener(both, prior) * p.mask, atol=1e-3, rtol=1e-2)


def test_weakly_regularised_halves_do_not_depend_on_the_fsc(particle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the same for any FSC, over the whole box, and on the scale of the particle."""
    p = particle(300, noise=0.5)
    state = started(p.volume, p.pose, 6.0)
    free = next_round(sets_of(p), state, 6.0, None).halves
    monkeypatch.setattr(backprojection, "fourier_shell_correlation", lambda a, b: torch.linspace(0.9, 0.0, 11))
    held = next_round(sets_of(p), state, 6.0, None).halves
    assert torch.equal(free.weak1, held.weak1) and torch.equal(free.weak2, held.weak2)
    assert not torch.allclose(free.half1, held.half1, atol=1e-3)
    outside = p.mask < 1e-3
    assert (free.half1[outside]).abs().max() < 0.01 * free.half1.abs().max()
    assert free.weak1[outside].abs().mean() > 0.01 * free.weak1.abs().mean()
    slope = (free.weak1 * p.volume * p.mask).sum() / (p.volume.square() * p.mask).sum()
    assert slope == pytest.approx(1, abs=0.05)


def turned_by(turn: Tensor) -> Callable[[VolumeFT, FixedStack, Pose, Tensor], LocalResult]:
    """An update that takes every pose to ``turn R``."""

    def update(reference: VolumeFT, images: FixedStack, pose: Pose, rows: Tensor, done: int) -> LocalResult:
        return LocalResult(Pose(turn @ pose.rotation, pose.shift_px), torch.zeros(len(pose)))

    return update


def test_pose_changes_are_measured_modulo_the_group(particle: Any) -> None:
    """A pose and its symmetry copy are the same view; without the group the change would be 180 degrees."""
    p, group = particle(60), point_group("D2").float()
    start, first = started(p.volume, p.pose, 6.0), half_of(60) == 1
    slightly = roma.rotvec_to_rotmat(torch.tensor([0.0, 0.0, 0.1])) @ group[2]
    for turn, wanted in ((group[1], 0.0), (group[3], 0.0), (slightly, 5.73)):
        moved = next_round(sets_of(p, group=group), start, 6.0, turned_by(turn)).moved_deg
        torch.testing.assert_close(moved[first], torch.full((36,), wanted), atol=0.1, rtol=0)
    without = next_round(sets_of(p), start, 6.0, turned_by(group[1])).moved_deg
    torch.testing.assert_close(without[first], torch.full((36,), 180.0), atol=0.1, rtol=0)


def test_maps_of_a_group_are_symmetric(particle: Any) -> None:
    p, group = particle(100, noise=1.0), point_group("C3").float()

    def likeness(group_of_run: Tensor) -> float:
        volume = next_round(sets_of(p, group=group_of_run), started(p.volume, p.pose, 6.0), 6.0, None).halves.half2
        return torch.corrcoef(torch.stack([volume.flatten(), symmetrise_volume(volume, group).flatten()]))[0, 1].item()

    assert likeness(group) > 0.98
    assert likeness(C1) < 0.9


def test_a_search_with_a_group_finds_poses_up_to_it(particle: Any) -> None:
    """Images of a map with D2, searched on one asymmetric unit."""
    n, group = 80, point_group("D2").float()
    p = particle(n)
    volume = symmetrise_volume(p.volume * p.mask, group)
    images = p.images.with_images(project(volume_to_ft(volume), p.images.effective_ctf, p.images.half_plane, p.pose))
    state = search_run(
        p, sets_of(p, images, group), started(volume, random_pose(n, p.pose.shift_px), 5.0), max_rounds=1, spacing=1.0, top_k=4
    )[0]
    copy = nearest_copy(state.pose.rotation, p.pose.rotation, group)
    assert (angular_distance_deg(copy, p.pose.rotation) < 8).float().mean() > 0.9
    assert fourier_shell_correlation(state.halves.combined, volume)[1:6].min() > 0.9


def test_the_frame_of_the_second_half_follows_the_maps(particle: Any) -> None:
    """With half-maps in different frames, the poses of the second half are transformed by the frame found from the maps."""
    p = particle(200, noise=0.5)
    apart = Frame(roma.rotvec_to_rotmat(torch.deg2rad(torch.tensor([2.0, -1.5, 1.0]))), False, torch.tensor([0.3, -0.2, 0.25]))
    start = next_round(sets_of(p), started(p.volume, p.pose, 8.0), 8.0, None)
    halves = dataclasses.replace(start.halves, half2=turn_volume(start.halves.half2, apart))
    state = next_round(sets_of(p), dataclasses.replace(start, halves=halves), 8.0, two_steps)
    first = half_of(200) == 1
    for half in (first, ~first):
        common = roma.special_procrustes((state.pose.rotation[half] @ p.pose.rotation[half].mT).sum(0))
        assert angular_distance_deg(common, torch.eye(3)) < 0.4
    # the images of the second half were fitted to the displaced map
    found = two_steps(volume_to_ft(halves.half2), p.images.subset(~first).band(8.0), p.pose[~first], ~first, 0)
    assert angular_distance_deg(found.pose.rotation, p.pose.rotation[~first]).median() > 1.5
    shift = (state.pose.shift_px - p.pose.shift_px)[~first].norm(dim=-1).median()
    assert shift < 0.5 * (found.pose.shift_px - p.pose.shift_px[~first]).norm(dim=-1).median()


def test_fsc_of_noise_is_zero_beyond_the_shared_band(particle: Any) -> None:
    """Pure noise images, searched and refined against a map: beyond its band the half-maps do not correlate."""
    band, n = 5.0, 300
    p = particle(n, box=24, noise=1.0)
    sets = sets_of(p, particle(n, box=24, noise=1.0, brightness=0.0, seed=3).images)
    states = search_run(p, sets, started(p.volume, p.pose, band), max_rounds=3, last_band=6.0)
    assert len(states) == 3
    # within the band the maps do reproduce the starting map (model bias)
    assert states[0].halves.fsc[2:5].mean() > 0.3
    states += refine_run(p, sets, dataclasses.replace(states[-1], moved_deg=torch.ones(n)), 2, stable_deg=0.0)
    assert len(states) == 6
    for state in states:
        # the mask smears a shell into its neighbours; of so few shells, noise has a mean of 0 to 0.035
        beyond = state.halves.fsc[int(band) + 3 :]
        assert beyond.mean() < 0.1 and beyond.max() < 0.3


def test_half_map_resolution_matches_that_against_the_truth(particle: Any) -> None:
    """From no poses: where the half-map FSC is 0.143, the FSC of the combined map with the true map is 0.5
    (Rosenthal and Henderson 2003: sqrt(2 FSC / (1 + FSC)))."""
    n = 400
    p = particle(n, box=28, noise=1.0, brightness=1.0, closed_form=True)
    sets = sets_of(p)
    states = search_run(p, sets, started(p.volume, random_pose(n, p.pose.shift_px), 5.0), max_rounds=2, last_band=5.5)
    last = refine_run(p, sets, states[-1], 3)[-1]
    fsc = last.halves.fsc
    truth = fourier_shell_correlation(last.halves.combined, p.volume * p.mask)
    shell, true_shell = resolution_shell(fsc, 0.143), resolution_shell(truth, 0.5)
    assert 8 < shell < 13.5  # the curve does fall below the threshold
    assert shell == pytest.approx(true_shell, abs=1)
    expected = (2 * fsc.clamp(min=0) / (1 + fsc.clamp(min=0))).sqrt()
    torch.testing.assert_close(truth[3 : int(shell) + 1], expected[3 : int(shell) + 1], atol=0.1, rtol=0)
