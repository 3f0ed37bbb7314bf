"""Figures of single particles: images beside the projections of the map, the best and the worst, histograms over all."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ace_em.data.particles import Particles, pixel_size_of, star_poses
from ace_em.data.preprocess import normalise
from ace_em.errors import InputError
from ace_em.io.star import ParticleTable, numeric_column
from ace_em.maths.fourier import HalfPlane, fourier_resize
from ace_em.maths.slices import VolumeFT, volume_to_ft
from ace_em.physics.ctf import ctf
from ace_em.physics.imaging import clean_image_ft
from ace_em.physics.pose import Pose
from ace_em.report.figures import Drawn, histogram_figure, image_grid
from ace_em.report.load import CONFIDENT, MAP, POSES, Map, RunFiles
from ace_em.report.summary import show_share

LOW_PASS_ANGSTROM = 20.0
MAX_BOX = 128
"""Edge of the images on the page; the padded transform of a larger map takes gigabytes."""
CONFIDENCE = "rlnMaxValueProbDistribution"
_EXTENT_TOLERANCE = 0.02
_BLOCK = 100


@dataclass(frozen=True)
class Triplet:
    """Images (n, n) of one particle.

    Attributes
    ----------
    row : of the particle in poses.star, from 1.
    name : of its image there.
    image : the input, protein white, low-passed.
    predicted : projection of the map with CTF and shift.
    clean : projection without CTF and shift.
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
    """Particles and the projections of the map at their poses.

    Attributes
    ----------
    volume_ft : padded transform of the map, resampled to ``box`` voxels an edge.
    sign : +1 when the protein is white on disk, -1 when it is black.
    low_pass : width of the Gaussian low-pass filter of the input, cycles per box.
    """

    particles: Particles
    poses: Pose
    volume_ft: VolumeFT
    box: int
    sign: float
    low_pass: float

    @staticmethod
    def of(particles: Particles, volume: Map, sign: float, low_pass_angstrom: float) -> "Comparison":
        """Particles with their refined poses, and a map whose box has the same edge in Angstrom as the images."""
        extent = particles.box * particles.pixel_size_angstrom
        if abs(volume.volume.shape[0] * volume.pixel_size_angstrom / extent - 1) > _EXTENT_TOLERANCE:
            raise InputError(f"the images are {extent:.0f} Angstrom wide, the map is not: they cannot be compared")
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
        images = fourier_resize(normalise(torch.from_numpy(self.particles.images(rows)), self.sign), self.box, 2)
        half_plane = HalfPlane.within(self.box)
        damped = half_plane.from_image(images) * torch.exp(-0.5 * (half_plane.radius / self.low_pass).square())
        return half_plane.to_image(damped)

    def predicted(self, rows: np.ndarray) -> Tensor:
        """Projections (n, box, box) with CTF and shift."""
        chosen, half_plane = torch.from_numpy(rows), HalfPlane.within(self.box)
        transfer = ctf(self.particles.ctf[chosen], half_plane, self.pixel_size_angstrom)
        pose = self.poses[chosen].rescaled(self.box / self.particles.box)
        return half_plane.to_image(clean_image_ft(self.volume_ft, transfer, half_plane, pose))

    def clean(self, rows: np.ndarray) -> Tensor:
        """Projections (n, box, box) without CTF and shift."""
        half_plane = HalfPlane.within(self.box)
        pose = Pose(self.poses[torch.from_numpy(rows)].rotation, torch.zeros(len(rows), 2))
        return half_plane.to_image(clean_image_ft(self.volume_ft, torch.ones(len(rows), len(half_plane)), half_plane, pose))

    def correlations(self, rows: np.ndarray) -> np.ndarray:
        """Correlation of input and prediction, (n,)."""
        blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
        return np.concatenate([_correlations(self.inputs(block), self.predicted(block)) for block in blocks])

    def triplets(self, rows: np.ndarray) -> list[Triplet]:
        """The images of some particles."""
        images, predicted = self.inputs(rows), self.predicted(rows)
        columns = images.numpy(), predicted.numpy(), self.clean(rows).numpy(), _correlations(images, predicted).tolist()
        return [Triplet(int(row) + 1, self.particles.image_names[row], *values) for row, *values in zip(rows, *columns, strict=True)]


@dataclass(frozen=True)
class Extremes:
    """Particles that agree best (first) and worst (last) with the map, of ``n`` compared, and the median correlation of these."""

    best: list[Triplet]
    worst: list[Triplet]
    n: int
    median: float


def evenly(n: int, of: int) -> np.ndarray:
    """Up to ``n`` rows (from 0) spread evenly over ``of`` rows."""
    return np.unique(np.linspace(0, of - 1, n).round().astype(np.int64))


