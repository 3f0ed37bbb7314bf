"""Simulated particle images from a density, poses, CTFs and noise (appendix B)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import roma
import torch
from torch import Tensor

from ace_em.config import SimulationConfig
from ace_em.maths.fourier import fourier_resize, resize
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.slices import central_slices, volume_to_ft
from ace_em.physics.ctf import CTFParameters, ctf
from ace_em.physics.imaging import image_of_slice
from ace_em.physics.noise import snr_db_to_noise_sd
from ace_em.physics.pose import Pose
from ace_em.simulation.density import density_map, project_atoms
from ace_em.simulation.structure import Atoms

BLOCK = 100
PADDING = 64
"""Maximum padding of a map, in voxels, to match the new pixel size."""


@dataclass(frozen=True)
class Specimen:
    """The specimen: atoms, or None for a map, and the ground-truth volume (box, box, box) at the box of the images."""

    atoms: Atoms | None
    volume: Tensor


def specimen_from_atoms(atoms: Atoms, config: SimulationConfig) -> Specimen:
    """Specimen from atoms, with their molmap-like density."""
    return Specimen(atoms, density_map(atoms, config.box, config.pixel_size, config.resolution))


def specimen_from_map(volume: Tensor, pixel_size_angstrom: float, config: SimulationConfig) -> Specimen:
    """Specimen from a cubic map (n, n, n), resampled to the box and pixel size of the images.

    The map is first padded to the size that comes closest to a whole number of new pixels.
    """
    n, ratio = volume.shape[-1], pixel_size_angstrom / config.pixel_size
    padded = min(range(n, n + PADDING), key=lambda m: abs(round(m * ratio) / (m * ratio) - 1))
    resampled = fourier_resize(resize(volume, padded, 3), round(padded * ratio), 3)
    return Specimen(None, resize(resampled, config.box, 3))


def sample_poses(config: SimulationConfig, generator: torch.Generator) -> Pose:
    """Uniform rotations and Gaussian shifts."""
    rotation = roma.random_rotmat(config.n, generator=generator)
    shift = torch.randn(config.n, 2, generator=generator) * (config.shift_sd / config.pixel_size)
    return Pose(rotation, shift)


def sample_ctf(config: SimulationConfig, generator: torch.Generator) -> CTFParameters:
    """Log-normal defocus about ``config.defocus`` with slight astigmatism, for a single microscope."""
    mean = config.defocus * torch.exp(torch.randn(config.n, generator=generator) * config.defocus_spread)
    half = torch.randn(config.n, generator=generator).abs() * (config.astigmatism / 2)
    angle = torch.rand(config.n, generator=generator) * 180
    one = torch.ones(config.n)
    return CTFParameters(
        mean + half,
        mean - half,
        angle,
        one * config.voltage,
        one * config.spherical_aberration,
        one * config.amplitude_contrast,
        torch.zeros(config.n),
    )


def clean_images(specimen: Specimen, pose: Pose, parameters: CTFParameters | None, config: SimulationConfig) -> Tensor:
    """Noise-free images (b, box, box) with CTF and shift (eq. 27); without a CTF if ``parameters`` is None."""
    half_plane = HalfPlane.within(config.box)
    if specimen.atoms is not None:
        plane = project_atoms(specimen.atoms, pose.rotation, config.box, config.pixel_size, config.resolution)
        image_ft = half_plane.gather(plane)
    else:
        image_ft = central_slices(volume_to_ft(specimen.volume, 3), half_plane, pose.rotation)
    no_ctf = torch.ones(1, len(half_plane))
    effective = no_ctf if parameters is None else ctf(parameters, half_plane, config.pixel_size)
    return half_plane.to_image(image_of_slice(image_ft, effective, half_plane, pose.shift_px))


def noise_sd(specimen: Specimen, pose: Pose, parameters: CTFParameters, config: SimulationConfig, n_images: int = 200) -> float:
    """Standard deviation of the noise for the configured SNR.

    The signal is the variance of the noise-free images, with CTF, over the whole box.
    """
    rows = slice(0, min(n_images, len(pose)))
    images = clean_images(specimen, pose[rows], parameters[rows], config)
    return snr_db_to_noise_sd(images.var(dim=(1, 2)).mean().item(), config.snr_db)


def simulate_images(
    specimen: Specimen,
    pose: Pose,
    parameters: CTFParameters,
    config: SimulationConfig,
    generator: torch.Generator,
    on_block: Callable[[int], None] = lambda done: None,
) -> Iterator[Tensor]:
    """Yield noisy images in blocks (b, box, box), scaled to noise of unit standard deviation.

    From an SNR of 100 dB on, which is practically noise-free, they are scaled to a signal of unit variance instead.
    """
    sd = noise_sd(specimen, pose, parameters, config)
    scale = 1 / sd if config.snr_db < 100 else 1 / (sd * 10 ** (config.snr_db / 20))
    for start in range(0, len(pose), BLOCK):
        rows = slice(start, min(start + BLOCK, len(pose)))
        images = clean_images(specimen, pose[rows], parameters[rows], config)
        images = images + torch.randn(images.shape, generator=generator) * sd
        yield images * scale
        on_block(rows.stop)
