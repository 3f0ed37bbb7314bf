"""Noise and intensity scales from the residuals: known errors of the survey are corrected."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from ace_em.maths.half_plane import HalfPlane
from ace_em.physics.imaging import project
from ace_em.physics.noise import NoiseModel
from ace_em.refinement.explained import explained_share
from ace_em.refinement.noise_scale import (
    LEAST_OF_GROUP,
    Residuals,
    residuals,
    updated_intensity_scale,
    updated_noise,
)
from stacks import FixedStack

BOX = 20
SHELLS = BOX // 2 + 1
FACTORS = torch.tensor([1.0, 0.8, 0.6, 1.3, 1.5, 1.0, 0.7, 1.2, 0.9, 1.4, 1.1])


def mistaken(stack: FixedStack, factors: Tensor, variance: float | Tensor = 1.0) -> FixedStack:
    """The images with noise power that was underestimated by this factor."""
    power = (1 / factors).expand(1, SHELLS)
    return dataclasses.replace(stack, noise=NoiseModel(power, torch.ones(1, SHELLS) * variance))


def found_noise(stack: FixedStack) -> Tensor:
    """(SHELLS,) power of the first group's noise."""
    return stack.noise.whitening_power[0]


def step(p: Any, stack: Any) -> Any:
    """The stack after one update with the true map and poses, from two parts as for half-sets."""
    parts = [residuals(p.volume_ft, stack, p.pose[rows], rows) for rows in (torch.arange(i, len(stack), 2) for i in (0, 1))]
    return stack.with_noise(updated_noise(stack, parts)).with_intensity_scale(updated_intensity_scale(stack, parts))


def with_intensity(p: Any, scale: Tensor) -> FixedStack:
    """The particles' images times ``scale``, the noise as it is."""
    clean = project(p.volume_ft, p.images.effective_ctf, p.images.half_plane, p.pose)
    return p.images.with_images(p.images.image_ft + (scale - 1)[:, None] * clean)