def extremes(comparison: Comparison, among: int = 300, shown: int = 4) -> Extremes:
    """The best and the worst of up to ``among`` particles spread evenly over the set; the worst of all comes last."""
    rows = evenly(among, len(comparison.particles))
    agreement = comparison.correlations(rows)
    order = rows[np.argsort(-agreement, kind="stable")]
    shown = min(shown, len(rows) // 2)
    if shown == 0:
        raise InputError("a single particle cannot be ranked")
    best, worst = comparison.triplets(order[:shown]), comparison.triplets(order[-shown:])
    return Extremes(best, worst, len(rows), float(np.median(agreement)))


def _correlations(a: Tensor, b: Tensor) -> np.ndarray:
    """Correlation of images (n, box, box) pair by pair, (n,)."""
    a, b = (x.flatten(1) - x.mean((1, 2))[:, None] for x in (a, b))
    scale = (a.square().sum(1) * b.square().sum(1)).sqrt().clamp(min=1e-20)
    return np.asarray(((a * b).sum(1) / scale).numpy(), dtype=np.float64)


def _compare(run: RunFiles) -> Comparison:
    if run.map is None:
        raise run.missing(MAP)
    if run.particles is None:
        raise run.missing("particle images")
    contrast = run.last("survey").get("contrast", run.config.get("contrast"))
    return Comparison.of(run.particles, run.map, -1.0 if contrast == "black" else 1.0, LOW_PASS_ANGSTROM)


def triplet_card(run: RunFiles) -> Drawn:
    """Five particles spread evenly over the set: input, prediction, clean projection."""
    comparison = _compare(run)
    caption = (
        f"Particles spread evenly over the set. Input: protein white, low-passed at {LOW_PASS_ANGSTROM:g} Å for display. "
        "Predicted: projection of the map at the pose of the particle, with CTF and shift; r is its correlation with the input. "
        "Clean projection: without CTF and shift. Every image has its own grey scale; y points up."
    )
    shown = comparison.triplets(evenly(5, len(comparison.particles)))
    images, notes = [[t.image, t.predicted, t.clean] for t in shown], [[f"#{t.row}", f"r = {t.correlation:.2f}", ""] for t in shown]
    titles = [["input", "predicted", "clean projection"]]
    return Drawn(image_grid(images, titles, comparison.pixel_size_angstrom, (0, 2), notes=notes), caption)


def extremes_card(run: RunFiles) -> Drawn:
    """The particles that agree best and worst with the map."""
    comparison = _compare(run)
    found = extremes(comparison)
    caption = (
        f"Of {found.n} particles spread evenly over the set, those whose images correlate best and worst with the prediction; "
        f"median r = {found.median:.2f}. A low r may mean junk or a wrong pose, but also low defocus or thick ice. poses.star "
        "has the probability of every pose."
    )
    pairs = list(zip(found.best, found.worst, strict=True))
    images = [[picture for t in pair for picture in (t.image, t.predicted)] for pair in pairs]
    notes = [[note for t in pair for note in (f"#{t.row}", f"r = {t.correlation:.2f}")] for pair in pairs]
    rows = [("", "row of poses.star", "image", "r")]
    for title, triplets in (("best", found.best), ("worst", found.worst)):
        rows += [(title, str(t.row), t.name, f"{t.correlation:.2f}") for t in triplets]
    titles = [["best: input", "predicted", "worst: input", "predicted"]]
    return Drawn(image_grid(images, titles, comparison.pixel_size_angstrom, notes=notes), caption, rows)


def particle_numbers(table: ParticleTable) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Numbers of N particles; None for a column that is not in the table.

    Returns
    -------
    defocus_um : (N,) mean of both defoci in micrometres, underfocus positive.
    confidence : (N,) largest probability of a pose, 0 to 1.
    shift_angstrom : (N, 2) shift of the particle from the centre of its image, (x, y).
    """
    defocus = confidence = shift = None
    if all(table.has_column(f"rlnDefocus{axis}") for axis in "UV"):
        defocus = (numeric_column(table, "rlnDefocusU") + numeric_column(table, "rlnDefocusV")) / 2e4
    if table.has_column(CONFIDENCE):
        confidence = numeric_column(table, CONFIDENCE)
    pixel_size = pixel_size_of(table)
    poses = star_poses(table, pixel_size)
    if poses is not None:
        shift = poses.shift_px.flip(-1).numpy() * pixel_size
    return defocus, confidence, shift


def histogram_card(run: RunFiles) -> Drawn:
    """Histograms of defocus, pose probability and shift over all particles."""
    if run.table is None:
        raise run.missing(POSES)
    defocus, confidence, shift = particle_numbers(run.table)
    caption = f"All {len(run.table):,} particles; dashed: the median."
    if defocus is not None:
        low, high = np.percentile(defocus, [1, 99])
        caption += f" Defocus: 98 % are between {low:.2f} and {high:.2f} µm."
    if confidence is not None:
        least = run.setting("predict", "confident")
        least = 0.9 if math.isnan(least) else least
        share = show_share(float((confidence >= least).mean()))
        caption += f" Largest pose probability: at least {least:g} for {share} of the particles"
        caption += ", which are in confident.star." if run.readable(CONFIDENT) else "; 0 for all in a run that has not converged."
    if shift is not None:
        caption += " Shift: of the particle from the centre of its image. A cloud off the origin means that the picks are off centre."
    return Drawn(histogram_figure(defocus, confidence, shift), caption)
