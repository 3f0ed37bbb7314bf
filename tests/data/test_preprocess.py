"""Contrast, size, noise per optics group and whitening, on images whose answers are known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ace_em.data import survey as survey_module
from ace_em.data.particles import Particles
from ace_em.data.preprocess import read_stack
from ace_em.data.survey import _contrast, _ring_means, noise_groups, normalise, pooled, survey
from ace_em.io.mrc import StackWriter
from ace_em.io.star import ParticleTable, write_star
from ace_em.maths.fourier import radius_grid
from ace_em.maths.half_plane import HalfPlane
from ace_em.physics.ctf import ctf

N, BOX, PIXEL = 300, 48, 4.0


def ball(diameter_px: float) -> torch.Tensor:
    """Projection (BOX, BOX) of a ball, unit height."""
    return (1 - (2 * radius_grid(BOX, 2) / diameter_px).square()).clamp(min=0).sqrt()


def particles(folder: Path, images: torch.Tensor, groups: torch.Tensor | None = None) -> Particles:
    with StackWriter(folder / "a.mrcs", tuple(images.shape), PIXEL) as stack:  # type: ignore[arg-type]
        stack.write(images.numpy())
    columns = {"rlnDefocusU": 15000, "rlnDefocusV": 14500, "rlnDefocusAngle": 30, "rlnVoltage": 300}
    columns |= {"rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1, "rlnPixelSize": PIXEL}
    table = pd.DataFrame({"rlnImageName": [f"{i + 1}@a.mrcs" for i in range(len(images))]})
    table, optics = table.assign(**{k: str(v) for k, v in columns.items()}), None
    if groups is not None:
        table["rlnOpticsGroup"] = [str(g) for g in groups.tolist()]
        optics = pd.DataFrame({"rlnOpticsGroup": [str(g) for g in groups.unique().tolist()]})
    write_star(folder / "p.star", ParticleTable(folder / "p.star", optics, table))
    return Particles.open(folder / "p.star")


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(N, BOX, BOX, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_contrast_is_measured_or_believed(tmp_path: Path, sign: float) -> None:
    set_ = particles(tmp_path, noise() * 3 + 100 + sign * ball(24))
    look = survey(set_)
    assert look.sign == sign and abs(look.contrast_z) > 5
    assert survey(set_, -sign).sign == -sign


def test_carbon_edges_and_ice_are_not_surveyed(tmp_path: Path) -> None:
    """A tenth of the images: an edge at the rim, or crystals, of many times the particle's power."""
    y, x = np.mgrid[:BOX, :BOX] - BOX / 2
    edge, crystal = torch.from_numpy(4.0 * (x > 15)), torch.from_numpy(-12.0 * np.exp(-((y - 12) ** 2 + (x + 9) ** 2) / 8))
    images = noise() + ball(20)
    clean = survey(particles(tmp_path, images))
    images[::20] = (noise(1)[::20] + edge).float()
    images[10::20] = (noise(1)[10::20] + crystal).float()
    mixed = survey(particles(tmp_path, images))
    assert mixed.diameter_angstrom == pytest.approx(clean.diameter_angstrom, rel=0.05)
    torch.testing.assert_close(mixed.noise.whitening_power, clean.noise.whitening_power, rtol=0.15, atol=0)
    assert mixed.snr == pytest.approx(clean.snr, rel=0.2) and mixed.sign == clean.sign


def test_a_survey_in_blocks_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for images in (noise() * 3 + ball(24), 0.05 * noise() + ball(24)):
        set_ = particles(tmp_path, images)
        whole = survey(set_)
        with monkeypatch.context() as patch:
            patch.setattr(survey_module, "SURVEY_PIXELS", 70 * BOX**2)
            parts = survey(set_)
        assert (parts.sign, parts.common_sd) == (whole.sign, whole.common_sd)
        torch.testing.assert_close(parts.noise.whitening_power, whole.noise.whitening_power)
        for name in ("contrast_z", "diameter_angstrom", "snr"):
            assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-5)
    # the second set has so little noise that its background tells no exposure
    assert whole.common_sd is not None


@pytest.mark.parametrize("diameter", [16.0, 24.0, 32.0])
def test_diameter_follows_the_particle(tmp_path: Path, diameter: float) -> None:
    """The rule of thumb reads a ball 10 to 20 % too large; it must do so at every size."""
    look = survey(particles(tmp_path, noise() + 1.5 * ball(diameter)))
    assert 1.0 < look.diameter_angstrom / (diameter * PIXEL) < 1.3


