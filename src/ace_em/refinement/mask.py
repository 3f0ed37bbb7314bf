"""Automatic soft mask of the particle, from the map itself."""

import math

import torch
from scipy import ndimage
from torch import Tensor

from ace_em.maths.fourier import centred_fft, centred_ifft, radius_grid, resize

# threshold above the solvent level: the larger of these multiples of the solvent noise and of the particle density
NOISE_LEVELS = 3.0
DENSITY_FRACTION = 0.15
# if the particle density is less than this many standard deviations above the solvent, the map is low-passed further,
# down to the least shell
CLEAR_LEVELS = 6.0
LEAST_SHELL = 2.5
# bound on the rounding error of the FFT, in machine epsilons of the largest value; it grows only with the log of the box
FFT_ROUNDING = 64
# connected components smaller than this fraction of the largest are dust
DUST_FRACTION = 0.1
# components of fewer resolution cells than this are dust too; a cell is a cube of half the low-pass period, and a single
# hot voxel spreads over 3
DUST_CELLS = 4.0


def soft_mask(volume: Tensor, low_pass_shell: float, dilate_px: float, edge_px: float, inside: Tensor | None = None) -> Tensor:
    """Soft mask (n, n, n): 1 on the particle, with a raised-cosine edge to 0.

    The map is low-passed and thresholded, dust is removed, and the result is dilated. The solvent level is the mode of the
    voxel values. The solvent noise is estimated from the values below the mode, where there is no particle density. If no
    density rises above the solvent, the mask is ``inside``, or 1 everywhere.

    Parameters
    ----------
    volume : (n, n, n) map with positive density. It may be 0 outside ``inside``.
    low_pass_shell : shell at which the Gaussian low-pass halves the amplitudes. A map too noisy for a clear separation of
        particle and solvent is low-passed further.
    dilate_px : distance from the thresholded particle at which the soft edge begins.
    edge_px : width of the soft edge.
    inside : (n, n, n) in [0, 1], for example a soft ball around the particle. Solvent and particle are sought inside it, and
        the mask is multiplied by it.
    """
    whole = torch.ones_like(volume) if inside is None else inside
    core = _core(volume, low_pass_shell, whole > 0.9)
    if not core.any():
        return whole
    distance = _distance_px(core)
    fall = ((distance - dilate_px) / max(edge_px, 1e-6)).clamp(0, 1)
    return (0.5 + 0.5 * torch.cos(math.pi * fall)) * whole


def _core(volume: Tensor, shell: float, region: Tensor) -> Tensor:
    """Voxels above the threshold, (n, n, n) bool; all False if no density rises above the solvent."""
    while region.any() and shell >= LEAST_SHELL:
        smooth = _smoothed(volume, shell)
        solvent, noise, density = _levels(smooth[region])
        # in a constant map the only differences from the solvent level are FFT rounding errors
        rounding = FFT_ROUNDING * torch.finfo(volume.dtype).eps * volume.abs().max().item()
        if density > CLEAR_LEVELS * noise + rounding:
            core = (smooth > solvent + max(NOISE_LEVELS * noise, DENSITY_FRACTION * density)) & region
            return _without_dust(core, DUST_CELLS * (volume.shape[-1] / (2 * shell)) ** 3)
        shell *= 0.75
    return torch.zeros_like(region)


def _smoothed(volume: Tensor, shell: float) -> Tensor:
    """The map after a Gaussian low-pass that is 1/2 at ``shell``, padded to avoid wrap-around at the box faces."""
    n = volume.shape[-1]
    sigma_px = n * math.sqrt(2 * math.log(2)) / (2 * math.pi * shell)
    size = n + 2 * math.ceil(2 * sigma_px)
    padded = resize(volume, size, 3, fill=volume.median().item())
    gaussian = torch.exp(-2 * (math.pi * sigma_px / size * radius_grid(size, 3, volume.device)).square()).to(volume.dtype)
    return resize(centred_ifft(centred_fft(padded, 3) * gaussian, 3).real, n, 3)


def _levels(values: Tensor) -> tuple[float, float, float]:
    """Solvent level, standard deviation of the solvent noise, and particle density above the solvent, from flat ``values``."""
    solvent = _mode(values)
    below = solvent - values[values < solvent]
    # the median absolute deviation of a normal distribution is 0.6745 standard deviations
    noise = below.median().item() / 0.6745 if len(below) else 0.0
    excess = values[values > solvent + NOISE_LEVELS * noise] - solvent
    # weighted by density, so that the many faint voxels at the edge of the particle count little
    density = (excess.square().sum() / excess.sum()).item() if len(excess) else 0.0
    return solvent, noise, density


def _mode(values: Tensor) -> float:
    """Half-sample mode: repeatedly keep the shortest interval with half of the values, down to a 32nd of them."""
    values = values.sort().values
    for _ in range(5):
        half = len(values) // 2
        if half < 2:
            break
        start = int((values[half:] - values[: len(values) - half]).argmin())
        values = values[start : start + half + 1]
    return values.mean().item()


def _without_dust(core: Tensor, smallest: float) -> Tensor:
    """``core`` (n, n, n) bool without connected components of fewer than ``smallest`` voxels or far below the largest.

    Voxels that share a face are connected.
    """
    part, _ = ndimage.label(core.numpy())
    size = torch.bincount(torch.from_numpy(part).flatten())
    size[0] = 0  # background
    keep = size >= max(smallest, DUST_FRACTION * size.max().item(), 1)
    return keep[torch.from_numpy(part).long()]


def _distance_px(core: Tensor) -> Tensor:
    """Distance (n, n, n) of each voxel from the nearest voxel of ``core``, in voxels."""
    return torch.from_numpy(ndimage.distance_transform_edt(~core.numpy())).float()
