"""Noise: decibels, background statistics, and recovery of a known power spectrum."""

import math

import pytest
import torch
from torch import Tensor

from ace_em.maths.fourier import centred_fft, centred_ifft, radius_grid
from ace_em.maths.half_plane import HalfPlane
from ace_em.physics.noise import background_mask, background_mean_sd, noise_power, snr_db_to_noise_sd


@pytest.mark.parametrize(("snr_db", "sd"), [(0, 2.0), (-10, 2 * math.sqrt(10)), (20, 0.2), (-3.0103, 2 * math.sqrt(2))])
def test_decibels_refer_to_power(snr_db: float, sd: float) -> None:
    assert snr_db_to_noise_sd(4.0, snr_db) == pytest.approx(sd, rel=1e-5)


@pytest.mark.parametrize("box", [8, 9])
def test_background_is_outside_the_circle(box: int) -> None:
    mask = background_mask(box, 2.0)
    for y in range(box):
        for x in range(box):
            assert mask[y, x] == ((y - box // 2) ** 2 + (x - box // 2) ** 2 > 4)


def test_mean_and_deviation_of_the_background() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = background_mask(64, 20)
    images = (
        torch.randn(3, 64, 64, generator=generator) * torch.tensor([1.0, 2, 3])[:, None, None]
        + torch.tensor([0.0, -4, 9])[:, None, None]
    )
    images[:, ~mask] = 1e3
    mean, sd = background_mean_sd(images, mask)
    torch.testing.assert_close(mean, torch.tensor([0.0, -4, 9]), atol=0.2, rtol=0)
    torch.testing.assert_close(sd, torch.tensor([1.0, 2, 3]), atol=0, rtol=0.05)


def noise_images(spectrum: Tensor, n_images: int) -> Tensor:
    """Real noise whose expected |F|^2 is ``spectrum`` (box, box)."""
    box = spectrum.shape[-1]
    white = torch.randn(n_images, box, box, generator=torch.Generator().manual_seed(7))
    return centred_ifft(centred_fft(white, 2) * (spectrum / box**2).sqrt(), 2).real


@pytest.mark.parametrize("box", [48, 49])
@pytest.mark.parametrize("coloured", [False, True])
def test_noise_power_of_a_known_spectrum(box: int, coloured: bool) -> None:
    radius = radius_grid(box, 2)
    smooth = 1 + 4 * torch.exp(-radius.square() / (2 * 8.0**2)) if coloured else torch.ones(box, box)
    spectrum = 2.25 * box**2 * smooth
    half_plane, background = HalfPlane.within(box), background_mask(box, 0.35 * box)
    images = noise_images(spectrum, 600)
    # the particle must have no effect
    images[:, ~background] += 50
    power = noise_power(images, background, half_plane)
    assert power.shape == (box // 2 + 1,)
    shells = half_plane.shell
    truth = torch.stack([half_plane.gather(spectrum)[shells == s].mean() for s in range(2, box // 2)])
    ratio = power[2 : box // 2] / truth
    assert (ratio - 1).abs().max() < 0.08 and (ratio.mean() - 1).abs() < 0.02
    # shell 0 takes the value of shell 1, and no value is 0 or NaN
    assert power[0] == power[1] and (power > 0).all()
    assert power[1] == pytest.approx(spectrum[box // 2, box // 2 + 1].item(), rel=0.2)
    # without the scale to the full image the power would be lower by the covered fraction
    assert background.float().mean() < 0.7
