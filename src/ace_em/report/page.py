"""Writes RUN/report.html: reads the run folder, draws the figures, renders the templates. The page is self-contained."""

import base64
import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ace_em.errors import InputError, in_words
from ace_em.io.atomic import replace_atomically
from ace_em.maths.point_group import point_group
from ace_em.report import load
from ace_em.report import summary as words
from ace_em.report.charts import fsc_figure, loss_figure, round_figure, watch_figure
from ace_em.report.figures import Drawn, map_figure, view_figure
from ace_em.report.limits import limits
from ace_em.report.load import CONFIG, EVALUATION, FSC, MAP, MAP_SO_FAR, METRICS, POSES, REPORT, SHARP, RunFiles, number
from ace_em.report.numbers import show_crossings
from ace_em.report.particles import extremes_card, histogram_card, rejected_card, shows_particle, triplet_card
from ace_em.report.summary import Summary, crossing_angstrom, crossings_of, shared, summarise
from ace_em.report.volume_view import EDGE, view_maps

TEMPLATES = Path(__file__).with_name("templates")
# no external resources; only the page's own scripts may run, identified by their hashes
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
# plotly reads pixels back from its canvas; browsers warn unless willReadFrequently is set
_READ_BACK = """HTMLCanvasElement.prototype.getContext = ((get) => function (kind, options) {
  return get.call(this, kind, kind === "2d" ? { willReadFrequently: true, ...options } : options);
})(HTMLCanvasElement.prototype.getContext);
"""


@dataclass(frozen=True)
class Part:
    """A part of the page. It is rendered by the macro of the same name in parts.html.j2, or by 'figure' if it has a title.

    Attributes
    ----------
    files : files of the run folder that it shows; the live page renders it again when they change.
    values : function that computes the argument of the macro (a ``Drawn`` for a figure); if that is empty, so is the part.
    title, kind, alt : heading, 'picture' or 'chart' (inverted in the dark scheme), and alternative text of a figure.
    """

    name: str
    files: tuple[str, ...]
    values: Callable[[RunFiles, Summary], Any]
    title: str = ""
    kind: str = ""
    alt: str = ""

    def html(self, run: RunFiles, summary: Summary, so_far: bool = False) -> Markup:
        """Render the part; a failed figure shows the reason, except for an unfinished run (``so_far``)."""
        macros: Any = templates().get_template("parts.html.j2").module
        try:
            values = self.values(run, summary)
        except (InputError, OSError, ValueError) as error:
            return Markup("") if so_far else macros.absent(self, in_words(error))
        macro = macros.figure if self.title else getattr(macros, self.name)
        return (macro(self, values) if self.title else macro(values)) if values else Markup("")


@cache
def templates() -> Environment:
    """The template environment: autoescaping, and an error for undefined variables."""
    loader = FileSystemLoader(TEMPLATES)
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters["base64"] = lambda png: base64.b64encode(png).decode("ascii")
    # split into text and command-line options, alternating
    made.filters["options"] = lambda text: re.split(r"(--\w[\w.-]*\w)", text)
    made.globals |= {"css": (TEMPLATES / "style.css").read_text(encoding="utf-8"), "edge": EDGE}
    return made


@cache
def script(name: str) -> str:
    """Text of viewer.js, live.js, or plotly.js (5 MB, from the installed package)."""
    if name == "plotly.js":
        from plotly.offline import get_plotlyjs

        return _READ_BACK + str(get_plotlyjs())
    return (TEMPLATES / name).read_text(encoding="utf-8")


def write_report(run: Path) -> Path:
    """Write RUN/report.html for a run, finished or not; returns its path."""
    files = load.read_run(run)
    if not any((run / file).exists() for file in _RECORDS):
        # a report.html there may belong to another program
        raise InputError(f"{run}: not the folder of a run: contains neither {' nor '.join(_RECORDS)}")
    page = render(files)
    with replace_atomically(run / REPORT) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return run / REPORT


def render(run: RunFiles) -> str:
    """HTML of the report."""
    summary = summarise(run)
    try:
        maps = view_maps(run)
    except (InputError, OSError, ValueError):
        maps = []
    # plotly, most of the page size, is included only with a map
    scripts = [script("plotly.js"), script("viewer.js")] if maps else []
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    policy = _POLICY + ("; script-src " + " ".join(f"'sha256-{value}'" for value in hashes) if scripts else "")
    html = {part.name: part.html(run, summary) for part in PARTS}
    values = layout(run.path) | {"policy": policy, "html": html, "maps": maps, "scripts": scripts}
    return templates().get_template("page.html.j2").render(values)


