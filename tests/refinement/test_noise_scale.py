"""Noise and brightness from what is left of the images: known errors of the survey are found again."""

import dataclasses
from typing import Any

import pytest
import torch
from ace_em.data.working_set import WorkingSet, image_power
from torch import Tensor

from ace_em.maths.half_plane import HalfPlane
from ace_em.physics.imaging import project
from ace_em.refinement.abinitio import explained_share
from ace_em.refinement.noise_scale import Calibration, Residuals, recalibrated_, residuals

BOX = 20
SHELLS = BOX // 2 + 1
FACTORS = torch.tensor([1.0, 0.8, 0.6, 1.3, 1.5, 1.0, 0.7, 1.2, 0.9, 1.4, 1.1])


def mistaken(images: WorkingSet, factors: Tensor) -> WorkingSet:
    """The images as whitened by a survey that took the noise power to be this many times too small."""
    sd = factors.sqrt()[images.half_plane.shell]
    return dataclasses.replace(images, image_ft=images.image_ft * sd, transfer=images.transfer * sd)


def copied(images: WorkingSet) -> WorkingSet:
    return dataclasses.replace(
        images,
        image_ft=images.image_ft.clone(),
        transfer=images.transfer.clone(),
        noise_variance=images.noise_variance.clone(),
    )


def step_(p: Any, images: WorkingSet, before: Calibration) -> Calibration:
    """A step with the true map and poses; the images in two parts, as half-sets are."""
    parts = []
    for first in (0, 1):
        rows = torch.arange(first, len(images), 2)
        parts.append((rows, residuals(p.volume_ft, images.rows(rows), p.pose[rows])))
    return recalibrated_(images, before, parts)[0]


def with_brightness(p: Any, brightness: Tensor) -> WorkingSet:
    """The particles' images times ``brightness``, the noise as it is."""
    clean = project(p.volume_ft, p.images.transfer, p.images.half_plane, p.pose)
    return dataclasses.replace(p.images, image_ft=p.images.image_ft + (brightness - 1)[:, None] * clean)


def test_residuals_are_sums_over_shells_and_images(particle: Any) -> None:
    p = particle(300, noise=1.0)  # more than a block
    found = residuals(p.volume_ft, p.images, p.pose)
    predicted = project(p.volume_ft, p.images.transfer, p.images.half_plane, p.pose)
    left = (p.images.image_ft - predicted).abs().square()
    for shell in range(SHELLS):
        mine = p.images.half_plane.shell == shell
        assert found.power[shell] == pytest.approx(left[:, mine].sum().item(), rel=1e-4)
        assert found.count[shell] == 300 * mine.sum()
    torch.testing.assert_close(found.overlap, (p.images.image_ft.conj() * predicted).sum(1).real, rtol=1e-3, atol=0.1)
    torch.testing.assert_close(found.strength, predicted.abs().square().sum(1), rtol=1e-4, atol=0)


def test_noise_that_the_survey_mistook_is_found(particle: Any) -> None:
    p = particle(600, noise=1.0, brightness=3.0)
    images, calibration = mistaken(p.images, FACTORS), Calibration.none(BOX, 600)
    for _ in range(3):
        calibration = step_(p, images, calibration)
    # few coefficients in the first shells, and most of the signal, where the fitted brightness takes its share of the noise
    torch.testing.assert_close(calibration.noise[:3], FACTORS[:3], rtol=0.12, atol=0)
    torch.testing.assert_close(calibration.noise[3:], FACTORS[3:], rtol=0.03, atol=0)
    # and the images are as if the survey had known: unit noise
    power = residuals(p.volume_ft, images, p.pose)
    torch.testing.assert_close((power.power / power.count)[1:], torch.ones(SHELLS - 1), rtol=0.03, atol=0)
    torch.testing.assert_close(images.image_ft.abs().mean(), p.images.image_ft.abs().mean(), rtol=0.02, atol=0)


def test_noise_changes_by_a_factor_of_two_at_most(particle: Any) -> None:
    p = particle(300, noise=1.0)
    factors = torch.ones(SHELLS)
    factors[3], factors[6] = 7.0, 0.15
    images, calibration = mistaken(p.images, factors), Calibration.none(BOX, 300)
    seen = []
    for _ in range(3):
        calibration = step_(p, images, calibration)
        seen.append(calibration.noise[[3, 6]].tolist())
    assert seen[0] == [2, 0.5] and seen[1] == [4, 0.25]
    assert seen[2] == [pytest.approx(7, rel=0.1), pytest.approx(0.15, rel=0.1)]


def test_floored_shells_stay(particle: Any) -> None:
    """Where the whitening's floor stands above the noise, what is left is small on purpose."""
    p = particle(300, noise=1.0)
    floored = torch.zeros(SHELLS, dtype=torch.bool)
    floored[1:3] = True
    factors = torch.where(floored, 0.3, 1.3)
    images = mistaken(p.images, factors)
    images.noise_variance[:] = torch.where(floored, 0.3, 1.0)[images.half_plane.shell]
    before, calibration = copied(images), Calibration.none(BOX, 300)
    for _ in range(3):
        calibration = step_(p, images, calibration)
    assert calibration.noise[floored].tolist() == [1, 1]
    torch.testing.assert_close(calibration.noise[3:], factors[3:], rtol=0.06, atol=0)
    kept = floored[images.half_plane.shell]
    assert torch.equal(images.image_ft[:, kept], before.image_ft[:, kept])
    assert torch.equal(images.noise_variance[kept], before.noise_variance[kept])


