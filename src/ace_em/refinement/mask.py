"""A soft mask of the particle, made from the map itself."""

import math

import torch
from scipy import ndimage
from torch import Tensor

from ace_em.maths.fourier import centred_fft, centred_ifft, radius_grid, resize

# of the threshold above the solvent: in standard deviations of its noise, and as a fraction of the particle's own density
NOISE_LEVELS = 3.0
DENSITY_FRACTION = 0.15
# a particle whose density is fewer deviations above the solvent is looked for after a harder low-pass, down to a shell
CLEAR_LEVELS = 6.0
LEAST_SHELL = 2.5
# bound of an FFT's error, in units of the largest value's last digit: it grows with the logarithm of the box only
FFT_ROUNDING = 64
# parts smaller than this fraction of the largest are dust
DUST_FRACTION = 0.1
# and so are parts of fewer cells of half the low-pass period than this: a single hot voxel becomes 3
DUST_CELLS = 4.0


def soft_mask(volume: Tensor, low_pass_shell: float, dilate_px: float, edge_px: float, inside: Tensor | None = None) -> Tensor:
    """Mask (n, n, n) of the particle, 1 on it and falling to 0 by a cosine of the distance from it.

    The map is low-passed; what stands out of the solvent is kept, dust is dropped, and the rest dilated. Solvent is where
    the voxels' values are densest, and its noise is measured below that value, where no particle is; the map may be 0
    outside ``inside``. Where nothing stands out the mask is ``inside``, or 1.

    Parameters
    ----------
    volume : (n, n, n) map, particle positive.
    low_pass_shell : shell at which the low-pass (a Gaussian) halves the amplitudes; a map so noisy that the particle does not
        stand out clearly is low-passed harder.
    dilate_px : distance from the thresholded particle at which the mask starts to fall.
    edge_px : width of the fall.
    inside : (n, n, n) in [0, 1], for instance the particle's ball: solvent and particle are looked for, and the mask kept,
        in there.
    """
    whole = torch.ones_like(volume) if inside is None else inside
    core = _core(volume, low_pass_shell, whole > 0.9)
    if not core.any():
        return whole
    distance = _distance_px(core)
    fall = ((distance - dilate_px) / max(edge_px, 1e-6)).clamp(0, 1)
    return (0.5 + 0.5 * torch.cos(math.pi * fall)) * whole


def _core(volume: Tensor, shell: float, region: Tensor) -> Tensor:
    """Voxels (n, n, n) bool of the particle, none where nothing stands out of the solvent."""
    while region.any() and shell >= LEAST_SHELL:
        smooth = _smoothed(volume, shell)
        solvent, noise, density = _levels(smooth[region])
        # a constant map differs from its solvent by the FFT's rounding alone
        rounding = FFT_ROUNDING * torch.finfo(volume.dtype).eps * volume.abs().max().item()
        if density > CLEAR_LEVELS * noise + rounding:
            core = (smooth > solvent + max(NOISE_LEVELS * noise, DENSITY_FRACTION * density)) & region
            return _without_dust(core, DUST_CELLS * (volume.shape[-1] / (2 * shell)) ** 3)
        shell *= 0.75
    return torch.zeros_like(region)


def _smoothed(volume: Tensor, shell: float) -> Tensor:
    """The map after a Gaussian that is 1/2 at ``shell``; padded, so that no face of the box leaks to the opposite one."""
    n = volume.shape[-1]
    sigma_px = n * math.sqrt(2 * math.log(2)) / (2 * math.pi * shell)
    size = n + 2 * math.ceil(2 * sigma_px)
    padded = resize(volume, size, 3, fill=volume.median().item())
    gaussian = torch.exp(-2 * (math.pi * sigma_px / size * radius_grid(size, 3, volume.device)).square()).to(volume.dtype)
    return resize(centred_ifft(centred_fft(padded, 3) * gaussian, 3).real, n, 3)


def _levels(values: Tensor) -> tuple[float, float, float]:
    """Of the values of a region, flat: solvent's level, its noise's standard deviation, the particle's density above it."""
    solvent = _mode(values)
    below = solvent - values[values < solvent]
    # the median distance from the centre of a normal distribution is 0.6745 standard deviations
    noise = below.median().item() / 0.6745 if len(below) else 0.0
    excess = values[values > solvent + NOISE_LEVELS * noise] - solvent
    # weighted by itself, so that the many voxels of the edges do not count
    density = (excess.square().sum() / excess.sum()).item() if len(excess) else 0.0
    return solvent, noise, density


def _mode(values: Tensor) -> float:
    """Where values are densest: the shortest half of them, the shortest half of that, and so on to a 32nd."""
    values = values.sort().values
    for _ in range(5):
        half = len(values) // 2
        if half < 2:
            break
        start = int((values[half:] - values[: len(values) - half]).argmin())
        values = values[start : start + half + 1]
    return values.mean().item()


def _without_dust(core: Tensor, smallest: float) -> Tensor:
    """``core`` (n, n, n) bool without parts of fewer than ``smallest`` voxels, or far smaller than the largest part.

    Voxels that share a face are connected.
    """
    part, _ = ndimage.label(core.numpy())
    size = torch.bincount(torch.from_numpy(part).flatten())
    size[0] = 0  # what is no particle
    keep = size >= max(smallest, DUST_FRACTION * size.max().item(), 1)
    return keep[torch.from_numpy(part).long()]


def _distance_px(core: Tensor) -> Tensor:
    """Distance (n, n, n) of each voxel from the nearest of ``core``, in voxels."""
    return torch.from_numpy(ndimage.distance_transform_edt(~core.numpy())).float()
