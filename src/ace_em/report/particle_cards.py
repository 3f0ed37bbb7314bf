"""The cards about single particles: images beside predictions, the best and the worst, and histograms over all of them."""

import math

import numpy as np

from ace_em.report.figures import extremes_figure, triplet_figure
from ace_em.report.histograms import ParticleNumbers, histogram_figure
from ace_em.report.parts import Drawn, Part, absent, figure_part
from ace_em.report.run_files import RunFiles, number
from ace_em.report.sentences import Summary, last, show_share
from ace_em.report.triplets import Comparison, evenly, extremes

LOW_PASS_ANGSTROM = 20.0


def _compare(run: RunFiles) -> Comparison:
    if run.map is None:
        raise absent(run, "volume.mrc")
    if run.particles is None:
        raise absent(run, "particle images")
    contrast = last(run.stage("survey")).get("contrast", run.config.get("contrast"))
    return Comparison.of(run.particles, run.map, -1.0 if contrast == "black" else 1.0, LOW_PASS_ANGSTROM)


def _triplets(run: RunFiles, summary: Summary) -> Drawn:
    comparison = _compare(run)
    caption = (
        f"Particles spread evenly over the set, not chosen by eye. Input: protein white, low-passed at {LOW_PASS_ANGSTROM:g} Å "
        "for display. Predicted: the map at the particle's pose, with CTF and shift; r is its correlation with the input. "
        "Clean projection: without CTF and shift. Each picture has its own grey scale; y points up."
    )
    shown = comparison.triplets(evenly(5, len(comparison.particles)))
    return Drawn(triplet_figure(shown, comparison.pixel_size_angstrom), caption)


def _extremes(run: RunFiles, summary: Summary) -> Drawn:
    found = extremes(_compare(run))
    caption = (
        f"Of {found.n} particles spread evenly over the set, those whose images correlate best and worst with what the map "
        f"predicts; median r = {found.median:.2f}. A low r may mean junk or a wrong pose, but also little defocus or "
        "thick ice. poses.star has the probability of every particle's pose."
    )
    rows = [("", "row of poses.star", "image", "r")]
    for title, triplets in (("best", found.best), ("worst", found.worst)):
        rows += [(title, str(t.row), t.name, f"{t.correlation:.2f}") for t in triplets]
    return Drawn(extremes_figure(found), caption, rows)


def _histograms(run: RunFiles, summary: Summary) -> Drawn:
    if run.table is None:
        raise absent(run, "poses.star")
    numbers = ParticleNumbers.of(run.table)
    caption = f"All {len(run.table):,} particles; dashed: the median."
    if numbers.defocus_um is not None:
        low, high = np.percentile(numbers.defocus_um, [1, 99])
        caption += f" Defocus: 98 % lie between {low:.2f} and {high:.2f} µm."
    if numbers.confidence is not None:
        predict = run.config.get("predict")
        least = number(predict if isinstance(predict, dict) else None, "confident")
        least = 0.9 if math.isnan(least) else least
        share = float((numbers.confidence >= least).mean())
        caption += f" Probability of a pose: at least {least:g} for {show_share(share)} of the particles"
        kept = run.readable("confident.star")
        caption += ", which are in confident.star." if kept else "; 0 for all of a run that has not converged."
    if numbers.shift_angstrom is not None:
        caption += " Shift: of the particle from the middle of its image; a cloud off the centre means picks off the centre."
    return Drawn(histogram_figure(numbers), caption)


PARTICLE_CARDS: tuple[Part, ...] = (
    figure_part(
        "histograms",
        ("Particles", "chart", "histograms of defocus, in-plane shift and pose probability"),
        ("poses.star",),
        _histograms,
    ),
    figure_part(
        "triplets",
        ("Images and predictions", "picture", "input, predicted, clean projection"),
        ("volume.mrc", "poses.star", "config.yaml"),
        _triplets,
    ),
    figure_part(
        "extremes",
        ("Best and worst particles", "picture", "images that agree best and worst with the map, and what it predicts"),
        ("volume.mrc", "poses.star", "config.yaml"),
        _extremes,
    ),
)
