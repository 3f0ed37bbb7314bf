"""Fourier shell correlation (FSC), resolution at a threshold, phase randomisation, and masked FSC."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.maths.fourier import centred_fft, centred_ifft, radius_grid, shell_sums


def fourier_shell_correlation(a: Tensor, b: Tensor) -> Tensor:
    """FSC (n // 2 + 1,) of two volumes (n, n, n) in integer shells. A shell without power has an FSC of 0."""
    a_ft, b_ft = centred_fft(a, 3).flatten(), centred_fft(b, 3).flatten()
    n = a.shape[-1]
    shells = radius_grid(n, 3, a.device).round().long().flatten()
    cross = shell_sums((a_ft * b_ft.conj()).real, shells, n // 2 + 1)
    # take the roots before the product, which could overflow float32 for maps with 16-bit integer values
    power_a, power_b = (shell_sums(v.abs().square(), shells, n // 2 + 1).sqrt() for v in (a_ft, b_ft))
    return cross / (power_a * power_b).clamp(min=torch.finfo(cross.dtype).tiny)


def resolution_shell(fsc: Tensor, threshold: float) -> float:
    """Interpolated shell at which the FSC first falls below ``threshold``; the last shell if it never does.

    Shells 0 and 1 have only a few coefficients and are ignored.
    """
    for shell in range(2, len(fsc)):
        if fsc[shell] < threshold:
            high, low = fsc[shell - 1].item(), fsc[shell].item()
            if high < threshold:
                return float(shell - 1)
            return shell - 1 + (high - threshold) / max(high - low, 1e-12)
    return float(len(fsc) - 1)


def randomise_phases(volume: Tensor, from_shell: int, generator: torch.Generator) -> Tensor:
    """The volume (n, n, n) with the phases beyond ``from_shell`` replaced by those of white noise (Chen et al. 2013)."""
    volume_ft = centred_fft(volume, 3)
    noise_ft = centred_fft(torch.randn(volume.shape, generator=generator, dtype=volume.dtype), 3)
    random_ft = volume_ft.abs() * noise_ft / noise_ft.abs().clamp(min=1e-20)
    beyond = radius_grid(volume.shape[-1], 3) > from_shell
    return centred_ifft(torch.where(beyond, random_ft, volume_ft), 3).real


def corrected_fsc(masked: Tensor, masked_random: Tensor, from_shell: int) -> Tensor:
    """``(FSC_masked - FSC_random) / (1 - FSC_random)`` from shell ``from_shell + 2`` on, and ``FSC_masked`` below it."""
    corrected = (masked - masked_random) / (1 - masked_random).clamp(min=1e-6)
    keep = torch.arange(len(masked)) < from_shell + 2
    return torch.where(keep, masked, corrected)


@dataclass(frozen=True)
class MaskedFSC:
    """FSC curves of two half-maps, (n // 2 + 1,) each, corrected for the effect of the mask (Chen et al. 2013).

    Attributes
    ----------
    unmasked : FSC of the unmasked half-maps.
    masked : FSC of the masked half-maps.
    randomised : FSC of the masked, phase-randomised half-maps: the correlation caused by the mask.
    corrected : ``masked``, corrected for ``randomised``.
    from_shell : shell beyond which phases are randomised, where ``unmasked`` falls below 0.8.
    """

    unmasked: Tensor
    masked: Tensor
    randomised: Tensor
    corrected: Tensor
    from_shell: int


def masked_fsc(map1: Tensor, map2: Tensor, mask: Tensor, generator: torch.Generator) -> MaskedFSC:
    """Masked FSC of two half-maps, all (n, n, n), corrected for the effect of the mask by phase randomisation."""
    unmasked = fourier_shell_correlation(map1, map2)
    from_shell = max(2, int(resolution_shell(unmasked, 0.8)))
    masked = fourier_shell_correlation(map1 * mask, map2 * mask)
    random1, random2 = (randomise_phases(m, from_shell, generator) * mask for m in (map1, map2))
    randomised = fourier_shell_correlation(random1, random2)
    return MaskedFSC(unmasked, masked, randomised, corrected_fsc(masked, randomised, from_shell), from_shell)