def test_calibrated_images_still_say_what_is_explained(particle: Any) -> None:
    """``noise_variance`` is that of the images as they are now: the true map explains all, before and after."""
    p = particle(600, noise=1.0, brightness=2.0)
    images, calibration = mistaken(p.images, torch.full((SHELLS,), 1.4)), Calibration.none(BOX, 600)

    def explained() -> float:
        predicted = project(p.volume_ft, images.transfer, images.half_plane, p.pose)
        residual = (images.image_ft - predicted).abs().square().sum(-1)
        return explained_share(image_power(images), residual, images.noise_variance)

    assert explained() < 0.93  # noise that the survey did not know counts as signal
    for _ in range(3):
        calibration = step_(p, images, calibration)
    assert explained() == pytest.approx(1, abs=0.02)


def test_brightness_is_found(particle: Any) -> None:
    n = 400
    p = particle(n, noise=1.0, brightness=3.0)
    brightness = 1 + 0.15 * torch.randn(n, generator=torch.Generator().manual_seed(5)).clamp(-2.5, 2.5)
    brightness = brightness / brightness.mean()
    images, calibration = with_brightness(p, brightness), Calibration.none(BOX, n)
    scales = []
    for _ in range(3):
        calibration = step_(p, images, calibration)
        scales.append(calibration.scale)
        assert calibration.scale.mean() == pytest.approx(1, abs=1e-5)
    assert (scales[0] - brightness).square().mean().sqrt() < 0.4 * brightness.std()
    # it is the same answer from images that have been brought up to it
    torch.testing.assert_close(scales[2], scales[1], atol=0.03, rtol=0)
    assert torch.corrcoef(torch.stack([scales[2], brightness]))[0, 1] > 0.9


def test_brightness_of_faint_images_is_that_of_most(particle: Any) -> None:
    """A free scale would follow the noise: of images with hardly any signal it would be anything."""
    n = 300
    p = particle(n, noise=1.0, brightness=0.2)
    found = residuals(p.volume_ft, p.images, p.pose)
    assert (found.overlap / found.strength).std() > 0.3
    calibration = step_(p, p.images, Calibration.none(BOX, n))
    assert (calibration.scale - 1).abs().max() < 0.4
    assert calibration.scale.std() < 0.1


def test_brightness_is_the_least_squares_with_its_prior() -> None:
    """Of ``|y - s p|^2 + (s - 1)^2 / (2 sd^2)``, written out for four images; and bounded."""
    half_plane = HalfPlane.within(BOX, 0.5)
    images = WorkingSet(half_plane, torch.zeros(4, 1, dtype=torch.complex64), torch.ones(4, 1), torch.ones(1))
    overlap, strength = torch.tensor([24.0, 60.0, -500.0, 5000.0]), torch.tensor([30.0, 50.0, 100.0, 100.0])
    found = Residuals(torch.ones(SHELLS), torch.ones(SHELLS), overlap, strength)
    before = Calibration(torch.ones(SHELLS), torch.tensor([0.8, 1.0, 1.0, 1.0]))
    scale = recalibrated_(images, before, [(torch.arange(4), found)])[0].scale
    # the first image's prediction has its old brightness in it: 24 / 0.8 and 30 / 0.64 of the unscaled one
    wanted = torch.tensor([(30 + 12.5) / (46.875 + 12.5), (60 + 12.5) / (50 + 12.5), 0.3, 3.0])
    torch.testing.assert_close(scale, wanted / wanted.mean())


def test_fresh_images_are_brought_up_at_once(particle: Any) -> None:
    """What the rounds did to a working set step by step, ``apply_`` does to one that has just been read."""
    n = 200
    p = particle(n, noise=1.0)
    brightness = 1 + 0.15 * torch.randn(n, generator=torch.Generator().manual_seed(5))
    images = mistaken(with_brightness(p, brightness), FACTORS)
    fresh, calibration = copied(images), Calibration.none(BOX, n)
    for _ in range(3):
        calibration = step_(p, images, calibration)
    calibration.apply_(fresh)
    torch.testing.assert_close(fresh.image_ft, images.image_ft, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fresh.transfer, images.transfer, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fresh.noise_variance, images.noise_variance)
    assert not torch.allclose(fresh.transfer, p.images.transfer, rtol=0.02)


@pytest.mark.parametrize("box", [12, 20, 32])
def test_at_box_keeps_what_was_seen(box: int) -> None:
    scale = torch.tensor([0.9, 1.1])
    calibration = Calibration(FACTORS, scale).at_box(box)
    wanted = FACTORS.tolist()[: box // 2 + 1] + [1.0] * (box // 2 - 10)
    assert calibration.noise.tolist() == pytest.approx(wanted) and len(calibration.noise) == box // 2 + 1
    assert torch.equal(calibration.scale, scale)


def test_nothing_known_changes_nothing(particle: Any) -> None:
    images = particle(5, noise=1.0).images
    before = copied(images)
    Calibration.none(BOX, 5).apply_(images)
    assert torch.equal(images.image_ft, before.image_ft) and torch.equal(images.transfer, before.transfer)
