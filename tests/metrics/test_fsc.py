"""FSC against its definition, against noise of known strength, and phase randomisation."""

import math

import pytest
import torch
from torch import Tensor

from ace_em.maths.fourier import centred_fft, centred_ifft, radius_grid
from ace_em.metrics.fsc import MaskedFSC, corrected_fsc, fourier_shell_correlation, masked_fsc, randomise_phases, resolution_shell

F64 = torch.float64


def noise(n: int, seed: int) -> Tensor:
    return torch.randn(n, n, n, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("n", [12, 13])
def test_definition(n: int) -> None:
    """FSC computed coefficient by coefficient from uncentred transforms."""
    a, b = noise(n, 0) + 0.5, noise(n, 0) + noise(n, 1)
    a_ft, b_ft = torch.fft.fftn(a), torch.fft.fftn(b)
    k = torch.fft.fftfreq(n, 1 / n, dtype=F64)
    radius = (k[:, None, None].square() + k[:, None].square() + k.square()).sqrt()
    wanted = []
    for shell in range(n // 2 + 1):
        inside = (radius - shell).abs() < 0.5
        cross = (a_ft[inside] * b_ft[inside].conj()).sum().real
        wanted.append(cross / (a_ft[inside].norm() * b_ft[inside].norm()))
    torch.testing.assert_close(fourier_shell_correlation(a, b), torch.stack(wanted))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("n", [16, 17])
def test_laws(n: int, dtype: torch.dtype) -> None:
    a, b = noise(n, 0).to(dtype), noise(n, 1).to(dtype)
    one = torch.ones(n // 2 + 1, dtype=dtype)
    torch.testing.assert_close(fourier_shell_correlation(a, a), one)
    torch.testing.assert_close(fourier_shell_correlation(a, -2 * a), -one)
    torch.testing.assert_close(fourier_shell_correlation(a, b), fourier_shell_correlation(3 * b, a), atol=1e-6, rtol=1e-4)
    assert torch.equal(fourier_shell_correlation(a, torch.zeros_like(a)), 0 * one)
    assert fourier_shell_correlation(a, b).abs().max() <= 1


@pytest.mark.parametrize("grey", [3e4, 1e6, 1e-12])
def test_fsc_is_independent_of_the_scale(grey: float) -> None:
    """16-bit integer values in a large box, for which the product of two powers would overflow float32."""
    a, b = noise(96, 0).float(), (noise(96, 0) + noise(96, 1)).float()
    torch.testing.assert_close(fourier_shell_correlation(grey * a, grey * b), fourier_shell_correlation(a, b), atol=1e-5, rtol=0)


def test_signal_and_noise_have_the_known_expectation() -> None:
    """With signal power S and noise power N: S / (S + N) between two noisy copies, sqrt of it against the signal."""
    n = 48
    radius = radius_grid(n, 3).double()
    snr = 4 * torch.exp(-((radius / 12) ** 2))
    signal = centred_ifft(centred_fft(noise(n, 0), 3) * snr.sqrt(), 3).real
    between = fourier_shell_correlation(signal + noise(n, 1), signal + noise(n, 2))
    against = fourier_shell_correlation(signal + noise(n, 3), signal)
    shells = torch.arange(n // 2 + 1, dtype=F64)
    expected = 4 * torch.exp(-((shells / 12) ** 2))
    expected = expected / (1 + expected)
    # independent coefficients of a shell: half of 4 pi s^2; the standard error is below 1 / sqrt of that
    for curve, truth in ((between, expected), (against, expected.sqrt())):
        deviation = (curve - truth)[4:] * (2 * math.pi).__pow__(0.5) * shells[4:]
        assert deviation.abs().max() < 3.5
        assert (curve - truth)[8:].abs().mean() < 0.02
    assert between[6] > 0.7 > 0.2 > between[20]


def test_resolution_shell_interpolates() -> None:
    curve = torch.tensor([1.0, 1.0, 0.9, 0.8, 0.4, 0.2, 0.6, 0.1])
    assert resolution_shell(curve, 0.5) == pytest.approx(3.75)
    assert resolution_shell(curve, 0.143) == pytest.approx(6 + (0.6 - 0.143) / 0.5)
    assert resolution_shell(curve, 0.8) == pytest.approx(3)
    # the first crossing counts, not the last; if the FSC never falls below, the last shell
    assert resolution_shell(curve, 0.3) == pytest.approx(4.5)
    assert resolution_shell(torch.full((9,), 0.7), 0.5) == 8
    # shells 0 and 1 are ignored
    assert resolution_shell(torch.tensor([-1.0, 0.9, 0.9, 0.9]), 0.5) == 3
    assert resolution_shell(torch.tensor([1.0, 0.3, 0.9, 0.1]), 0.5) == pytest.approx(2.5)
    assert resolution_shell(torch.tensor([1.0, 0.3, 0.2, 0.1]), 0.5) == 1


@pytest.mark.parametrize("n", [32, 33])
def test_random_phases_beyond_a_shell(n: int) -> None:
    volume, from_shell = noise(n, 0), 6
    random = randomise_phases(volume, from_shell, torch.Generator().manual_seed(1))
    # the power of each coefficient is kept, and the map stays real
    torch.testing.assert_close(centred_fft(random, 3).abs(), centred_fft(volume, 3).abs())
    near = radius_grid(n, 3) <= from_shell
    torch.testing.assert_close(centred_fft(random, 3)[near], centred_fft(volume, 3)[near])
    fsc = fourier_shell_correlation(volume, random)
    torch.testing.assert_close(fsc[:from_shell], torch.ones(from_shell, dtype=F64))
    # beyond: only random correlation, 1 / sqrt(2 pi s^2)
    shells = torch.arange(from_shell + 1, n // 2 + 1)
    assert (fsc[from_shell + 1 :] * (2 * math.pi) ** 0.5 * shells).abs().max() < 3.5
    same = randomise_phases(volume, from_shell, torch.Generator().manual_seed(1))
    other = randomise_phases(volume, from_shell, torch.Generator().manual_seed(2))
    assert torch.equal(random, same) and fourier_shell_correlation(random, other)[from_shell + 2 :].abs().max() < 0.5


def test_corrected_fsc() -> None:
    masked, random = torch.tensor([1.0, 0.9, 0.8, 0.6, 0.5, 0.3]), torch.tensor([1.0, 0.9, 0.5, 0.2, 0.1, 0.3])
    # beyond shell 1, from shell 3 on: (0.6 - 0.2) / 0.8, (0.5 - 0.1) / 0.9, 0
    torch.testing.assert_close(corrected_fsc(masked, random, 1), torch.tensor([1.0, 0.9, 0.8, 0.5, 4 / 9, 0.0]))


def test_correlation_from_the_mask_is_corrected() -> None:
    """Maps that agree up to shell 8 with noise beyond it: a tight mask raises the FSC there, which is corrected."""
    n, from_shell = 48, 8
    radius = radius_grid(n, 3)
    mask = torch.exp(-(radius / 7).square()).double()
    beyond = (radius > from_shell).double()
    signal = centred_ifft(centred_fft(noise(n, 0), 3) * (1 - beyond), 3).real * 3

    def with_noise(seed: int) -> Tensor:
        return signal + centred_ifft(centred_fft(noise(n, seed), 3) * beyond, 3).real

    maps = with_noise(1), with_noise(2)
    masked = fourier_shell_correlation(*(m * mask for m in maps))
    randomised = [randomise_phases(m, from_shell, torch.Generator().manual_seed(s)) for m, s in zip(maps, (3, 4), strict=True)]
    masked_random = fourier_shell_correlation(*(m * mask for m in randomised))
    corrected = corrected_fsc(masked, masked_random, from_shell)
    assert torch.equal(corrected[: from_shell + 2], masked[: from_shell + 2])
    assert masked[from_shell + 1] > 0.5
    assert corrected[from_shell + 3 :].abs().mean() < 0.12


def soft_ball(n: int, radius: float, edge: float) -> Tensor:
    return 0.5 + 0.5 * torch.cos(math.pi * ((radius_grid(n, 3).double() - radius) / edge).clamp(0, 1))


def mean_curves(curves: list[MaskedFSC]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean unmasked, masked, randomised and corrected curves over repeats."""
    unmasked, masked, randomised, corrected = (
        torch.stack([getattr(c, name) for c in curves]).mean(0) for name in ("unmasked", "masked", "randomised", "corrected")
    )
    return unmasked, masked, randomised, corrected


def test_pure_noise_in_a_tight_mask() -> None:
    """Noise with a common mean: inside the mask the half-maps share the shape of the mask."""
    n, repeats = 24, 48
    mask = soft_ball(n, 3, 2)
    curves = [
        masked_fsc(noise(n, 2 * s) + 1, noise(n, 2 * s + 1) + 1, mask, torch.Generator().manual_seed(s)) for s in range(repeats)
    ]
    for c in curves:
        assert c.from_shell == 2 and torch.equal(c.corrected[:4], c.masked[:4])
    unmasked, masked, randomised, corrected = mean_curves(curves)
    assert masked[1:7].min() > 0.4 and randomised[1:7].min() > 0.4
    assert unmasked[1:].abs().max() < 0.143
    assert corrected[4:].abs().max() < 0.143 and corrected[4:].mean().abs() < 0.04


def test_corrected_curve_of_a_particle_in_noise_has_the_known_expectation() -> None:
    """SNR / (1 + SNR), with the SNR inside the mask; without a mask solvent noise lowers it."""
    n, repeats = 48, 6
    mask = soft_ball(n, 12, 5)

    def snr(radius: Tensor) -> Tensor:
        return 6 * torch.exp(-((radius / 12) ** 2))

    curves = []
    for s in range(0, 3 * repeats, 3):
        signal = centred_ifft(centred_fft(noise(n, s), 3) * snr(radius_grid(n, 3).double()).sqrt(), 3).real * mask
        curves.append(masked_fsc(signal + noise(n, s + 1), signal + noise(n, s + 2), mask, torch.Generator().manual_seed(s)))
    unmasked, masked, randomised, corrected = mean_curves(curves)
    shells = torch.arange(n // 2 + 1, dtype=F64)
    # the particle is masked twice, the noise once
    inside = snr(shells) * mask.pow(4).mean() / mask.square().mean()
    outside = snr(shells) * mask.square().mean()
    independent = (2 * math.pi * repeats * mask.square().mean()).sqrt() * shells
    for curve in (masked, corrected):
        difference = curve - inside / (1 + inside)
        assert (difference * independent)[4:].abs().max() < 3.5
        assert difference[6:].abs().mean() < 0.02
    assert (unmasked - outside / (1 + outside))[6:].abs().mean() < 0.02
    assert corrected[8] > unmasked[8] + 0.3
    assert randomised[5:].abs().mean() < 0.05


def test_phases_are_randomised_where_the_unmasked_fsc_falls() -> None:
    n, last = 32, 7
    shared_ft, near = centred_fft(noise(n, 0), 3), radius_grid(n, 3) < last + 0.5
    one, two = (centred_ifft(torch.where(near, shared_ft, centred_fft(noise(n, s), 3)), 3).real for s in (1, 2))
    curves = masked_fsc(one, two, soft_ball(n, 8, 4), torch.Generator().manual_seed(0))
    assert curves.from_shell == last
    again = masked_fsc(one, two, soft_ball(n, 8, 4), torch.Generator().manual_seed(0))
    other = masked_fsc(one, two, soft_ball(n, 8, 4), torch.Generator().manual_seed(1))
    assert torch.equal(curves.randomised, again.randomised) and not torch.equal(curves.randomised, other.randomised)
    torch.testing.assert_close(curves.corrected, corrected_fsc(curves.masked, curves.randomised, last))
    # the FSC never falls: only the corners are randomised, and nothing is corrected
    same = masked_fsc(one, one, soft_ball(n, 8, 4), torch.Generator().manual_seed(0))
    assert same.from_shell == n // 2
    for curve in (same.unmasked, same.masked, same.corrected):
        torch.testing.assert_close(curve, torch.ones(n // 2 + 1, dtype=F64))
