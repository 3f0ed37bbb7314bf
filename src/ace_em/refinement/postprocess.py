"""Post-processing of the final half-maps: masked FSC, FSC weighting and B-factor sharpening.

The average of the half-maps is FSC-weighted, and the fall-off of its amplitudes with resolution is corrected (Rosenthal and
Henderson 2003; Scheres 2012, section 2.6). B factors are in Angstrom^2, with RELION's sign: amplitudes fall off as
``exp(B k^2 / 4)``, ``k`` in 1/Angstrom, so B is negative, and the map is sharpened by ``exp(-B k^2 / 4)``.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.maths.fourier import centred_fft, centred_ifft, radius_grid, shell_sums
from ace_em.metrics.fsc import MaskedFSC, masked_fsc, resolution_shell

# the Guinier plot of a protein is linear beyond 10 A; at lower resolution it depends on the shape of the particle
GUINIER_FROM_ANGSTROM = 10.0
LEAST_SHELLS = 4
SHARPEST_B_FACTOR = -1000.0
EDGE_SHELLS = 2.0


@dataclass(frozen=True)
class PostProcessed:
    """The post-processed map and its statistics.

    Attributes
    ----------
    volume : (n, n, n) average of the half-maps, FSC-weighted, low-passed, sharpened and masked.
    mask : (n, n, n) the mask applied.
    curves : half-map FSC curves, with and without the mask.
    b_factor : B factor in Angstrom^2; negative sharpens, 0 leaves the amplitudes unchanged.
    b_factor_note : a sentence on the origin of the B factor.
    resolution_shell : shell at which the corrected FSC falls below 0.143.
    """

    volume: Tensor
    mask: Tensor
    curves: MaskedFSC
    b_factor: float
    b_factor_note: str
    resolution_shell: float


def postprocess(
    half1: Tensor,
    half2: Tensor,
    mask: Tensor,
    pixel_size_angstrom: float,
    generator: torch.Generator,
    b_factor: float | None = None,
) -> PostProcessed:
    """Weight, low-pass, sharpen and mask the average of two half-maps (Rosenthal and Henderson 2003).

    Parameters
    ----------
    half1, half2 : (n, n, n) independently refined half-maps, not FSC-weighted.
    mask : (n, n, n) in [0, 1], soft.
    pixel_size_angstrom : Angstrom per voxel.
    generator : for the phase randomisation.
    b_factor : Angstrom^2, negative to sharpen; fitted if None.
    """
    curves = masked_fsc(half1, half2, mask, generator)
    shell = resolution_shell(curves.corrected, 0.143)
    weight = fsc_weight(curves.corrected)
    average = (half1 + half2) / 2
    if b_factor is None:
        b_factor, note = guinier_b_factor(average * mask, weight, shell, pixel_size_angstrom)
    else:
        note = f"B factor of {b_factor:.0f} A^2, as given."
    volume = filtered(average, weight, shell, b_factor, pixel_size_angstrom) * mask
    return PostProcessed(volume, mask, curves, b_factor, note, shell)


def fsc_weight(fsc: Tensor) -> Tensor:
    """``sqrt(2 FSC / (1 + FSC))``, the expected correlation of the average map with the true map; 0 where FSC < 0.

    Rosenthal and Henderson (2003) call it C_ref. Shell 0 is a single coefficient without a meaningful FSC; its weight is 1.
    """
    fsc = fsc.clamp(0.0, 1.0)
    weight = (2 * fsc / (1 + fsc)).sqrt()
    weight[0] = 1.0
    return weight


def guinier_b_factor(volume: Tensor, weight: Tensor, resolution: float, pixel_size_angstrom: float) -> tuple[float, str]:
    """B factor (Angstrom^2, -1000 to 0) from a Guinier fit between 10 A and the resolution, and a sentence about it.

    A straight line is fitted to ln of the mean weighted amplitude of each shell against 1 / d^2; its slope is B / 4 (Rosenthal
    and Henderson 2003). With fewer than four shells in the range, B is 0.

    Parameters
    ----------
    volume : (n, n, n) average of the half-maps, multiplied by the mask of the FSC behind ``weight``. With the same mask,
        weight^2 times the power is the signal power. RELION fits the unmasked average, where solvent noise makes the fall-off
        look slower, and by default fits up to Nyquist.
    weight : (n // 2 + 1,) FSC weight of each shell.
    resolution : last shell of the fit.
    """
    n = volume.shape[-1]
    shells = radius_grid(n, 3, volume.device).round().long().flatten()
    amplitude = shell_sums(centred_fft(volume, 3).abs().flatten().double(), shells, len(weight))
    amplitude = amplitude / torch.bincount(shells)[: len(weight)] * weight
    shell = torch.arange(len(weight), device=volume.device)
    k = shell / (n * pixel_size_angstrom)
    use = (shell > 0) & (k >= 1 / GUINIER_FROM_ANGSTROM) & (shell <= resolution) & (amplitude > 0)
    count, angstrom = int(use.sum()), n * pixel_size_angstrom / resolution
    span = f"{count} shells between {GUINIER_FROM_ANGSTROM:.0f} A and the resolution, {angstrom:.1f} A"
    if count < LEAST_SHELLS:
        return 0.0, f"Not sharpened: a B factor needs {LEAST_SHELLS} shells, and there are {span}."
    x, y = k[use].double().square(), amplitude[use].log()
    x_centred = x - x.mean()
    fitted = 4 * ((x_centred * y).sum() / x_centred.square().sum()).item()
    b_factor = min(0.0, max(SHARPEST_B_FACTOR, fitted))
    note = f"B factor of {b_factor:.0f} A^2"
    if b_factor != fitted:
        note += f" (the fitted {fitted:.0f} is outside the range {SHARPEST_B_FACTOR:.0f} to 0)"
    return b_factor, f"{note}, fitted to {span}."


def filtered(volume: Tensor, weight: Tensor, resolution: float, b_factor: float, pixel_size_angstrom: float) -> Tensor:
    """The volume (n, n, n) times the shell weights (n // 2 + 1,) and ``exp(-B k^2 / 4)``, low-passed at shell ``resolution``.

    The low-pass has a raised-cosine edge two shells wide, centred on ``resolution``.
    """
    n = volume.shape[-1]
    radius = radius_grid(n, 3, volume.device)
    shells = radius.round().long()
    inside = shells < len(weight)
    fall = ((radius - resolution) / EDGE_SHELLS + 0.5).clamp(0, 1)
    transfer = (0.5 + 0.5 * torch.cos(math.pi * fall)) * torch.exp(-b_factor / 4 * (radius / (n * pixel_size_angstrom)).square())
    transfer = torch.where(inside, transfer * weight[shells.clamp(max=len(weight) - 1)], 0.0)
    return centred_ifft(centred_fft(volume, 3) * transfer, 3).real
