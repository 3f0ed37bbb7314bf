"""Weighting and sharpening against their formulas and a known B factor, and against RELION's post-processing."""

import math
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ace_em.io.mrc import read_volume, write_volume
from ace_em.io.star import read_blocks
from ace_em.maths.fourier import centred_fft, centred_ifft, radius_grid
from ace_em.maths.masks import soft_ball
from ace_em.metrics.fsc import fourier_shell_correlation, masked_fsc, resolution_shell
from ace_em.refinement.mask import soft_mask
from ace_em.refinement.postprocess import PostProcessed, filtered, fsc_weight, guinier_b_factor, postprocess
from ace_em.simulation.density import density_map
from ace_em.simulation.structure import Atoms

BOX, PIXEL = 48, 2.0


def noise(n: int, seed: int) -> Tensor:
    return torch.randn(n, n, n, generator=torch.Generator().manual_seed(seed))


def falling(volume: Tensor, b_angstrom2: float, pixel: float = PIXEL) -> Tensor:
    """The volume with amplitudes that fall as ``exp(-b k^2 / 4)``."""
    n = volume.shape[-1]
    k = radius_grid(n, 3) / (n * pixel)
    return centred_ifft(centred_fft(volume, 3) * torch.exp(-b_angstrom2 / 4 * k.square()), 3).real


def mask_of(n: int = BOX) -> Tensor:
    return 0.5 + 0.5 * torch.cos(math.pi * ((radius_grid(n, 3) - 13) / 5).clamp(0, 1))


def halves(b_angstrom2: float, noise_sd: float, pixel: float = PIXEL) -> tuple[Tensor, Tensor]:
    """A particle of white amplitudes and a known fall-off, in noise of the whole box."""
    particle = falling(noise(BOX, 0) * soft_ball(BOX, 12), b_angstrom2, pixel)
    return particle + noise_sd * noise(BOX, 1), particle + noise_sd * noise(BOX, 2)


def done(half1: Tensor, half2: Tensor, b_factor: float | None = None, pixel: float = PIXEL) -> PostProcessed:
    return postprocess(half1, half2, mask_of(), pixel, torch.Generator().manual_seed(0), b_factor)


