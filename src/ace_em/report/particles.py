"""Figures of particles: images with projections of the map, best and worst particles, histograms."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ace_em.data.particles import Particles, pixel_size_of, star_poses
from ace_em.data.survey import normalise
from ace_em.errors import InputError
from ace_em.io.star import ParticleTable, numeric_column
from ace_em.maths.fourier import fourier_resize
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.slices import volume_to_ft
from ace_em.physics.ctf import ctf
from ace_em.physics.imaging import project
from ace_em.physics.pose import Pose
from ace_em.report.figures import Drawn, histogram_figure, image_grid
from ace_em.report.load import CONFIDENT, MAP, POSES, Map, RunFiles
from ace_em.report.numbers import show_share

LOW_PASS_ANGSTROM = 20.0
MAX_BOX = 128
"""Largest box of the images on the page; the padded transform of a larger map would take gigabytes."""
CONFIDENCE, PARTICLE, CONTENT = "aceConfidence", "aceParticleProbability", "aceImageContent"
REJECTED = 4
"""Images without the particle that are shown of each kind."""
COMPARED, SHOWN = 300, 4
"""Particles that are ranked, and how many of the best and the worst are shown."""
_EXTENT_TOLERANCE = 0.02
_BLOCK = 100


@dataclass(frozen=True)
class Triplet:
    """Image and projections (n, n) of one particle.

    Attributes
    ----------
    row : row in poses.star, from 1.
    name : image name.
    image : input image, protein white, low-passed.
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


def triplets(particles: Particles, volume: Map, sign: float, rows: np.ndarray) -> list[Triplet]:
    """Images and projections of the particles at ``rows`` (n,), from 0.

    Parameters
    ----------
    particles : with refined poses.
    volume : map with the same box edge in Angstrom as the images.
    sign : +1 if the protein is white on disk, -1 if black.
    """
    extent = particles.box * particles.pixel_size_angstrom
    if abs(volume.volume.shape[0] * volume.pixel_size_angstrom / extent - 1) > _EXTENT_TOLERANCE:
        raise InputError(f"the map has a different box than the images ({extent:.0f} Angstrom): they cannot be compared")
    poses = particles.poses()
    if poses is None:
        raise InputError("poses.star has no angles")
    box = min(volume.volume.shape[0], MAX_BOX)
    half_plane, volume_ft = HalfPlane.within(box), volume_to_ft(fourier_resize(torch.tensor(volume.volume), box, 3))
    low_pass = torch.exp(-0.5 * (half_plane.radius * LOW_PASS_ANGSTROM / extent).square())
    found = []
    for block in np.split(rows, range(_BLOCK, len(rows), _BLOCK)):
        chosen = torch.from_numpy(block)
        images = fourier_resize(normalise(torch.from_numpy(particles.images(block)), sign), box, 2)
        images = half_plane.to_image(half_plane.from_image(images) * low_pass)
        effective_ctf, pose = ctf(particles.ctf[chosen], half_plane, extent / box), poses[chosen].rescaled(box / particles.box)
        predicted = half_plane.to_image(project(volume_ft, effective_ctf, half_plane, pose))
        centred, no_ctf = Pose(pose.rotation, torch.zeros_like(pose.shift_px)), torch.ones_like(effective_ctf)
        clean = half_plane.to_image(project(volume_ft, no_ctf, half_plane, centred))
        columns = images.numpy(), predicted.numpy(), clean.numpy(), _correlations(images, predicted).tolist()
        names = [particles.image_names[row] for row in block]
        found += [Triplet(int(row) + 1, *values) for row, *values in zip(block, names, *columns, strict=True)]
    return found


def evenly(n: int, of: int) -> np.ndarray:
    """Up to ``n`` rows (from 0) spread evenly over ``of`` rows."""
    return np.unique(np.linspace(0, of - 1, n).round().astype(np.int64))


def _correlations(a: Tensor, b: Tensor) -> np.ndarray:
    """Correlation (n,) of pairs of images (n, box, box)."""
    a, b = (x.flatten(1) - x.mean((1, 2))[:, None] for x in (a, b))
    scale = (a.square().sum(1) * b.square().sum(1)).sqrt().clamp(min=1e-20)
    return np.asarray(((a * b).sum(1) / scale).numpy(), dtype=np.float64)


def _compared(run: RunFiles, n: int) -> list[Triplet]:
    """Up to ``n`` particles of the run, spread evenly over the data set."""
    if run.map is None:
        raise run.missing(MAP)
    if run.particles is None:
        raise run.missing("particle images")
    contrast = run.last("survey").get("contrast", run.config.get("contrast"))
    return triplets(run.particles, run.map, -1.0 if contrast == "black" else 1.0, evenly(n, len(run.particles)))


