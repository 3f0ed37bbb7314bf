"""What the report says in words: the outcome and the key numbers."""

import math
from dataclasses import dataclass

import numpy as np

from ace_em.report.run_files import Record, RunFiles, Shared, number

THRESHOLDS = (0.143, 0.5)
# so far beyond the cut do the half-maps of pure noise agree; the verdict on a run looks beyond it
SPILL_SHELLS = 3
EVERY_RUN = ("survey", "ace", "explore", "search", "refine", "end")
AUTOENCODER_RUN = ("survey", "ace", "end")
STAGES = {
    "begin": "the start",
    "survey": "the survey of the images",
    "ace": "stage 1",
    "watch": "stage 1",
    "explore": "the exploring",
    "start": "the judging of a start",
    "kept": "the choice among the starts",
    "symmetry": "the search for the symmetry's axes",
    "search": "the search of all images",
    "refine": "the refinement",
    "defocus": "the refinement of the defocus",
    "teach": "the encoder's lesson",
    "confidence": "the confidence of the poses",
    "end": "the end",
}


@dataclass(frozen=True)
class Summary:
    """Numbers of a run; NaN where unknown.

    Attributes
    ----------
    resolution_angstrom, masked_angstrom : where the half-map FSC falls below 0.143, without a mask, and inside the mask and
        corrected for it.
    crossings, corrected_crossings : each threshold to the resolution in Angstrom at which that curve falls below it; NaN where
        it never does, and the finest detail that the voxels can hold is as far as it was measured.
    """

    n_particles: float
    resolution_angstrom: float
    masked_angstrom: float
    time_s: float
    crossings: dict[float, float]
    corrected_crossings: dict[float, float]


def crossing_angstrom(frequency: np.ndarray, fsc: np.ndarray, threshold: float) -> float:
    """Resolution at which a curve (n,) first falls below ``threshold``, interpolated; NaN when it never does.

    Shells 0 and 1 hold a handful of coefficients and are passed over, as in :mod:`ace_em.metrics.fsc`.
    """
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


def held_out(run: RunFiles) -> Record:
    """The record of the start that the run went on with; before that is settled, of the last one."""
    kept = last(run.stage("kept")).get("start")
    return next((record for record in run.stage("start") if record.get("start") == kept), last(run.stage("start")))


def shared(run: RunFiles) -> Shared | None:
    """What the half-sets began with; None when the folder does not say, or there was one set only (stage 1 alone)."""
    if run.autoencoder_only:
        return None
    search, survey = run.config.get("search"), last(run.stage("survey"))
    band, diameter = number(search if isinstance(search, dict) else None, "shared_band"), number(survey, "diameter_angstrom")
    extent = number(survey, "box") * number(survey, "pixel_size_angstrom")
    if not (band > 0 and diameter > 0 and extent > 0):
        return None
    return Shared(diameter / band, extent / (math.ceil(band * extent / diameter) + SPILL_SHELLS))


def summarise(run: RunFiles) -> Summary:
    """The numbers of the first sentence and the tiles."""
    curve, end = run.curve, last(run.stage("end"))
    crossings = {} if curve is None else _crossings(curve.frequency_per_angstrom, curve.fsc)
    corrected = {} if curve is None or curve.corrected is None else _crossings(curve.frequency_per_angstrom, curve.corrected)
    resolution = number(end, "resolution_angstrom")
    if math.isnan(resolution):
        resolution = crossings.get(0.143, math.nan)
    n = number(last(run.stage("survey")), "n_particles")
    if math.isnan(n) and run.table is not None:
        n = float(len(run.table))
    times = [number(record, "time_s") for record in run.metrics]
    time = max((t for t in times if t == t), default=math.nan)
    return Summary(n, resolution, number(end, "masked_resolution_angstrom"), time, crossings, corrected)


def _crossings(frequency: np.ndarray, fsc: np.ndarray) -> dict[float, float]:
    return {threshold: crossing_angstrom(frequency, fsc, threshold) for threshold in THRESHOLDS}


def show(value: float, unit: str = "", digits: int = 3) -> str:
    """A number with its unit, a dash when unknown."""
    return f"{value:.{digits}g}{unit}".replace("-", "−") if math.isfinite(value) else "–"


def show_time(seconds: float) -> str:
    """Seconds as people say them."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def show_resolution(angstrom: float, crossings: dict[float, float], threshold: float = 0.143) -> str:
    """A resolution, as a bound where the curve never falls to the threshold."""
    at_limit = math.isnan(crossings.get(threshold, 0.0)) and math.isfinite(angstrom)
    return ("≤ " if at_limit else "") + show(angstrom, " Å")


def show_share(share: float, digits: int = 1) -> str:
    """Per cent; what falls short of the whole is never rounded up to it."""
    if share < 1:
        share = min(share, 1 - 10.0 ** -(digits + 2))
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else "–"


def finest_angstrom(run: RunFiles) -> float:
    """The finest detail that the voxels of the FSC's maps hold."""
    return math.nan if run.curve is None else float(1 / run.curve.frequency_per_angstrom[-1])