def test_whitened_noise_has_unit_variance_and_the_effective_ctf_the_same_factor(tmp_path: Path) -> None:
    set_ = particles(tmp_path, noise() * 7 - 3 + 0.5 * ball(20))
    stack = read_stack(set_, survey(set_), 32)
    images = stack.batch(slice(None))
    outer = images.half_plane.radius > 8
    variance = images.image_ft.abs().square().mean(0)
    assert variance[outer].mean() == pytest.approx(1, abs=0.03)
    assert torch.equal(images.noise_variance, torch.ones(N, len(images.half_plane)))
    ratio = images.effective_ctf / ctf(set_.ctf, images.half_plane, PIXEL * BOX / 32)
    assert ratio.min() > 0 and (ratio.std(0) / ratio.mean(0)).max() < 1e-3


def test_working_boxes_share_their_coefficients(tmp_path: Path) -> None:
    set_ = particles(tmp_path, noise() + ball(24))
    look = survey(set_)
    small, large = (read_stack(set_, look, box, rows=np.arange(5)).batch(slice(None)) for box in (24, 40))
    at = {tuple(k): i for i, k in enumerate(large.half_plane.k.tolist())}
    columns = torch.tensor([at[tuple(k)] for k in small.half_plane.k.tolist()])
    assert torch.allclose(large.image_ft[:, columns], small.image_ft, atol=1e-5)
    assert torch.allclose(large.effective_ctf[:, columns], small.effective_ctf, atol=1e-4)


def test_noise_free_images_are_not_scaled_by_their_ringing(tmp_path: Path) -> None:
    """Where there is no noise the background's deviation means nothing: one factor for the whole stack."""
    ringing = torch.rand(N, 1, 1, generator=torch.Generator().manual_seed(1)) * 0.02
    images = ball(24) + ringing * noise()
    set_ = particles(tmp_path, images)
    look = survey(set_)
    assert look.common_sd is not None
    power = read_stack(set_, look, 32).power()
    assert power.std() / power.mean() < 0.02
    own = normalise(images, 1.0).square().mean((1, 2))
    assert own.std() / own.mean() > 0.5
    assert survey(particles(tmp_path, noise() + 0.3 * ball(24))).common_sd is None


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_contrast_of_a_hollow_particle(sign: float) -> None:
    """A shell without its lowest frequencies, as a CTF leaves it, is darker than the background in the middle."""
    box = 48
    radius = radius_grid(box, 2)
    line = 2 * ((18.0**2 - radius.square()).clamp(min=0).sqrt() - (13.0**2 - radius.square()).clamp(min=0).sqrt())
    half_plane = HalfPlane.within(box)
    weak_low = 1 - torch.exp(-half_plane.radius.square() / (2 * 2.5**2))
    image = half_plane.to_image(half_plane.from_image(line) * weak_low)
    assert image[radius < box / 6].mean() < image[radius > box / 2].mean()
    noise = torch.randn(300, box, box, generator=torch.Generator().manual_seed(0)) * 3 * image.std()
    measured, z = _contrast(_ring_means(normalise(sign * image + noise, 1.0)))
    assert measured == sign and abs(z) > 10


def test_optics_groups_have_noise_spectra_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two large groups, one of white and one of coloured noise, and a few particles of other groups."""
    monkeypatch.setattr(survey_module, "LEAST_OF_GROUP", 100)
    groups = torch.where(torch.arange(N) < 160, 7, torch.where(torch.arange(N) < 285, 3, 10 + torch.arange(N)))
    half_plane = HalfPlane.within(BOX)
    coloured = half_plane.to_image(half_plane.from_image(noise()) * (1 + 2 * torch.exp(-((half_plane.radius / 6) ** 2))))
    images = torch.where((groups == 3)[:, None, None], coloured, noise(1)) + 0.3 * ball(24)
    set_ = particles(tmp_path, images, groups)
    group = noise_groups(set_)
    assert [group[groups == g].unique().tolist() for g in (7, 3)] == [[0], [1]] and group[285:].unique().tolist() == [2]
    look = survey(set_)
    low, high = (look.noise.whitening_power[:, shells].mean(1) for shells in (slice(3, 6), slice(16, 22)))
    assert (low / high)[0] == pytest.approx(1, abs=0.15) and (low / high)[1] > 4
    stack = read_stack(set_, look, 32)
    outer = (stack.half_plane.radius > 8) & (stack.half_plane.radius < 14)
    for number in (0, 1):
        whitened = stack.images(torch.nonzero(group == number)[:, 0])[:, outer]
        assert whitened.abs().square().mean() == pytest.approx(1, abs=0.06)
    # one spectrum for all fits neither
    one = read_stack(set_, pooled(look, group), 32)
    assert len(one.noise.variance) == 1 and not one.noise_group.any()
    power = [one.images(torch.nonzero(group == number)[:, 0])[:, ~outer].abs().square().mean() for number in (0, 1)]
    assert abs(power[0] / power[1] - 1) > 0.2


def test_small_groups_share_a_spectrum(tmp_path: Path) -> None:
    set_ = particles(tmp_path, noise() + ball(24), 1 + torch.arange(N) % 5)
    assert not noise_groups(set_).any() and len(survey(set_).noise.variance) == 1
