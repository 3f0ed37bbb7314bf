"""Input image, predicted image and clean projection of a few particles (figure 7 of the paper)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ace_em.data.particles import Particles
from ace_em.data.preprocess import normalise
from ace_em.errors import InputError
from ace_em.maths.fourier import fourier_resize
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.slices import VolumeFT, volume_to_ft
from ace_em.physics.ctf import ctf
from ace_em.physics.imaging import clean_image_ft
from ace_em.physics.pose import Pose
from ace_em.report.run_files import Map

# a picture on a page shows no more, and a padded transform of a larger map costs gigabytes
MAX_BOX = 128
# relative difference of the edges of images and map, in Angstrom, that rounding can explain
_EXTENT_TOLERANCE = 0.02
# images that are worked on at a time
_BLOCK = 100


@dataclass(frozen=True)
class Triplet:
    """Pictures (n, n) of one particle.

    Attributes
    ----------
    row : of the particle in poses.star, counted from 1.
    name : of its image there.
    image : the input, protein white, low-passed.
    predicted : the map's projection with CTF and shift.
    clean : the projection without CTF and shift.
    correlation : of ``image`` and ``predicted``.
    """

    row: int
    name: str
    image: np.ndarray
    predicted: np.ndarray
    clean: np.ndarray
    correlation: float


@dataclass(frozen=True)
class Comparison:
    """Particles beside what the map predicts for them.

    Attributes
    ----------
    volume_ft : padded transform of the map, cropped to ``box`` samples an edge.
    sign : +1 when the protein is white on disk, -1 when it is black.
    low_pass : cycles per box beyond which the input is damped.
    """

    particles: Particles
    poses: Pose
    volume_ft: VolumeFT
    box: int
    sign: float
    low_pass: float

    @staticmethod
    def of(particles: Particles, volume: Map, sign: float, low_pass_angstrom: float) -> "Comparison":
        """The set with its refined poses beside the map, whose box has the images' extent in Angstrom."""
        extent = particles.box * particles.pixel_size_angstrom
        if abs(volume.volume.shape[0] * volume.pixel_size_angstrom / extent - 1) > _EXTENT_TOLERANCE:
            raise InputError(f"the images are {extent:.0f} Angstrom wide, the map is not: the two cannot be compared")
        poses = particles.poses()
        if poses is None:
            raise InputError("poses.star has no angles")
        box = min(volume.volume.shape[0], MAX_BOX)
        volume_ft = volume_to_ft(fourier_resize(torch.tensor(volume.volume), box, 3))
        return Comparison(particles, poses, volume_ft, box, sign, extent / low_pass_angstrom)

    @property
    def pixel_size_angstrom(self) -> float:
        return self.particles.pixel_size_angstrom * self.particles.box / self.box

    def inputs(self, rows: np.ndarray) -> Tensor:
        """Low-passed images (n, box, box)."""
        images = normalise(torch.from_numpy(self.particles.images(rows)), self.sign)
        return _low_pass(fourier_resize(images, self.box, 2), self.low_pass)

    def predicted(self, rows: np.ndarray) -> Tensor:
        """What the map predicts of these images (n, box, box)."""
        chosen, half_plane = torch.from_numpy(rows), HalfPlane.within(self.box)
        transfer = ctf(self.particles.ctf[chosen], half_plane, self.pixel_size_angstrom)
        pose = self.poses[chosen].rescaled(self.box / self.particles.box)
        return half_plane.to_image(clean_image_ft(self.volume_ft, transfer, half_plane, pose))

    def clean(self, rows: np.ndarray) -> Tensor:
        """Projections (n, box, box) without CTF and shift."""
        rotation, half_plane = self.poses[torch.from_numpy(rows)].rotation, HalfPlane.within(self.box)
        centred = Pose(rotation, torch.zeros(len(rows), 2))
        return half_plane.to_image(clean_image_ft(self.volume_ft, torch.ones(len(rows), len(half_plane)), half_plane, centred))

    def correlations(self, rows: np.ndarray) -> np.ndarray:
        """Of input and prediction, (n,)."""
        blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
        return np.concatenate([_correlations(self.inputs(block), self.predicted(block)) for block in blocks])

    def triplets(self, rows: np.ndarray) -> list[Triplet]:
        """The pictures of some particles."""
        images, predicted, clean = self.inputs(rows), self.predicted(rows), self.clean(rows)
        names = self.particles.image_names
        agreement = _correlations(images, predicted)
        return [
            Triplet(int(row) + 1, names[row], a.numpy(), b.numpy(), c.numpy(), float(r))
            for row, a, b, c, r in zip(rows, images, predicted, clean, agreement, strict=True)
        ]


@dataclass(frozen=True)
class Extremes:
    """The particles that agree best (first) and worst (last) with the map, of ``n`` looked at, and the median of these."""

    best: list[Triplet]
    worst: list[Triplet]
    n: int
    median: float


def evenly(n: int, of: int) -> np.ndarray:
    """Up to ``n`` rows spread evenly over ``of`` of them."""
    return np.unique(np.linspace(0, of - 1, n).round().astype(np.int64))


def extremes(comparison: Comparison, among: int = 300, shown: int = 4) -> Extremes:
    """The best and the worst of up to ``among`` particles spread evenly over the set; the very worst comes last."""
    rows = evenly(among, len(comparison.particles))
    agreement = comparison.correlations(rows)
    order = rows[np.argsort(-agreement, kind="stable")]
    shown = min(shown, len(rows) // 2)
    if shown == 0:
        raise InputError("one particle has neither better nor worse ones")
    best, worst = comparison.triplets(order[:shown]), comparison.triplets(order[-shown:])
    return Extremes(best, worst, len(rows), float(np.median(agreement)))


def _correlations(a: Tensor, b: Tensor) -> np.ndarray:
    """Of pictures (n, box, box), pair by pair: (n,)."""
    a, b = (x.flatten(1) - x.mean((1, 2))[:, None] for x in (a, b))
    scale = (a.square().sum(1) * b.square().sum(1)).sqrt().clamp(min=1e-20)
    return np.asarray(((a * b).sum(1) / scale).numpy(), dtype=np.float64)


def _low_pass(images: Tensor, cut: float) -> Tensor:
    """Images (n, box, box) damped by ``exp(-(k / cut)^2 / 2)``, ``cut`` in cycles per box."""
    half_plane = HalfPlane.within(images.shape[-1])
    return half_plane.to_image(half_plane.from_image(images) * torch.exp(-0.5 * (half_plane.radius / cut).square()))