def outcome(run: RunFiles, summary: Summary) -> tuple[str, str]:
    """How the run ended, 'good', 'bad' or 'open', and one sentence that says so."""
    images = f"{summary.n_particles:,.0f} particles" if math.isfinite(summary.n_particles) else "an unknown number of particles"
    time = f" in {show_time(summary.time_s)}" if math.isfinite(summary.time_s) else ""
    end = run.stage("end")
    if not end:
        stage = str(last(list(run.metrics)).get("stage", ""))
        where = f"its last entry is from {STAGES.get(stage, stage)}" if stage else "it has logged nothing"
        return "open", f"The run has not ended: {where}; {images}{time}. The page shows what there is so far."
    if end[-1].get("converged") is not True:
        return "bad", f"The run ended without converging ({images}{time})."
    if run.autoencoder_only:
        # its half-maps share their poses: what they agree to is no resolution
        return "good", f"The autoencoder, alone, settled: {images} gave a map and poses{time}."
    resolution = "at a resolution that was not measured"
    if math.isfinite(summary.resolution_angstrom):
        resolution = f"at {summary.resolution_angstrom:.3g} Å (half-map FSC 0.143)"
        if math.isnan(summary.crossings.get(0.143, 0.0)):
            resolution = f"at {summary.resolution_angstrom:.3g} Å, the finest detail its voxels hold (half-map FSC above 0.143)"
    return "good", f"The run converged: {images} gave a map {resolution}{time}."


def _refined(run: RunFiles, summary: Summary) -> list[tuple[str, str]]:
    """Key numbers of a run with all its stages."""
    end, judged = last(run.stage("end")), held_out(run)
    return [
        ("resolution, FSC 0.143", show_resolution(summary.resolution_angstrom, summary.crossings)),
        ("the same in the mask", show_resolution(summary.masked_angstrom, summary.corrected_crossings)),
        ("resolution, FSC 0.5", _at_half(run, summary)),
        ("B factor", "none" if number(end, "b_factor") == 0 else show(number(end, "b_factor"), " Å²")),
        ("held-out signal explained", show(100 * number(judged, "explained"), " %")),
        ("beats random phases by", show(number(judged, "against_null_z"), " σ", 2)),
    ]


def _at_half(run: RunFiles, summary: Summary) -> str:
    angstrom = summary.crossings.get(0.5, math.nan)
    return show_resolution(finest_angstrom(run) if math.isnan(angstrom) else angstrom, summary.crossings, 0.5)


def _stable_share(run: RunFiles) -> list[tuple[str, str]]:
    """Of stage 1 alone, whose half-maps share their poses and so tell no resolution."""
    return [("stable poses", show(100 * number(last(run.stage("watch")), "stable"), " %"))]


def _so_far(run: RunFiles) -> list[tuple[str, str]]:
    """Of a run that has not ended: the last round's numbers."""
    rounds = [record for record in run.metrics if record.get("stable") is not None]
    halves = [record for record in run.metrics if record.get("stage") in ("search", "refine")]
    found = [("stable poses", show(100 * number(last(rounds), "stable"), " %"))] if rounds else []
    if halves:
        resolution = show(number(halves[-1], "fsc143_angstrom"), " Å")
        found.append(("half-map FSC 0.143, so far", ("≤ " if at_limit(halves[-1], box_angstrom(run)) else "") + resolution))
    return found


def box_angstrom(run: RunFiles) -> float:
    """Edge of the images; NaN when unknown."""
    survey = last(run.stage("survey"))
    return number(survey, "box") * number(survey, "pixel_size_angstrom")


def at_limit(record: Record, box_angstrom: float) -> bool:
    """Whether a round's resolution is all that its box can hold."""
    return number(record, "fsc143_angstrom") <= 1.001 * 2 * box_angstrom / number(record, "box")


def tiles(run: RunFiles, summary: Summary) -> list[tuple[str, str]]:
    """Key numbers: (name, value)."""
    if not run.stage("end"):
        results = _so_far(run)
    else:
        results = _stable_share(run) if run.autoencoder_only else _refined(run, summary)
    survey = last(run.stage("survey"))
    box, pixel_size = number(survey, "box"), number(survey, "pixel_size_angstrom")
    starts = {str(record.get("start", 1)) for record in run.stage("ace")}
    found = [
        ("particles", f"{summary.n_particles:,.0f}" if math.isfinite(summary.n_particles) else "–"),
        ("time", show_time(summary.time_s)),
        *results,
        ("symmetry", run.symmetry),
        ("random starts", str(len(starts)) if starts else "–"),
        ("diameter", show(number(survey, "diameter_angstrom"), " Å")),
        ("signal to noise", show(number(survey, "snr"), digits=2)),
        ("protein on disk", str(survey.get("contrast", "–"))),
        ("images", f"{show(box, ' px', 4)}, {show(pixel_size, ' Å')}"),
    ]
    if run.map is not None and run.map.volume.shape[0] != box:
        found.append(("map", f"{run.map.volume.shape[0]} px, {run.map.pixel_size_angstrom:.3g} Å"))
    if run.evaluation is not None:
        found.append(("within 10° of the truth", show_share(number(run.evaluation, "within_10deg"), 2)))
    return found