@pytest.mark.parametrize(("b", "noise_sd"), [(60.0, 0.15), (60.0, 0.6), (120.0, 0.3), (200.0, 0.1), (120.0, 0.0)])
def test_known_b_factor_is_found(b: float, noise_sd: float) -> None:
    result = done(*halves(b, noise_sd))
    assert result.b_factor == pytest.approx(-b, rel=0.1)
    assert f"B factor of {result.b_factor:.0f} A^2" in result.b_factor_note and "10 A" in result.b_factor_note
    # after sharpening, the amplitudes are flat between 10 A and the resolution
    level, note = guinier_b_factor(result.volume, torch.ones(BOX // 2 + 1), result.resolution_shell - 1, PIXEL)
    assert abs(level) < 0.1 * b, note


def test_volume_follows_the_formula() -> None:
    """Per coefficient, below the low-pass edge: C_ref times exp(-B k^2 / 4) times the average."""
    half1, half2 = halves(120.0, 0.6)
    curves = masked_fsc(half1, half2, mask_of(), torch.Generator().manual_seed(0))
    result = done(half1, half2, -80.0)
    assert torch.equal(result.curves.corrected, curves.corrected) and torch.equal(result.mask, mask_of())
    assert result.b_factor == -80 and "given" in result.b_factor_note
    shell = resolution_shell(curves.corrected, 0.143)
    assert result.resolution_shell == shell and 8 < shell < 22
    unmasked_ft = centred_fft(filtered((half1 + half2) / 2, fsc_weight(curves.corrected), shell, -80.0, PIXEL), 3)
    average_ft = centred_fft((half1 + half2) / 2, 3)
    centre = BOX // 2
    for z, y, x in ((0, 0, 3), (2, -3, 4), (5, 1, -2), (-6, 0, 0), (4, 4, 4)):
        radius = math.sqrt(z * z + y * y + x * x)
        assert radius < shell - 1
        fsc = curves.corrected[round(radius)].item()
        k = radius / (BOX * PIXEL)
        wanted = average_ft[centre + z, centre + y, centre + x] * math.sqrt(2 * fsc / (1 + fsc)) * math.exp(80 / 4 * k * k)
        torch.testing.assert_close(unmasked_ft[centre + z, centre + y, centre + x], wanted, rtol=1e-4, atol=1e-3)
    radius = radius_grid(BOX, 3)
    assert unmasked_ft[radius > shell + 1].abs().max() < 1e-4 * unmasked_ft.abs().max()
    torch.testing.assert_close(result.volume, centred_ifft(unmasked_ft, 3).real * mask_of())


def test_fsc_weight_is_the_correlation_with_the_truth() -> None:
    """sqrt(2 FSC / (1 + FSC)) of the half-maps is the FSC of their average with the noise-free map."""
    weight = fsc_weight(torch.tensor([-0.5, 1.0, 0.5, 0.143, 0.0, -0.2]))
    torch.testing.assert_close(weight, torch.tensor([1.0, 1.0, (2 / 3) ** 0.5, 0.50016, 0.0, 0.0]), atol=1e-4, rtol=0)
    half1, half2 = halves(60.0, 0.3)
    truth = halves(60.0, 0.0)[0]
    against = fourier_shell_correlation((half1 + half2) / 2, truth)
    assert (fsc_weight(fourier_shell_correlation(half1, half2)) - against)[3:16].abs().max() < 0.06


@pytest.mark.parametrize("pixel", [5.5, 4.4])
def test_no_b_factor_from_a_coarse_map(pixel: float) -> None:
    """Nyquist is beyond 10 A, or so close that only three shells remain."""
    result = done(*halves(600.0, 0.02, pixel), pixel=pixel)
    if pixel > 5:
        assert " 0 shells" in result.b_factor_note
    else:
        count = sum(BOX * pixel / 10 <= s <= result.resolution_shell for s in range(BOX // 2 + 1))
        assert count < 4 and f" {count} shells" in result.b_factor_note
    assert result.b_factor == 0 and result.b_factor_note.startswith("Not sharpened") and "10 A" in result.b_factor_note
    # the map is weighted, low-passed and masked, but not sharpened
    same = done(*halves(600.0, 0.02, pixel), 0.0, pixel)
    torch.testing.assert_close(result.volume, same.volume)


def test_b_factor_is_limited() -> None:
    rising, note = guinier_b_factor(falling(noise(BOX, 0), -100), torch.ones(BOX // 2 + 1), 22, PIXEL)
    assert rising == 0 and "100 is outside" in note
    steep, note = guinier_b_factor(falling(noise(BOX, 0).double(), 1500), torch.ones(BOX // 2 + 1), 16, PIXEL)
    assert steep == -1000 and "outside the range -1000 to 0" in note


def test_maps_without_a_particle() -> None:
    for half1, half2 in ((noise(BOX, 1), noise(BOX, 2)), (torch.zeros(BOX, BOX, BOX),) * 2):
        result = done(half1, half2)
        assert result.volume.isfinite().all() and result.b_factor == 0 and result.resolution_shell < 6


@dataclass(frozen=True)
class Maps:
    """Input for RELION: half-maps, masked with a ball as after refinement, and the mask; also the noise-free map."""

    truth: Tensor
    half1: Tensor
    half2: Tensor
    mask: Tensor


@pytest.fixture(scope="module")
def maps() -> Maps:
    generator = torch.Generator().manual_seed(3)
    position = torch.randn(1500, 3, generator=generator, dtype=torch.float64).clamp(-1.7, 1.7)
    atoms = Atoms(position * torch.tensor([13.0, 11.0, 9.0]), torch.full((1500,), 6.0, dtype=torch.float64))
    truth = falling(density_map(atoms, BOX, PIXEL, 4.0), 250.0)
    truth = truth / truth[truth > 0.2 * truth.max()].std()
    ball = soft_ball(BOX, BOX / 2 - 2)
    one, two = ((truth + 0.1 * noise(BOX, seed)) * ball for seed in (4, 5))
    return Maps(truth, one, two, soft_mask((one + two) / 2, BOX * PIXEL / 15, 2, 4))


def ours(maps: Maps, b_factor: float | None = None) -> PostProcessed:
    return postprocess(maps.half1, maps.half2, maps.mask, PIXEL, torch.Generator().manual_seed(0), b_factor)


def relion(folder: Path, maps: Maps, *sharpening: str) -> tuple[dict, Tensor, Tensor]:
    """General table, corrected FSC and masked map from RELION."""
    for name in ("half1", "half2", "mask"):
        write_volume(folder / f"{name}.mrc", getattr(maps, name).numpy(), PIXEL)
    # the last step of RELION joins PDF files in a folder named after the output
    (folder / "postprocess").mkdir()
    files = ["--i", "half1.mrc", "--i2", "half2.mrc", "--mask", "mask.mrc", "--angpix", str(PIXEL)]
    # RELION low-passes only on request; -1 means at the resolution
    command = ["relion_postprocess", *files, "--o", "postprocess", "--low_pass", "-1", *sharpening]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, f"{run.stdout[-2000:]}\n{run.stderr[-2000:]}"
    tables = read_blocks(folder / "postprocess.star")
    fsc = torch.tensor(tables["fsc"]["rlnFourierShellCorrelationCorrected"].to_numpy(dtype=float))
    return tables["general"], fsc, torch.tensor(read_volume(folder / "postprocess_masked.mrc")[0])


def agreement(a: Tensor, b: Tensor) -> float:
    return ((a * b).sum() / (a.norm() * b.norm())).item()


@pytest.mark.relion
def test_relion_agrees(maps: Maps, tmp_path: Path) -> None:
    mine = ours(maps)
    general, fsc, volume = relion(tmp_path, maps, "--auto_bfac", "--autob_lowres", "10")
    both = (fsc > 0.2) & (mine.curves.corrected > 0.2)
    assert both.sum() > 10
    assert (fsc - mine.curves.corrected)[both].abs().max() < 0.03
    # an unmasked curve would not pass
    assert (fsc - mine.curves.unmasked)[both].abs().max() > 0.1
    theirs = BOX * PIXEL / float(general["rlnFinalResolution"])
    assert 12 < theirs < 23 and abs(mine.resolution_shell - theirs) <= 1
    assert mine.b_factor == pytest.approx(float(general["rlnBfactorUsedForSharpening"]), rel=0.15)
    assert agreement(volume, mine.volume) > 0.97
    # in every shell up to the resolution
    assert fourier_shell_correlation(volume, mine.volume)[1 : int(theirs) + 1].min() > 0.97
    assert agreement(volume, (maps.half1 + maps.half2) / 2 * maps.mask) < 0.9


@pytest.mark.relion
def test_relion_fits_the_same_b_factor_to_the_same_shells(maps: Maps, tmp_path: Path) -> None:
    """RELION fits the unmasked average up to Nyquist by default; with the same shells the fit is the same."""
    mine = ours(maps)
    limits = ("--autob_lowres", "10", "--autob_highres", str(BOX * PIXEL / mine.resolution_shell))
    theirs = float(relion(tmp_path, maps, "--auto_bfac", *limits)[0]["rlnBfactorUsedForSharpening"])
    weight = fsc_weight(mine.curves.corrected)
    same, _ = guinier_b_factor((maps.half1 + maps.half2) / 2, weight, mine.resolution_shell, PIXEL)
    assert same == pytest.approx(theirs, rel=0.03)
    # the mask brings the fit closer to the fall-off of the noise-free map
    truth, _ = guinier_b_factor(maps.truth, torch.ones_like(weight), mine.resolution_shell, PIXEL)
    assert mine.b_factor == pytest.approx(truth, rel=0.03) and abs(theirs - truth) > 2 * abs(mine.b_factor - truth)


@pytest.mark.relion
def test_relion_agrees_at_a_given_b_factor(maps: Maps, tmp_path: Path) -> None:
    """Units and sign of B, scale, weighting and low-pass together."""
    volume = relion(tmp_path, maps, "--adhoc_bfac", "-120")[2]
    mine = ours(maps, -120.0).volume
    assert agreement(volume, mine) > 0.999
    assert (volume.norm() / mine.norm()).item() == pytest.approx(1, abs=0.01)