def triplet_card(run: RunFiles) -> Drawn:
    """Five particles spread evenly over the data set: input, prediction, clean projection."""
    shown = _compared(run, 5)
    caption = (
        f"Particles spread evenly over the data set. Input: protein white, low-passed at {LOW_PASS_ANGSTROM:g} Å for display. "
        "Predicted: projection of the map at the particle's pose, with CTF and shift; r is its correlation with the input. "
        "Clean projection: without CTF and shift. Every image has its own grey scale; y points up."
    )
    images, notes = (
        [[t.image, t.predicted, t.clean] for t in shown],
        [[f"#{t.row}", f"r = {t.correlation:.2f}", ""] for t in shown],
    )
    extent = run.particles.box * run.particles.pixel_size_angstrom if run.particles else math.nan
    return Drawn(image_grid(images, [["input", "predicted", "clean projection"]], extent, (0, 2), notes=notes), caption)


def extremes(found: list[Triplet], shown: int = SHOWN) -> tuple[list[Triplet], list[Triplet]]:
    """Up to ``shown`` particles with the highest correlation, the best first, and with the lowest, the worst last."""
    order = sorted(found, key=lambda t: -t.correlation)
    shown = min(shown, len(found) // 2)
    if shown == 0:
        raise InputError("a single particle cannot be ranked")
    return order[:shown], order[-shown:]


def extremes_card(run: RunFiles) -> Drawn:
    """The particles that agree best and worst with the map."""
    found = _compared(run, COMPARED)
    best, worst = extremes(found)
    caption = (
        f"The best and worst correlations between image and prediction among {len(found)} particles spread evenly over the set; "
        f"median r = {np.median([t.correlation for t in found]):.2f}. A low r can mean junk or a wrong pose, but also low "
        "defocus or thick ice. poses.star contains the probability of every pose."
    )
    pairs = list(zip(best, worst, strict=True))
    images = [[image for t in pair for image in (t.image, t.predicted)] for pair in pairs]
    notes = [[note for t in pair for note in (f"#{t.row}", f"r = {t.correlation:.2f}")] for pair in pairs]
    rows = [("", "row of poses.star", "image", "r")]
    rows += [(name, str(t.row), t.name, f"{t.correlation:.2f}") for name, of in (("best", best), ("worst", worst)) for t in of]
    titles = [["best: input", "predicted", "worst: input", "predicted"]]
    return Drawn(image_grid(images, titles, notes=notes), caption, rows)


def shows_particle(table: ParticleTable) -> Tensor:
    """(N,) bool, the images that are in the maps; all in a table that does not say."""
    if not table.has_column(CONTENT):
        return torch.ones(len(table), dtype=torch.bool)
    return torch.tensor((table.particles[CONTENT] == "particle").tolist())


def rejected_card(run: RunFiles) -> Drawn | None:
    """Images that show noise alone or something else, with the projections that fit them best; None if there are none."""
    if run.table is None or run.map is None or run.particles is None or not run.table.has_column(CONTENT):
        return None
    contrast = run.last("survey").get("contrast", run.config.get("contrast"))
    content, probability = run.table.particles[CONTENT], numeric_column(run.table, PARTICLE)
    columns, titles, table = [], [], [("", "row of poses.star", "image", "probability of the particle")]
    for kind, title in (("other", "something else"), ("noise", "noise alone")):
        rows = np.flatnonzero(content == kind)
        if len(rows) == 0:
            continue
        some = rows[evenly(REJECTED, len(rows))]
        shown = triplets(run.particles, run.map, -1.0 if contrast == "black" else 1.0, some)
        columns += [[t.image for t in shown], [t.predicted for t in shown]]
        titles += [f"{kind}: input", "predicted"]
        table += [(title, str(t.row), t.name, f"{probability[t.row - 1]:.3f}") for t in shown]
    if not columns:
        return None
    n = min(len(column) for column in columns)
    shares = {kind: show_share(float((content == kind).mean())) for kind in ("noise", "other")}
    caption = (
        f"Images that are in no map: {shares['noise']} of all show noise alone, {shares['other']} something else (another "
        "particle, a carbon edge, ice). Predicted: the projection of the map that fits best. "
        "aceParticleProbability in poses.star is the probability that an image shows the particle."
    )
    return Drawn(image_grid([[column[i] for column in columns] for i in range(n)], [titles]), caption, table)


def particle_numbers(table: ParticleTable) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Defocus, pose probability and shift of N particles; None for a missing column.

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
    caption = f"All {len(run.table):,} particles; dashed line: median."
    if defocus is not None:
        low, high = np.percentile(defocus, [1, 99])
        caption += f" Defocus: 98 % of the values are between {low:.2f} and {high:.2f} µm."
    if confidence is not None:
        least = run.setting("predict", "confident")
        least = 0.9 if math.isnan(least) else least
        share = show_share(float((confidence >= least).mean()))
        caption += f" Largest pose probability: at least {least:g} for {share} of the particles"
        if run.readable(CONFIDENT):
            caption += "; those that show the particle are in confident.star."
        else:
            caption += "; 0 for all in a run that has not converged."
    if shift is not None:
        caption += (
            " Shift: from the centre of the image to the particle. A cloud off the origin means that the picks are off centre."
        )
    return Drawn(histogram_figure(defocus, confidence, shift), caption)
