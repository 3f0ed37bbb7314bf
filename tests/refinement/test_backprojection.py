"""Back-projection of images of a known volume, and of no images."""

from typing import Any

import pytest
import roma
import torch

from ace_em.maths.fourier import centred_fft
from ace_em.maths.slices import padded_size
from ace_em.metrics.fsc import fourier_shell_correlation
from ace_em.physics.pose import Pose
from ace_em.refinement import backprojection
from ace_em.refinement.backprojection import accumulate, reconstruct_halves, ssnr_from_fsc, wiener


def flat(box: int, ssnr: float) -> torch.Tensor:
    return torch.full((box // 2 + 1,), ssnr)


@pytest.mark.parametrize("box", [20, 21])
@pytest.mark.parametrize("closed_form", [False, True])
def test_back_projection_recovers_the_volume(particle: Any, box: int, closed_form: bool) -> None:
    """Noise-free images at their true poses, with CTFs and shifts."""
    p = particle(700, box=box, closed_form=closed_form)
    volume = wiener(accumulate(p.images, p.pose), flat(box, 1000.0))
    fsc = fourier_shell_correlation(volume * p.mask, p.volume * p.mask)
    assert fsc[1 : int(0.9 * box / 2) + 1].min() > 0.95
    # on the absolute scale too
    assert (volume * p.mask * p.volume).sum() / p.volume.square().sum() == pytest.approx(1, abs=0.05)
    # the opposite hand, inverse rotations and negative shifts do not match
    for wrong in (p.pose.mirrored(), Pose(p.pose.rotation, -p.pose.shift_px), Pose(p.pose.rotation.mT, p.pose.shift_px)):
        bad = fourier_shell_correlation(wiener(accumulate(p.images, wrong), flat(box, 1000.0)) * p.mask, p.volume * p.mask)
        assert bad[4:9].mean() < 0.7


def test_sums_over_images(particle: Any) -> None:
    p = particle(300, noise=1.0)
    rows = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    one, other = rows[:110], rows[110:]
    parts = accumulate(p.images.subset(one), p.pose[one]) + accumulate(p.images.subset(other), p.pose[other])
    whole = accumulate(p.images, p.pose)
    size = padded_size(20, 2)
    assert whole.grid.shape == (3, size + 1, size + 1, size // 2 + 1) and parts.box == whole.box == 20
    torch.testing.assert_close(parts.grid, whole.grid, atol=1e-3, rtol=1e-4)
    assert whole.grid.abs().max() > 1


def test_only_the_given_rows_are_inserted(particle: Any) -> None:
    p = particle(40, noise=1.0)
    rows = torch.nonzero(torch.arange(40) % 3 == 0)[:, 0]
    alone = accumulate(p.images.subset(rows), p.pose[rows]).grid
    torch.testing.assert_close(accumulate(p.images, p.pose, rows).grid, alone, rtol=0, atol=0)
    assert not torch.allclose(alone, accumulate(p.images, p.pose).grid)


def test_blocks_do_not_change_the_sum(particle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    p = particle(50, noise=1.0)
    whole = accumulate(p.images, p.pose).grid
    monkeypatch.setattr(backprojection, "BLOCK", 13)
    torch.testing.assert_close(accumulate(p.images, p.pose).grid, whole, rtol=1e-4, atol=1e-3)


def test_the_sum_is_that_of_a_real_volume(particle: Any) -> None:
    """Hermitian on the plane x = 0, and both ends of z and y are the same frequency."""
    grid = accumulate(particle(60, noise=1.0).images, particle(60).pose).grid
    data, power = torch.complex(grid[0], grid[1])[..., 0], grid[2]
    torch.testing.assert_close(data, data.flip(0, 1).conj(), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(power[..., 0], power[..., 0].flip(0, 1), atol=1e-3, rtol=1e-4)
    for axis in (0, 1):
        torch.testing.assert_close(grid.select(axis + 1, 0), grid.select(axis + 1, grid.shape[axis + 1] - 1))
    assert (power >= 0).all() and data.imag.abs().max() > 1


def test_prior_of_a_shell(particle: Any) -> None:
    """A shell with SSNR 0 is set to 0; with uniform sampling the prior scales a shell by SSNR / (1 + SSNR)."""
    p = particle(700)
    accumulator = accumulate(p.images, p.pose)
    ssnr = flat(20, 1000.0)
    full = centred_fft(wiener(accumulator, ssnr), 3)
    ssnr[6:] = 0
    cut = wiener(accumulator, ssnr)
    spectrum = fourier_shell_correlation(cut, cut)
    assert torch.equal(spectrum[:6].round(), torch.ones(6))
    shells = (torch.stack(torch.meshgrid(*[torch.arange(20.0) - 10] * 3, indexing="ij")).square().sum(0).sqrt()).round()
    power = [centred_fft(cut, 3)[shells == s].abs().square().mean() / full[shells == s].abs().square().mean() for s in (3, 9)]
    assert power[0] == pytest.approx(1, abs=0.05) and power[1] < 0.05
    assert not wiener(accumulator, flat(20, 0.0)).any()
    weak = centred_fft(wiener(accumulator, flat(20, 1.0)), 3)
    ratio = (weak[shells == 4].abs().square().sum() / full[shells == 4].abs().square().sum()).sqrt()
    assert ratio == pytest.approx(0.5, abs=0.1)


def test_empty_shells_give_zeros(particle: Any) -> None:
    """Images cut to a band: zeros beyond it, and no division by zero."""
    p = particle(100)
    volume = wiener(accumulate(p.images.band(5), p.pose), flat(20, 20.0))
    assert volume.isfinite().all()
    volume_ft = centred_fft(volume, 3).abs()
    assert volume_ft[10, 10, 1] < 0.05 * volume_ft[10, 10, 10]


def test_ssnr_from_fsc_follows_the_published_formula() -> None:
    fsc = torch.tensor([0.5, 0.143, 0.0, -0.2, 0.9])
    torch.testing.assert_close(ssnr_from_fsc(fsc, False), torch.tensor([1.0, 0.143 / 0.857, 0, 0, 9.0]))
    torch.testing.assert_close(ssnr_from_fsc(fsc, True), torch.tensor([2.0, 2 * 0.143 / 0.857, 0, 0, 18.0]))
    assert ssnr_from_fsc(torch.ones(1), False).isfinite().all()


def test_ssnr_of_signal_plus_noise() -> None:
    """Two noisy copies of a white signal have the SSNR given by the formula."""
    generator = torch.Generator().manual_seed(0)
    signal, one, two = (torch.randn(24, 24, 24, generator=generator) for _ in range(3))
    fsc = fourier_shell_correlation(2 * signal + one, 2 * signal + two)[6:].mean(0, keepdim=True)
    assert ssnr_from_fsc(fsc, False).item() == pytest.approx(4, rel=0.1)
    both = fourier_shell_correlation(2 * signal + (one + two) / 2, signal)[6:].mean(0, keepdim=True)
    assert ssnr_from_fsc(both.square(), False).item() == pytest.approx(ssnr_from_fsc(fsc, True).item(), rel=0.1)


def split(p: Any, pose: Pose) -> tuple[Any, Any]:
    half = len(pose) // 2
    one, two = slice(0, half), slice(half, None)
    return accumulate(p.images.subset(one), pose[one]), accumulate(p.images.subset(two), pose[two])


def test_halves_of_good_images_agree(particle: Any) -> None:
    p = particle(600, noise=1.0)
    halves = reconstruct_halves(*split(p, p.pose), p.mask)
    assert halves.fsc[:8].min() > 0.9
    for volume in (halves.half1, halves.half2, halves.combined):
        assert fourier_shell_correlation(volume, p.volume)[1:8].min() > 0.9
        # zero outside the mask
        assert volume[0].abs().max() < 0.02 * volume.abs().max()
    assert not torch.equal(halves.half1, halves.half2)
    # both halves together are closer to the truth
    error = [(v - p.volume * p.mask).norm() for v in (halves.half1, halves.half2, halves.combined)]
    assert error[2] < min(error[:2])


def test_halves_of_noise_do_not_agree(particle: Any) -> None:
    p = particle(600, box=24, noise=1.0, brightness=0.0)
    pose = Pose(roma.random_rotmat(600, generator=torch.Generator().manual_seed(5)), p.pose.shift_px)
    fsc = reconstruct_halves(*split(p, pose), p.mask).fsc
    assert fsc[4:].abs().max() < 0.143
    assert fsc[3:].mean().abs() < 0.05
