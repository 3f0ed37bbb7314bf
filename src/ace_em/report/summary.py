"""Outcome, key numbers, scores and provenance of a run, for the report."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from ace_em.metrics.fsc import resolution_shell
from ace_em.report.load import Record, RunFiles, by_start, number
from ace_em.report.numbers import show, show_count, show_resolution, show_share, show_time

THRESHOLDS = (0.143, 0.5)
SPILL_SHELLS = 3
"""Half-maps of pure noise correlate over this many shells beyond the low-pass of the shared map."""
EVERY_RUN = ("survey", "ace", "ab_initio", "search", "refine", "end")
AUTOENCODER_RUN = ("survey", "ace", "end")
STAGES = {
    "begin": "the start",
    "survey": "the survey of the images",
    "ace": "stage 1",
    "watch": "stage 1",
    "ab_initio": "the ab initio search",
    "start": "the test of a start on held-out images",
    "kept": "the choice of the best start",
    "symmetry": "the search for the symmetry axes",
    "search": "the search",
    "pseudo_symmetry": "the search for the axes of the pseudo-symmetry",
    "refine": "the refinement",
    "defocus": "the defocus refinement",
    "encoder": "the training of the encoder on the final map",
    "confidence": "the calculation of pose probabilities",
    "end": "the end",
}
SCORES = {
    "fsc05_px": "FSC 0.5 against the truth (px of the map)",
    "fsc05_angstrom": "FSC 0.5 against the truth (Å)",
    "bound_px": "the same at the true poses in C1, upper bound (px of the map)",
    "rot_mean": "rotation error, mean (squared Frobenius norm)",
    "rot_median": "rotation error, median (squared Frobenius norm)",
    "trans": "translation error, mean squared (px² of the images)",
    "within_10deg": "poses within 10° of the truth",
    "coverage": "share of the view sphere with particles",
    "hand": "hand, compared with the truth",
}
_PROVENANCE = {"folder": "in the folder", "date": "on", "expected_s": "expected time", "memory_gib": "expected memory"}


@dataclass(frozen=True)
class Shared:
    """Common starting map of both half-sets.

    Attributes
    ----------
    cut_angstrom : resolution of its low-pass filter.
    reach_angstrom : resolution to which the soft edge of the filter and the spherical mask correlate even noise.
    """

    cut_angstrom: float
    reach_angstrom: float


@dataclass(frozen=True)
class Summary:
    """Key numbers of a run; NaN if unknown.

    Attributes
    ----------
    resolution_angstrom, masked_angstrom : resolution at half-map FSC 0.143, unmasked, and masked and corrected.
    crossings, corrected_crossings : resolution in Angstrom at which the unmasked and the corrected curve fall below each
        threshold; NaN if they do not.
    """

    n_particles: float
    resolution_angstrom: float
    masked_angstrom: float
    time_s: float
    crossings: dict[float, float]
    corrected_crossings: dict[float, float]


def crossing_angstrom(frequency: np.ndarray, fsc: np.ndarray, threshold: float) -> float:
    """Resolution in Angstrom at which an FSC (n,) falls below ``threshold``; NaN if never. ``frequency`` (n,) in 1/Angstrom."""
    if not (fsc[2:] < threshold).any():
        return math.nan
    shell = resolution_shell(torch.from_numpy(fsc), threshold)
    return float(1 / np.interp(shell, np.arange(len(frequency)), frequency))


def crossings_of(frequency: np.ndarray, fsc: np.ndarray | None) -> dict[float, float]:
    """Resolution of an FSC (n,) at each of ``THRESHOLDS``; empty without a curve."""
    return {} if fsc is None else {threshold: crossing_angstrom(frequency, fsc, threshold) for threshold in THRESHOLDS}


def shared(run: RunFiles) -> Shared | None:
    """Common starting map of the half-sets; None if unknown or without independent half-sets."""
    band, diameter = run.setting("search", "shared_band"), number(run.last("survey"), "diameter_angstrom")
    extent = run.box_angstrom
    if run.autoencoder_only or not (band > 0 and diameter > 0 and extent > 0):
        return None
    return Shared(diameter / band, extent / (math.ceil(band * extent / diameter) + SPILL_SHELLS))


def summarise(run: RunFiles) -> Summary:
    """Key numbers for the outcome, the tiles and the FSC chart."""
    curve, end = run.curve, run.last("end")
    crossings = crossings_of(curve.frequency_per_angstrom, curve.fsc) if curve else {}
    corrected = crossings_of(curve.frequency_per_angstrom, curve.corrected) if curve else {}
    resolution, n = number(end, "resolution_angstrom"), number(run.last("survey"), "n_particles")
    if math.isnan(resolution):
        resolution = crossings.get(0.143, math.nan)
    if math.isnan(n) and run.table is not None:
        n = float(len(run.table))
    times = [time for record in run.metrics if not math.isnan(time := number(record, "time_s"))]
    masked = number(end, "masked_resolution_angstrom")
    return Summary(n, resolution, masked, max(times, default=math.nan), crossings, corrected)


def outcome(run: RunFiles, summary: Summary) -> tuple[str, str]:
    """Outcome of a run: 'good', 'bad' or 'open', and one sentence."""
    images = f"{summary.n_particles:,.0f} particles" if math.isfinite(summary.n_particles) else "an unknown number of particles"
    time = f" in {show_time(summary.time_s)}" if math.isfinite(summary.time_s) else ""
    if not run.stage("end"):
        stage = str(run.metrics[-1].get("stage", "")) if run.metrics else ""
        where = f"its last entry is from {STAGES.get(stage, stage)}" if stage else "it has no entries yet"
        return "open", f"The run has not finished: {where}; {images}{time}. This page shows the results so far."
    if run.last("end").get("converged") is not True:
        return "bad", f"The run ended without converging ({images}{time})."
    if run.autoencoder_only:
        # all poses come from one network, so the half-map FSC does not give a resolution
        return "good", f"Stage 1 converged, run without later stages: {images} gave a map and poses{time}."
    resolution = "at an unknown resolution"
    if math.isfinite(summary.resolution_angstrom):
        limit = math.isnan(summary.crossings.get(0.143, 0.0))
        how = ", the Nyquist limit (half-map FSC above 0.143)" if limit else " (half-map FSC 0.143)"
        resolution = f"at {summary.resolution_angstrom:.3g} Å{how}"
    return "good", f"The run converged: {images} gave a map {resolution}{time}."


def at_limit(record: Record, box_angstrom: float) -> bool:
    """Whether the resolution of a round is at Nyquist of its working box."""
    return number(record, "fsc143_angstrom") <= 1.001 * 2 * box_angstrom / number(record, "box")


def _results(run: RunFiles, summary: Summary) -> list[tuple[str, str]]:
    """Results of a finished run."""
    if run.autoencoder_only:
        return [("stable poses", show(100 * number(run.last("watch"), "stable"), " %"))]
    end, half = run.last("end"), summary.crossings.get(0.5, math.nan)
    if math.isnan(half) and run.curve is not None:
        half = float(1 / run.curve.frequency_per_angstrom[-1])
    kept = str(run.last("kept").get("start", ""))
    tested = by_start(run.stage("start")).get(kept, [run.last("start")])[-1]
    return [
        ("resolution, FSC 0.143", show_resolution(summary.resolution_angstrom, summary.crossings)),
        ("masked, FSC 0.143", show_resolution(summary.masked_angstrom, summary.corrected_crossings)),
        ("resolution, FSC 0.5", show_resolution(half, summary.crossings, 0.5)),
        ("B factor", "none" if number(end, "b_factor") == 0 else show(number(end, "b_factor"), " Å²")),
        ("held-out signal explained", show(100 * number(tested, "explained"), " %")),
        ("z-score against random phases", show(number(tested, "against_null_z"), "", 2)),
    ]


def _results_so_far(run: RunFiles) -> list[tuple[str, str]]:
    """Results of the last round of an unfinished run."""
    rounds = [record for record in run.metrics if record.get("stable") is not None]
    halves = [record for record in run.metrics if record.get("stage") in ("search", "refine")]
    found = [("stable poses", show(100 * number(rounds[-1], "stable"), " %"))] if rounds else []
    if halves:
        bound = "≤ " if at_limit(halves[-1], run.box_angstrom) else ""
        found.append(("half-map FSC 0.143, so far", bound + show(number(halves[-1], "fsc143_angstrom"), " Å")))
    return found


def tiles(run: RunFiles, summary: Summary) -> list[tuple[str, str]]:
    """Key numbers: (name, value)."""
    survey, starts = run.last("survey"), len({str(record.get("start", 1)) for record in run.stage("ace")})
    box, pixel_size = number(survey, "box"), number(survey, "pixel_size_angstrom")
    found = [
        ("particles", show_count(summary.n_particles)),
        ("time", show_time(summary.time_s)),
        *(_results(run, summary) if run.stage("end") else _results_so_far(run)),
        ("symmetry", run.symmetry),
        ("random starts", str(starts or "–")),
        ("diameter", show(number(survey, "diameter_angstrom"), " Å")),
        ("signal-to-noise ratio", show(number(survey, "snr"), digits=2)),
        ("protein contrast in the input", str(survey.get("contrast", "–"))),
        ("images", f"{show(box, ' px', 4)}, {show(pixel_size, ' Å')}"),
    ]
    if run.map is not None and run.map.volume.shape[0] != box:
        found.append(("map", f"{run.map.volume.shape[0]} px, {run.map.pixel_size_angstrom:.3g} Å"))
    if run.evaluation is not None:
        found.append(("within 10° of the truth", show_share(number(run.evaluation, "within_10deg"), 2)))
    return found


def scores(run: RunFiles) -> list[tuple[str, str]]:
    """(name, value) of evaluation.json, if any; a resolution is marked ≤ if the curve stays above 0.5 to its last shell."""
    evaluation = run.evaluation or {}
    curve, found = evaluation.get("fsc_truth"), []
    bound = isinstance(curve, list) and all(number({"fsc": value}, "fsc") >= 0.5 for value in curve[2:])
    for name in [*(name for name in SCORES if name in evaluation), *(name for name in evaluation if name not in SCORES)]:
        if not isinstance(evaluation[name], list | dict):
            value = number(evaluation, name)
            text = f"{value:.4g}" if math.isfinite(value) else str(evaluation[name])
            text = show_share(value, 2) if name in ("within_10deg", "coverage") else text
            found.append((SCORES.get(name, name), f"≤ {text}" if bound and name.startswith("fsc05") else text))
    return found


def provenance(run: RunFiles) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """(heading, command, facts) of the start and of every resumption; without headings if the run was never resumed."""
    blocks, begins = [], run.stage("begin")
    for n, begin in enumerate(begins):
        heading = f"Resumed at {show_time(number(begin, 'time_s'))}" if n else "Started" if len(begins) > 1 else ""
        facts = []
        for key in begin:
            if key not in ("stage", "time_s", "command", "versions"):
                value = show_time(number(begin, key)) if key.endswith("_s") else str(begin[key])
                value = show(number(begin, key), " GiB", 2) if key.endswith("_gib") else value
                facts.append((_PROVENANCE.get(key, key.replace("_", " ")), value))
        versions = begin.get("versions")
        if isinstance(versions, dict):
            facts.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
        blocks.append((heading, str(begin.get("command") or ""), facts))
    return blocks