def layout(run: Path) -> dict[str, Any]:
    """Values of the page and of the live page: title and order of the parts."""
    # run folders often have the same name, so the parent folder is shown too
    title = "/".join(run.resolve().parts[-2:]).lstrip("/")
    return {"title": title, "grid": [part.name for part in GRID], "below": [part.name for part in BELOW]}


def _outcome(run: RunFiles, summary: Summary) -> dict[str, str]:
    kind, sentence = words.outcome(run, summary)
    reasons, _, advice = str(run.last("end").get("message") or "").partition(" Try: ")
    return {"kind": kind, "sentence": sentence, "reasons": reasons[:1].upper() + reasons[1:], "advice": advice}


def _problems(run: RunFiles, summary: Summary) -> list[tuple[str, str]]:
    stages = words.AUTOENCODER_RUN if run.autoencoder_only else words.EVERY_RUN
    return [*run.problems, *((METRICS, f"no entry of {words.STAGES[stage]}") for stage in stages if not run.stage(stage))]


def _map(run: RunFiles, summary: Summary) -> Drawn:
    shown = run.map or run.so_far
    if shown is None:
        raise run.missing(MAP)
    views = "Density is white. Along x: y to the right, z up; along y: x to the right, z up; along z: x to the right, y up."
    if run.map is None:
        return Drawn(map_figure(shown, None), f"Current map, current.mrc. {views}")
    if run.sharp is None:
        return Drawn(map_figure(shown, None), views)
    end = run.last("end")
    made = "masked" if number(end, "b_factor") == 0 else "sharpened"
    caption = (
        "Top: volume.mrc, unmasked. Below: volume_sharp.mrc, weighted by the FSC, masked and, if a B factor was measured, "
        f"sharpened. {end.get('b_factor_note') or ''} {views}"
    )
    return Drawn(map_figure(shown, run.sharp, made), caption)


def _fsc(run: RunFiles, summary: Summary) -> Drawn:
    curve, common, evaluation = run.curve, shared(run), run.evaluation or {}
    if curve is None:
        raise run.missing(FSC)
    caption = f"Half-map FSC inside the spherical mask: {show_crossings(summary.crossings)}."
    if curve.features is not None:
        without = crossing_angstrom(curve.frequency_per_angstrom, curve.features, 0.143)
        caption += (
            f" After subtraction of the radial mean of each half-map: {show_crossings({0.143: without})}. If this curve falls "
            "off much earlier, the map is a ball or a shell without features."
        )
    if curve.corrected is not None:
        caption += (
            f" Masked, corrected by phase randomisation: {show_crossings(summary.corrected_crossings)}. The curve with "
            "randomised phases shows the effect of the mask alone."
        )
    if common is not None:
        caption += (
            f" Grey: both half-sets started from one map, low-passed at {common.cut_angstrom:.3g} Å. Light grey: the soft edge "
            f"of the filter and the mask correlate them to about {common.reach_angstrom:.3g} Å; beyond that they are independent."
        )
    if run.autoencoder_only:
        caption += " All poses come from one network, so the half-maps agree even where the poses are wrong."
    truth = None
    if isinstance(values := evaluation.get("fsc_truth"), list) and values:
        truth = load.column([{"fsc": value} for value in values], "fsc")
        against = crossings_of(np.arange(len(truth)) * curve.frequency_per_angstrom[1], truth)
        operation = "rotation and mirroring" if evaluation.get("hand") == "mirrored" else "rotation"
        caption += f" Long dashes: volume.mrc against the truth, after {operation}: {show_crossings(against)}."
    return Drawn(fsc_figure(curve, summary.crossings, summary.corrected_crossings, truth, common), caption)


