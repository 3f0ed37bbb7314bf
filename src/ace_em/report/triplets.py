"""Input image, predicted image and clean projection of a few particles (figure 7 of the paper)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ace_em.data.particles import Particles
from ace_em.data.preprocess import normalise
from ace_em.errors import InputError
from ace_em.maths.fourier import HalfPlane, fourier_resize
from ace_em.maths.slices import volume_to_ft
from ace_em.physics.ctf import ctf
from ace_em.physics.imaging import clean_image_ft
from ace_em.physics.pose import Pose
from ace_em.report.run_files import Map

# a picture on a page shows no more, and a padded transform of a larger map costs gigabytes
MAX_BOX = 128
# relative difference of the edges of images and map, in Angstrom, that rounding can explain
_EXTENT_TOLERANCE = 0.02


@dataclass(frozen=True)
class Triplet:
    """Pictures (n, n) of one particle.

    Attributes
    ----------
    row : of the particle in poses.star, counted from 1.
    image : the input, protein white, low-passed.
    predicted : the map's projection with CTF and shift.
    clean : the projection without CTF and shift.
    correlation : of ``image`` and ``predicted``.
    """

    row: int
    image: np.ndarray
    predicted: np.ndarray
    clean: np.ndarray
    correlation: float


def make_triplets(particles: Particles, volume: Map, sign: float, low_pass_angstrom: float, n: int = 5) -> list[Triplet]:
    """Triplets of ``n`` particles spread evenly over the set, whatever they look like.

    Parameters
    ----------
    particles : the set with its refined poses.
    volume : the map; its box has the images' extent in Angstrom.
    sign : +1 when the protein is white on disk, -1 when it is black.
    low_pass_angstrom : frequencies beyond this are damped in the input.
    """
    extent = particles.box * particles.pixel_size_angstrom
    if abs(volume.volume.shape[0] * volume.pixel_size_angstrom / extent - 1) > _EXTENT_TOLERANCE:
        raise InputError(f"the images are {extent:.0f} Angstrom wide, the map is not: the two cannot be compared")
    poses = particles.poses()
    if poses is None:
        raise InputError("poses.star has no angles")
    rows = np.unique(np.linspace(0, len(particles) - 1, n).round().astype(np.int64))
    box = min(volume.volume.shape[0], MAX_BOX)
    predicted, clean = _predict(particles, poses, volume, rows, box)
    images = fourier_resize(normalise(torch.from_numpy(particles.images(rows)), sign), box, 2)
    images = _low_pass(images, extent / low_pass_angstrom)
    agreement = [_correlation(a, b) for a, b in zip(images, predicted, strict=True)]
    return [
        Triplet(int(row) + 1, a.numpy(), b.numpy(), c.numpy(), r)
        for row, a, b, c, r in zip(rows, images, predicted, clean, agreement, strict=True)
    ]


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def _predict(particles: Particles, poses: Pose, volume: Map, rows: np.ndarray, box: int) -> tuple[Tensor, Tensor]:
    """Predicted images and clean projections (n, box, box)."""
    volume_ft = volume_to_ft(fourier_resize(torch.tensor(volume.volume), box, 3))
    half_plane = HalfPlane.within(box)
    chosen = torch.from_numpy(rows)
    pose = poses[chosen].rescaled(box / particles.box)
    transfer = ctf(particles.ctf[chosen], half_plane, particles.pixel_size_angstrom * particles.box / box)
    predicted = clean_image_ft(volume_ft, transfer, half_plane, pose)
    centred = Pose(pose.rotation, torch.zeros_like(pose.shift_px))
    clean = clean_image_ft(volume_ft, torch.ones_like(transfer), half_plane, centred)
    return half_plane.to_image(predicted), half_plane.to_image(clean)


def _low_pass(images: Tensor, cut: float) -> Tensor:
    """Images (n, box, box) damped by ``exp(-(k / cut)^2 / 2)``, ``cut`` in cycles per box."""
    half_plane = HalfPlane.within(images.shape[-1])
    return half_plane.to_image(half_plane.from_image(images) * torch.exp(-0.5 * (half_plane.radius / cut).square()))
