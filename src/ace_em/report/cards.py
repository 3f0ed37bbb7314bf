"""The figures of the page about the whole run, each in a card with its caption."""

import math

import numpy as np

from ace_em.errors import InputError
from ace_em.maths.point_group import point_group
from ace_em.report.charts import fsc_figure, loss_figure, watch_figure
from ace_em.report.figures import map_figure, view_figure
from ace_em.report.parts import Drawn, Part, absent, figure_part
from ace_em.report.rounds import Rounds, round_figure
from ace_em.report.run_files import RunFiles, column, number, rotations
from ace_em.report.sentences import THRESHOLDS, Summary, box_angstrom, crossing_angstrom, last, shared


def _map(run: RunFiles, summary: Summary) -> Drawn:
    shown = run.map or run.so_far
    if shown is None:
        raise absent(run, "volume.mrc")
    caption = "Density is white. Seen along x: y to the right, z up; along y: x right, z up; along z: x right, y up."
    if run.map is not None and run.sharp is not None:
        end = last(run.stage("end"))
        note, made = str(end.get("b_factor_note") or ""), "masked" if number(end, "b_factor") == 0 else "sharpened"
        caption = (
            f"Top: volume.mrc, whose solvent shows the noise. Below: volume_sharp.mrc, weighted by the FSC, masked and, where "
            f"that could be measured, sharpened. {note} {caption}"
        )
        return Drawn(map_figure(shown, run.sharp, made), caption)
    if run.map is None:
        caption = f"The map so far, current.mrc. {caption}"
    return Drawn(map_figure(shown, None), caption)


def _fsc(run: RunFiles, summary: Summary) -> Drawn:
    if run.curve is None:
        raise absent(run, "fsc.csv")
    truth = (run.evaluation or {}).get("fsc_truth")
    truth = column([{"fsc": value} for value in truth], "fsc") if isinstance(truth, list) and truth else None
    caption = f"Half-map FSC in the ball around the particle: {_where(summary.crossings)}."
    if run.curve.features is not None:
        without = crossing_angstrom(run.curve.frequency_per_angstrom, run.curve.features, 0.143)
        caption += (
            f" Without the halves' radial means, which any arrangement of poses gives: {_where({0.143: without})}. Where this "
            "curve falls long before the other, the map is a ball or a shell without features."
        )
    if summary.corrected_crossings:
        caption += (
            f" Inside the mask, corrected by phase randomisation: {_where(summary.corrected_crossings)}. The curve of randomised "
            "phases is what the mask alone would give."
        )
    common = shared(run)
    if common is not None:
        caption += (
            f" Grey: both halves began from one map, cut at {common.cut_angstrom:.3g} Å. Light grey: the soft edge and the "
            f"ball's outline carry agreement to about {common.reach_angstrom:.3g} Å. Finer than that they share nothing."
        )
    if run.autoencoder_only:
        caption += " Both halves stand at one network's poses: where these are wrong, the halves agree all the same."
    if truth is not None:
        against = {
            t: crossing_angstrom(np.arange(len(truth)) * run.curve.frequency_per_angstrom[1], truth, t) for t in THRESHOLDS
        }
        hand = "turned and mirrored" if (run.evaluation or {}).get("hand") == "mirrored" else "turned"
        caption += f" Long dashes: volume.mrc, {hand} as the truth stands, against the known truth: {_where(against)}."
    return Drawn(fsc_figure(run.curve, summary.crossings, summary.corrected_crossings, truth, common), caption)


def _where(crossings: dict[float, float]) -> str:
    parts = [
        f"{threshold:g} at {angstrom:.3g} Å" if math.isfinite(angstrom) else f"above {threshold:g} to the last shell"
        for threshold, angstrom in crossings.items()
    ]
    return "; ".join(parts)


def _views(run: RunFiles, summary: Summary) -> Drawn:
    if run.table is None:
        raise absent(run, "poses.star")
    # a particle with symmetry is seen from all of an image's equivalent views at once
    group = point_group(run.symmetry)
    rotation = (group[:, None] @ rotations(run.table).double()).flatten(0, 1)
    # some 25 views count at every point, so that chance alone makes it vary by a fifth
    spread = min(max(math.degrees(5 / len(rotation) ** 0.5), 5.0), 25.0)
    caption = (
        f"Viewing directions in the map's own frame (Mollweide, equal areas), each spread over {spread:.0f}°: longitude is "
        "RELION's rot, latitude 90° less its tilt."
    )
    if len(group) > 1:
        caption += f" Every image counts at its {len(group)} equivalent views in {run.symmetry}."
    return Drawn(view_figure(rotation, spread), caption)


def _losses(run: RunFiles, summary: Summary) -> Drawn:
    records = run.stage("ace")
    if not records:
        raise InputError("metrics.jsonl has no entry of stage 1")
    caption = (
        "The image loss counts more frequencies as the run goes on, so it need not fall. A PIP loss that stays high means "
        "that the map has no features to tell views apart."
    )
    return Drawn(loss_figure(records), caption)


def _rounds(run: RunFiles, summary: Summary) -> Drawn:
    if run.autoencoder_only and run.stage("watch"):
        caption = "How far the encoder's poses of some images turned since the last look, and the share that hardly turned."
        return Drawn(watch_figure(run.stage("watch")), caption)
    rounds = Rounds(run.stage("explore"), run.stage("search"), run.stage("refine"), run.stage("start"), box_angstrom(run))
    if not rounds.phases:
        raise InputError("metrics.jsonl has no rounds yet")
    caption = "From the top: how far the median pose turned in a round; share of poses that hardly turned; half-map FSC 0.143"
    if rounds.explore:
        caption += (
            " (no claim while exploring, whose halves share a reference); share of the signal that the map explains, where more "
            "than 100 % means that it fits noise. Exploring takes a fresh subset of the images each round, search and "
            "refinement all of them in two half-sets"
        )
    if rounds.search or rounds.refine:
        caption += ". Pixels: the working box; a dotted vertical line where it changes. Open: all that the box can hold"
    return Drawn(round_figure(rounds), f"{caption}.")


RUN_CARDS: tuple[Part, ...] = (
    figure_part(
        "map",
        ("The map", "picture", "central slices and projections of the map"),
        ("volume.mrc", "volume_sharp.mrc", "current.mrc"),
        _map,
    ),
    figure_part(
        "fsc",
        ("Resolution", "chart", "Fourier shell correlation of the half-maps"),
        ("fsc.csv", "evaluation.json", "config.yaml"),
        _fsc,
    ),
    figure_part("views", ("Views", "picture", "distribution of viewing directions"), ("poses.star", "config.yaml"), _views),
    figure_part("losses", ("Stage 1: losses", "chart", "image loss and PIP loss over steps"), ("metrics.jsonl",), _losses),
    figure_part(
        "rounds",
        ("Poses, round by round", "chart", "pose change, stable share, resolution, signal explained"),
        ("metrics.jsonl", "config.yaml"),
        _rounds,
    ),
)