def test_residuals_are_sums_over_shells_and_images(particle: Any) -> None:
    """Of two noise groups and images with scales of their own."""
    p = particle(300, noise=1.0)  # more than a block
    stack = dataclasses.replace(p.images, noise_group=torch.arange(300) % 3 // 2)
    stack = stack.with_noise(NoiseModel(torch.ones(2, SHELLS), torch.ones(2, SHELLS)))
    stack = stack.with_intensity_scale(torch.linspace(0.8, 1.2, 300))
    rows = torch.arange(0, 300, 2)
    found = residuals(p.volume_ft, stack, p.pose[rows], rows)
    batch = stack.batch(rows)
    predicted = project(p.volume_ft, batch.effective_ctf, batch.half_plane, p.pose[rows])
    left, group = (batch.image_ft - predicted).abs().square(), stack.noise_group[rows]
    for number in (0, 1):
        assert found.n_images[number] == (group == number).sum() > 30
        for shell in range(SHELLS):
            mine = p.images.half_plane.shell == shell
            wanted = left[group == number][:, mine].sum().item()
            assert found.power[number, shell] == pytest.approx(wanted, rel=1e-4)
    unscaled = predicted / stack.intensity_scale[rows, None]
    torch.testing.assert_close(found.overlap, (batch.image_ft.conj() * unscaled).sum(1).real, rtol=1e-3, atol=0.1)
    torch.testing.assert_close(found.strength, unscaled.abs().square().sum(1), rtol=1e-4, atol=0)
    assert torch.equal(found.rows, rows)


def test_wrong_noise_power_of_the_survey_is_corrected(particle: Any) -> None:
    p = particle(600, noise=1.0, brightness=3.0)
    stack = mistaken(p.images, FACTORS)
    for _ in range(3):
        stack = step(p, stack)
    # the first shells have few coefficients and most of the signal, so the fitted scale absorbs some of the noise
    torch.testing.assert_close(found_noise(stack)[:3], torch.ones(3), rtol=0.12, atol=0)
    torch.testing.assert_close(found_noise(stack)[3:], torch.ones(SHELLS - 3), rtol=0.03, atol=0)


def test_each_group_has_its_own_noise(particle: Any) -> None:
    """Group 1 has twice the noise power of group 0; a small group gets the mean update of all images."""
    p = particle(640, noise=1.0, brightness=3.0)
    group = torch.where(torch.arange(640) < 40, 2, torch.arange(640) % 2)
    clean = project(p.volume_ft, p.images.effective_ctf, p.images.half_plane, p.pose)
    louder = torch.where(group == 1, 2.0, 1.0).sqrt()
    images = clean + louder[:, None] * (p.images.image_ft - clean)
    stack = dataclasses.replace(p.images.with_images(images), noise_group=group)
    stack = stack.with_noise(NoiseModel(torch.ones(3, SHELLS), torch.ones(3, SHELLS)))
    assert (group == 2).sum() < LEAST_OF_GROUP
    for _ in range(3):
        stack = step(p, stack)
    power = stack.noise.whitening_power[:, 3:]
    torch.testing.assert_close(power[0], torch.ones(SHELLS - 3), rtol=0.05, atol=0)
    torch.testing.assert_close(power[1], torch.full((SHELLS - 3,), 2.0), rtol=0.05, atol=0)
    # the small group gets the mean factor at each step: first 1.5, then what remains after the updates of the other groups
    assert power[2].std() < 0.1 and 1.2 < power[2].mean() < 1.6


def test_noise_changes_by_a_factor_of_two_at_most(particle: Any) -> None:
    p = particle(300, noise=1.0)
    factors = torch.ones(SHELLS)
    factors[3], factors[6] = 7.0, 0.15
    stack, seen = mistaken(p.images, factors), []
    start = found_noise(stack)
    for _ in range(3):
        stack = step(p, stack)
        seen.append((found_noise(stack) / start)[[3, 6]].tolist())
    assert seen[0] == pytest.approx([2, 0.5]) and seen[1] == pytest.approx([4, 0.25])
    assert seen[2] == [pytest.approx(7, rel=0.1), pytest.approx(0.15, rel=0.1)]


def test_floored_shells_are_unchanged(particle: Any) -> None:
    """Where the floor exceeds the noise, whitened noise has a variance below 1 by design."""
    p = particle(300, noise=1.0)
    floored = torch.zeros(SHELLS, dtype=torch.bool)
    floored[1:3] = True
    stack = mistaken(p.images, torch.where(floored, 0.3, 1.3), torch.where(floored, 0.3, 1.0))
    start = found_noise(stack)
    for _ in range(3):
        stack = step(p, stack)
    assert torch.equal(found_noise(stack)[floored], start[floored])
    torch.testing.assert_close(found_noise(stack)[3:], torch.ones(SHELLS - 3), rtol=0.06, atol=0)
    assert stack.noise.floored[0].tolist() == floored.tolist()


def test_shells_beyond_the_working_box_keep_their_noise(particle: Any) -> None:
    """The noise model covers the shells of the full box; a working box has fewer."""
    p = particle(200, noise=1.0)
    wide = NoiseModel(torch.linspace(1, 2, 17)[None], torch.ones(1, 17))
    stack = step(p, dataclasses.replace(p.images, noise=wide))
    assert torch.equal(stack.noise.whitening_power[:, SHELLS:], wide.whitening_power[:, SHELLS:])
    assert not torch.allclose(stack.noise.whitening_power[:, :SHELLS], wide.whitening_power[:, :SHELLS])


def test_the_true_map_explains_all_signal_once_the_noise_is_correct(particle: Any) -> None:
    p = particle(600, noise=1.0, brightness=2.0)
    stack = mistaken(p.images, torch.full((SHELLS,), 1.4))

    def explained(stack: Any) -> float:
        batch = stack.batch(slice(None))
        predicted = project(p.volume_ft, batch.effective_ctf, batch.half_plane, p.pose)
        residual = (batch.image_ft - predicted).abs().square().sum(-1)
        return explained_share(stack.power(), residual, stack.noise_power())

    assert explained(stack) < 0.93  # underestimated noise counts as signal
    for _ in range(3):
        stack = step(p, stack)
    assert explained(stack) == pytest.approx(1, abs=0.02)


def test_intensity_scales_are_found(particle: Any) -> None:
    n = 400
    p = particle(n, noise=1.0, brightness=3.0)
    scale = 1 + 0.15 * torch.randn(n, generator=torch.Generator().manual_seed(5)).clamp(-2.5, 2.5)
    scale = scale / scale.mean()
    stack, found = with_intensity(p, scale), []
    for _ in range(3):
        stack = step(p, stack)
        found.append(stack.intensity_scale)
        assert stack.intensity_scale.mean() == pytest.approx(1, abs=1e-5)
    assert (found[0] - scale).square().mean().sqrt() < 0.4 * scale.std()
    # a stack that has the scales gives the same answer
    torch.testing.assert_close(found[2], found[1], atol=0.03, rtol=0)
    assert torch.corrcoef(torch.stack([found[2], scale]))[0, 1] > 0.9


def test_updates_do_not_modify_their_inputs(particle: Any) -> None:
    """The same call twice gives identical results."""
    p = particle(150, noise=1.0)
    stack = with_intensity(p, torch.linspace(0.8, 1.2, 150))
    one, again = step(p, stack), step(p, stack)
    assert torch.equal(one.intensity_scale, again.intensity_scale) and torch.equal(found_noise(one), found_noise(again))
    assert torch.equal(stack.intensity_scale, torch.ones(150)) and torch.equal(found_noise(stack), torch.ones(SHELLS))


def test_faint_images_keep_a_scale_near_one(particle: Any) -> None:
    """Without a prior the scale would fit the noise, and would be arbitrary for images with hardly any signal."""
    n = 300
    p = particle(n, noise=1.0, brightness=0.2)
    found = residuals(p.volume_ft, p.images, p.pose, torch.arange(n))
    assert (found.overlap / found.strength).std() > 0.3
    scale = step(p, p.images).intensity_scale
    assert (scale - 1).abs().max() < 0.4
    assert scale.std() < 0.1


def test_scale_is_the_least_squares_solution_with_a_prior() -> None:
    """Of ``|y - s p|^2 + (s - 1)^2 / (2 sd^2)``, written out for four images; and bounded."""
    half_plane = HalfPlane.within(BOX, 0.5)
    stack = FixedStack.of(half_plane, torch.zeros(5, 1, dtype=torch.complex64), torch.ones(5, 1))
    overlap, strength = torch.tensor([30.0, 60.0, -500.0, 5000.0]), torch.tensor([46.875, 50.0, 100.0, 100.0])
    found = Residuals(torch.arange(4), torch.ones(1, SHELLS), torch.tensor([4]), overlap, strength)
    scale = updated_intensity_scale(stack, [found])
    wanted = torch.tensor([(30 + 12.5) / (46.875 + 12.5), (60 + 12.5) / (50 + 12.5), 0.3, 3.0])
    torch.testing.assert_close(scale[:4], wanted / wanted.mean())
    # an image without residuals keeps its scale relative to the others
    assert scale[4] == pytest.approx(1 / wanted.mean().item())
