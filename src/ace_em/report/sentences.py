"""What the report says in words: the outcome, the key numbers, and what a run cannot tell."""

import math
from dataclasses import dataclass

import numpy as np

from ace_em.report.run_files import Curve, Record, RunFiles, number

THRESHOLDS = (0.143, 0.5)
STAGES = {
    "survey": "the survey of the images",
    "ace": "stage 1",
    "search": "the pose search",
    "refine": "the refinement",
    "end": "the end",
}


@dataclass(frozen=True)
class Summary:
    """Numbers of a run; NaN where unknown.

    ``crossings`` maps each threshold to the resolution in Angstrom at which the half-map FSC falls below it.
    """

    n_particles: float
    resolution_angstrom: float
    time_s: float
    crossings: dict[float, float]


def crossing_angstrom(curve: Curve, threshold: float) -> float:
    """Resolution at which the curve first falls below ``threshold``, interpolated; NaN when it never does.

    Shells 0 and 1 hold a handful of coefficients and are passed over, as in :mod:`ace_em.metrics.fsc`.
    """
    frequency, fsc = curve.frequency_per_angstrom, curve.fsc
    below = np.flatnonzero(fsc[2:] < threshold)
    if len(below) == 0:
        return math.nan
    shell = int(below[0]) + 2
    high, low = fsc[shell - 1], fsc[shell]
    share = 0.0 if high < threshold else (high - threshold) / max(high - low, 1e-12)
    return float(1 / (frequency[shell - 1] + share * (frequency[shell] - frequency[shell - 1])))


def last(records: list[Record]) -> Record:
    """The last record, empty when there is none."""
    return records[-1] if records else {}


def summarise(run: RunFiles) -> Summary:
    """The numbers of the first sentence and the tiles."""
    crossings = {} if run.curve is None else {t: crossing_angstrom(run.curve, t) for t in THRESHOLDS}
    resolution = number(last(run.stage("end")), "resolution_angstrom")
    if math.isnan(resolution):
        resolution = crossings.get(0.143, math.nan)
    n = number(last(run.stage("survey")), "n_particles")
    if math.isnan(n) and run.table is not None:
        n = float(len(run.table))
    times = [number(record, "time_s") for record in run.metrics]
    return Summary(n, resolution, max((t for t in times if t == t), default=math.nan), crossings)


def show(value: float, unit: str = "", digits: int = 3) -> str:
    """A number with its unit, a dash when unknown."""
    return f"{value:.{digits}g}{unit}" if math.isfinite(value) else "–"


def show_time(seconds: float) -> str:
    """Seconds as people say them."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def outcome(run: RunFiles, summary: Summary) -> tuple[str, str]:
    """How the run ended, 'good', 'bad' or 'open', and one sentence that says so."""
    images = f"{summary.n_particles:,.0f} particles" if math.isfinite(summary.n_particles) else "an unknown number of particles"
    resolution = "at a resolution that was not measured"
    if math.isfinite(summary.resolution_angstrom):
        resolution = f"at {summary.resolution_angstrom:.3g} Å (half-map FSC 0.143)"
    time = f" in {show_time(summary.time_s)}" if math.isfinite(summary.time_s) else ""
    end = run.stage("end")
    if not end:
        stage = str(last(list(run.metrics)).get("stage", ""))
        where = f"its last entry is from {STAGES.get(stage, stage)}" if stage else "it has logged nothing"
        return "open", f"The run has not ended: {where}; {images}{time}. The page shows what there is so far."
    if end[-1].get("converged") is True:
        return "good", f"The run converged: {images} gave a map {resolution}{time}."
    tail = "do not trust the map before you have looked at the curves below"
    return "bad", f"The run ended without converging: {images} gave a map {resolution}{time}; {tail}."


def tiles(run: RunFiles, summary: Summary) -> list[tuple[str, str]]:
    """Key numbers: (name, value)."""
    survey = last(run.stage("survey"))
    box, pixel_size = number(survey, "box"), number(survey, "pixel_size_angstrom")
    starts = {str(record.get("start", 1)) for record in run.stage("ace")}
    found = [
        ("particles", f"{summary.n_particles:,.0f}" if math.isfinite(summary.n_particles) else "–"),
        ("resolution, FSC 0.143", show(summary.resolution_angstrom, " Å")),
        ("resolution, FSC 0.5", show(summary.crossings.get(0.5, math.nan), " Å")),
        ("time", show_time(summary.time_s)),
        ("images", f"{show(box, ' px', 4)} of {show(pixel_size, ' Å')}"),
        ("diameter, measured", show(number(survey, "diameter_angstrom"), " Å")),
        ("signal to noise", show(number(survey, "snr"), digits=2)),
        ("protein on disk", str(survey.get("contrast", "–"))),
        ("random starts", str(len(starts)) if starts else "–"),
    ]
    if run.map is not None:
        found.insert(5, ("map", f"{run.map.volume.shape[0]} px of {run.map.pixel_size_angstrom:.3g} Å"))
    if run.evaluation is not None:
        found.append(("within 10° of the truth", f"{100 * number(run.evaluation, 'within_10deg'):.1f} %"))
    return found


def limits(run: RunFiles) -> list[tuple[str, str]]:
    """What this run cannot tell: (short name, explanation)."""
    band = number(last(run.stage("search")), "band_angstrom")
    shared = f" (coarser than about {band:.3g} Å)" if math.isfinite(band) else ""
    hand = (
        "Projections fix a map only up to its mirror image, and this run has taken either at random. Compare with a known "
        "structure, a tilt pair, or the turn of helices once they are resolved; mirror the map if it is wrong."
    )
    coarse = (
        "Both half-maps were refined from one map that had seen all images, so below the band of the pose search"
        f"{shared} their agreement is not independent evidence. A wrong arrangement that both share keeps a high FSC; the "
        "resolution speaks of detail beyond that band."
    )
    only = (
        "Converged means that the poses no longer move, not that they are right. Run again with another seed: maps that "
        "agree, up to turn and hand, are the better evidence."
    )
    alike = "One rigid structure without symmetry was assumed. Other states, moving parts, empty picks and junk are averaged in."
    views = (
        "Where the view distribution is empty the map is smeared along the missing directions; the FSC, an average over "
        "directions, hardly notices."
    )
    scale = "Pixel size and CTF are taken from the input as true; an error in the pixel size scales every length here."
    return [
        ("The hand.", hand),
        ("Whether coarse detail is right.", coarse),
        ("Whether this is the only answer.", only),
        ("Whether all particles are alike.", alike),
        ("What no view shows.", views),
        ("Scale and CTF.", scale),
    ]
