"""Two half-sets: each learns from its own images; what they share is told apart from what they agree on."""

import dataclasses
from typing import Any

import pytest
import roma
import torch
from torch import Tensor

from ace_em.config import RefineConfig
from ace_em.data.preprocess import WorkingSet
from ace_em.maths.fourier import centred_fft, radius_grid
from ace_em.maths.rotations import angular_distance_deg
from ace_em.metrics.fsc import fourier_shell_correlation
from ace_em.physics.pose import Pose
from ace_em.refinement import backprojection
from ace_em.refinement.backprojection import Halves, accumulate, ssnr_from_fsc, wiener
from ace_em.refinement.half_sets import _into_frame_of, at_box, change_box, low_pass, refine_half_sets


def noise_volume(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, n, n, generator=torch.Generator().manual_seed(seed))


def perturbed(pose: Pose, degrees: float, px: float, seed: int = 4) -> Pose:
    generator = torch.Generator().manual_seed(seed)
    turn = roma.rotvec_to_rotmat(torch.deg2rad(torch.tensor(degrees)) * torch.randn(len(pose), 3, generator=generator))
    return Pose(pose.rotation @ turn, pose.shift_px + px * torch.randn(len(pose), 2, generator=generator))


def same_map(volume: Tensor) -> Halves:
    return Halves(volume, volume, volume, torch.ones(volume.shape[-1] // 2 + 1))


def test_low_pass_keeps_and_cuts() -> None:
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


def test_at_box_changes_all_three_maps() -> None:
    maps = [low_pass(noise_volume(16, seed), 5) for seed in range(3)]
    halves = at_box(Halves(*maps, torch.ones(9)), 20)
    for old, new in zip(maps, (halves.half1, halves.half2, halves.combined), strict=True):
        assert torch.equal(new, change_box(old, 20))


def half_sets(n: int) -> Tensor:
    """Neither sorted nor of equal size."""
    return 1 + (torch.arange(n) % 5 % 2)


def run(p: Any, images: WorkingSet, start: Pose, rounds: int, **settings: Any) -> list[Any]:
    config = RefineConfig(max_rounds=rounds, **settings)
    reference = same_map(low_pass(p.volume, 6))
    return list(refine_half_sets(images, reference, start, half_sets(len(start)), p.mask, 6.0, config))


def test_refines_poses_and_maps(particle: Any) -> None:
    p = particle(400, box=24, noise=1.0)
    start = perturbed(p.pose, 2.0, 0.3)
    states = run(p, p.images, start, 4)
    before, after = (angular_distance_deg(q.rotation, p.pose.rotation).median() for q in (start, states[-1].pose))
    assert after < 0.4 * before
    assert states[0].band == 6 and states[-1].band > 9
    assert states[-1].halves.fsc[:9].min() > 0.9
    for volume in (states[-1].halves.half1, states[-1].halves.half2):
        assert fourier_shell_correlation(volume, p.volume)[1:9].min() > 0.9
    torch.testing.assert_close(
        states[0].moved_deg, angular_distance_deg(start.rotation, states[0].pose.rotation), atol=1e-2, rtol=0
    )
    # the band grows by a third at most, and stops at Nyquist
    for one, other in zip(states, states[1:], strict=False):
        assert one.band <= other.band <= min(12, 1.35 * one.band + 1e-6)


def test_done_when_poses_stand_still(particle: Any) -> None:
    p = particle(300, box=20)
    reference = same_map(p.volume)
    rounds = list(refine_half_sets(p.images, reference, p.pose, half_sets(300), p.mask, 10.0, RefineConfig(max_rounds=5)))
    assert len(rounds) == 1
    restless = RefineConfig(max_rounds=3, stable_deg=0.0)
    assert len(list(refine_half_sets(p.images, reference, p.pose, half_sets(300), p.mask, 10.0, restless))) == 3


def with_other_second_half(p: Any) -> WorkingSet:
    """The same images of half 1; those of half 2 are of something else."""
    images = dataclasses.replace(p.images, image_ft=p.images.image_ft.clone())
    second = half_sets(len(images)) == 2
    images.image_ft[second] = images.image_ft[second].roll(1, 0).conj() * 1.3
    return images


def test_half_1_does_not_depend_on_half_2(particle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit over three rounds, once the curve that the halves share is held fixed."""
    p = particle(120, noise=1.0)
    start, first = perturbed(p.pose, 2.0, 0.3), half_sets(120) == 1
    monkeypatch.setattr(backprojection, "fourier_shell_correlation", lambda a, b: torch.linspace(1, 0.2, 11))
    one = run(p, p.images, start, 3, stable_deg=0.0)
    other = run(p, with_other_second_half(p), start, 3, stable_deg=0.0)
    assert len(one) == len(other) == 3
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.halves.half1, b.halves.half1)
        assert torch.equal(a.pose.rotation[first], b.pose.rotation[first])
        assert torch.equal(a.pose.shift_px[first], b.pose.shift_px[first])
        assert not torch.equal(a.halves.half2, b.halves.half2)
        assert not torch.equal(a.pose.rotation[~first], b.pose.rotation[~first])


def test_the_halves_meet_in_the_fsc_alone(particle: Any) -> None:
    """Without holding it: the first round's poses are the same, and the map differs by the prior that the FSC gives."""
    p = particle(120, noise=1.0)
    start, first = perturbed(p.pose, 2.0, 0.3), half_sets(120) == 1
    rows = torch.nonzero(first)[:, 0]
    one, other = run(p, p.images, start, 1)[0], run(p, with_other_second_half(p), start, 1)[0]
    assert torch.equal(one.pose.rotation[first], other.pose.rotation[first])
    assert (one.halves.fsc - other.halves.fsc).abs().max() > 0.1
    for state in (one, other):
        prior = ssnr_from_fsc(state.halves.fsc, combined=False).clamp(min=0.02)
        alone = wiener(accumulate(p.images.rows(rows), state.pose[rows]), prior) * p.mask
        torch.testing.assert_close(state.halves.half1, alone, atol=1e-5, rtol=1e-4)


def test_undoes_a_turn_and_a_move_of_the_second_half(particle: Any) -> None:
    """Poses ``A^T R`` and shifts less ``R^T c`` describe the same images in another frame."""
    p = particle(300)
    turn = roma.rotvec_to_rotmat(torch.deg2rad(torch.tensor([2.0, -1.5, 1.0])))
    origin = torch.tensor([0.3, -0.2, 0.25])
    moved = Pose(turn.T @ p.pose.rotation, p.pose.shift_px - (p.pose.rotation.mT @ origin)[:, :2].flip(-1))
    back = _into_frame_of(p.volume_ft, p.images, moved)
    assert angular_distance_deg(moved.rotation, p.pose.rotation).min() > 2.5
    assert angular_distance_deg(back.rotation, p.pose.rotation).max() < 0.1
    assert (moved.shift_px - p.pose.shift_px).norm(dim=-1).median() > 0.2
    assert (back.shift_px - p.pose.shift_px).norm(dim=-1).max() < 0.02


def test_the_frame_is_all_that_changes(particle: Any) -> None:
    """Six numbers for the half-set: poses keep their errors relative to each other, with more images than are looked at."""
    p = particle(500, noise=1.0)
    start = perturbed(p.pose, 2.0, 0.3)
    turn = roma.rotvec_to_rotmat(torch.deg2rad(torch.tensor([2.0, -1.5, 1.0])))
    back = _into_frame_of(p.volume_ft, p.images, Pose(turn.T @ start.rotation, start.shift_px))
    one = back.rotation @ start.rotation.mT
    torch.testing.assert_close(one, one[:1].expand_as(one), atol=1e-5, rtol=0)
    # it is the turn, undone, up to what noise and pose errors leave of a mean over the images
    assert angular_distance_deg(one[0], torch.eye(3)) < 0.4
    design = back.rotation.mT[:, :2, :]
    difference = (back.shift_px - start.shift_px).flip(-1)
    origin = torch.linalg.lstsq(design.reshape(-1, 3), difference.reshape(-1, 1)).solution[:, 0]
    torch.testing.assert_close(design @ origin, difference, atol=1e-4, rtol=0)


def test_noise_does_not_agree_beyond_what_was_shared(particle: Any) -> None:
    """Images of nothing, refined against a reference: beyond its band the half-maps have nothing in common."""
    band = 5.0
    p = particle(400, box=24, noise=1.0)
    images = particle(400, box=24, noise=1.0, brightness=0.0, seed=3).images
    reference = same_map(low_pass(p.volume, band))
    config = RefineConfig(max_rounds=4, stable_deg=0.0)
    states = list(refine_half_sets(images, reference, p.pose, half_sets(400), p.mask, band, config))
    assert len(states) == 4
    for state in states:
        # the mask smears a shell into its neighbours
        assert state.halves.fsc[int(band) + 3 :].max() < 0.143
        assert state.halves.fsc[int(band) + 3 :].mean() < 0.05