def _views(run: RunFiles, summary: Summary) -> Drawn:
    if run.table is None:
        raise run.missing(POSES)
    group = point_group(run.symmetry)
    shown = shows_particle(run.table)
    rotation = (group[:, None] @ load.rotations(run.table)[shown].double()).flatten(0, 1)
    # about 25 views contribute to every point, which gives 20 % noise
    spread = min(max(math.degrees(5 / len(rotation) ** 0.5), 5.0), 25.0)
    caption = (
        f"Viewing directions in the frame of the map (Mollweide projection), smoothed over {spread:.0f}°: longitude is RELION's "
        "rot, latitude is 90° minus its tilt."
    )
    if not shown.all():
        caption += " Without the images that show no particle."
    if len(group) > 1:
        caption += f" Every image is counted at its {len(group)} equivalent views in {run.symmetry}."
    return Drawn(view_figure(rotation, spread), caption)


def _losses(run: RunFiles, summary: Summary) -> Drawn:
    if not run.stage("ace"):
        raise InputError("metrics.jsonl has no entry of stage 1")
    caption = (
        "The image loss includes more frequencies as training proceeds, so it need not decrease. If the PIP loss stays high, the "
        "map has no features that distinguish views."
    )
    return Drawn(loss_figure(run.stage("ace")), caption)


def _rounds(run: RunFiles, summary: Summary) -> Drawn:
    if run.autoencoder_only and run.stage("watch"):
        caption = (
            "Median change of the encoder's poses since the last check, and the share of stable poses, for a subset of images."
        )
        return Drawn(watch_figure(run.stage("watch")), caption)
    stages = {"ab initio search": "ab_initio", "search": "search", "refinement": "refine"}
    phases = {name: run.stage(stage) for name, stage in stages.items() if run.stage(stage)}
    if not phases:
        raise InputError("metrics.jsonl has no rounds yet")
    caption = "From the top: median change of the poses in a round; share of stable poses; half-map FSC 0.143"
    if "ab initio search" in phases:
        caption += (
            " (not independent in the ab initio search, where they share a reference); share of the signal explained by the map "
            "(above 100 % it fits noise). The ab initio search uses a new subset of the images in each round; search and "
            "refinement use all images, in two half-sets"
        )
    if len(phases) > ("ab initio search" in phases):
        caption += ". Pixels: the working box, dotted vertical lines where it changes. Open circles: limited by the working box"
    return Drawn(round_figure(phases, run.stage("start"), run.box_angstrom), f"{caption}.")


def _of(values: Callable[[RunFiles], Any]) -> Callable[[RunFiles, Summary], Any]:
    """Adapt a function that needs no summary."""
    return lambda run, summary: values(run)


_RECORDS = (METRICS, CONFIG)
_RESULTS = (*_RECORDS, FSC, POSES)
_IMAGES = (MAP, POSES, CONFIG)
PROBLEMS = Part("problems", (*_RESULTS, EVALUATION, *load.MAPS), _problems)
TOP = (Part("outcome", _RESULTS, _outcome), Part("tiles", (*_RESULTS, MAP, EVALUATION), words.tiles), PROBLEMS)
GRID = (
    Part("map", (MAP, SHARP, MAP_SO_FAR), _map, "Map", "picture", "central slices and projections of the map"),
    Part("fsc", (FSC, EVALUATION, CONFIG), _fsc, "Resolution", "chart", "Fourier shell correlation of the half-maps"),
    Part("views", (POSES, CONFIG), _views, "Views", "picture", "distribution of viewing directions"),
    Part("losses", (METRICS,), _losses, "Stage 1: losses", "chart", "image loss and PIP loss over steps"),
    Part("rounds", _RECORDS, _rounds, "Convergence by round", "chart", "pose change, stable share, resolution, signal explained"),
    Part("histograms", (POSES,), _of(histogram_card), "Particles", "chart", "histograms of defocus, shift and pose probability"),
    Part("triplets", _IMAGES, _of(triplet_card), "Images and predictions", "picture", "input, prediction, clean projection"),
    Part("extremes", _IMAGES, _of(extremes_card), "Best and worst particles", "picture", "best and worst images and predictions"),
    Part("rejected", _IMAGES, _of(rejected_card), "Images without the particle", "picture", "noise, other images, predictions"),
    Part("evaluation", (EVALUATION,), _of(words.scores)),
)
BELOW = (
    Part("provenance", (METRICS,), _of(words.provenance)),
    Part("limits", _RECORDS, _of(limits)),
    Part("settings", (CONFIG,), _of(lambda run: run.config_text)),
)
PARTS = (*TOP, *GRID, *BELOW)
