"""What is done to two half-maps once they are final: masked FSC, weighting, sharpening.

The average of the halves is weighted by how far its shells are signal and its fall-off with resolution is undone
(Rosenthal and Henderson 2003; Scheres 2012, section 2.6). A B factor is in Angstrom^2: amplitudes fall as
``exp(B_map k^2 / 4)`` with ``k`` in 1/Angstrom, so that a map's own B is negative, and ``exp(-B k^2 / 4)`` undoes it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.maths.fourier import centred_fft, centred_ifft, radius_grid, shell_sums
from ace_em.metrics.fsc import MaskedFSC, masked_fsc, resolution_shell

# the Guinier plot of a protein is a line beyond 10 A; nearer zero its shape decides
GUINIER_FROM_ANGSTROM = 10.0
LEAST_SHELLS = 4
SHARPEST_B_FACTOR = -1000.0
EDGE_SHELLS = 2.0


@dataclass(frozen=True)
class PostProcessed:
    """The final map and how it was made.

    Attributes
    ----------
    volume : (n, n, n) average of the halves, FSC-weighted, low-passed, sharpened and masked.
    mask : (n, n, n) the mask.
    curves : FSC of the halves, with and without the mask.
    b_factor : Angstrom^2; negative sharpens, 0 leaves the amplitudes.
    b_factor_note : a sentence on where the B factor comes from.
    resolution_shell : where the corrected FSC falls below 0.143.
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
    half1, half2 : (n, n, n) half-maps, refined independently, without a filter that follows the FSC.
    mask : (n, n, n) in [0, 1], soft.
    pixel_size_angstrom : Angstrom per voxel.
    generator : for the phase randomisation.
    b_factor : Angstrom^2, negative to sharpen; fitted when not given.
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
    """``sqrt(2 FSC / (1 + FSC))``, the expected correlation of the halves' average with the truth, 0 where FSC < 0.

    Shell 0, a single coefficient that has no FSC, is kept whole.
    """
    fsc = fsc.clamp(0.0, 1.0)
    weight = (2 * fsc / (1 + fsc)).sqrt()
    weight[0] = 1.0
    return weight


def guinier_b_factor(volume: Tensor, weight: Tensor, resolution: float, pixel_size_angstrom: float) -> tuple[float, str]:
    """B factor (Angstrom^2, 0 to -1000) that makes the amplitudes level from 10 A to the resolution, and a sentence on it.

    A line through ln of each shell's mean weighted amplitude against 1 / d^2 has the slope B / 4 (Rosenthal and Henderson
    2003). With fewer than four shells in that range there is nothing to fit, and B is 0.

    Parameters
    ----------
    volume : (n, n, n) average of the half-maps inside the mask that the weight is from: then weight^2 times its power is the
        signal's. RELION takes the average without the mask, whose solvent noise makes the fall-off look slower, and fits
        to Nyquist unless told not to.
    weight : (n // 2 + 1,) of its shells.
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
    x_from_mean = x - x.mean()
    fitted = 4 * ((x_from_mean * y).sum() / x_from_mean.square().sum()).item()
    b_factor = min(0.0, max(SHARPEST_B_FACTOR, fitted))
    found = f"B factor of {b_factor:.0f} A^2"
    if b_factor != fitted:
        found += f" (the fit's {fitted:.0f} is outside of {SHARPEST_B_FACTOR:.0f} to 0)"
    return b_factor, f"{found}, fitted to {span}."


def filtered(volume: Tensor, weight: Tensor, resolution: float, b_factor: float, pixel_size_angstrom: float) -> Tensor:
    """The volume (n, n, n) times ``weight`` (n // 2 + 1,) of its shells and ``exp(-B k^2 / 4)``, low-passed at a shell.

    The low-pass is a cosine two shells wide about ``resolution``.
    """
    n = volume.shape[-1]
    radius = radius_grid(n, 3, volume.device)
    shells = radius.round().long()
    inside = shells < len(weight)
    fall = ((radius - resolution) / EDGE_SHELLS + 0.5).clamp(0, 1)
    transfer = (0.5 + 0.5 * torch.cos(math.pi * fall)) * torch.exp(-b_factor / 4 * (radius / (n * pixel_size_angstrom)).square())
    transfer = torch.where(inside, transfer * weight[shells.clamp(max=len(weight) - 1)], 0.0)
    return centred_ifft(centred_fft(volume, 3) * transfer, 3).real
