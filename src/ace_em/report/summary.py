"""The plain sentences and key numbers of the report: outcome, tiles, scores, provenance, limits."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from ace_em.metrics.fsc import resolution_shell
from ace_em.report.load import Record, RunFiles, by_start, number

THRESHOLDS = (0.143, 0.5)
SPILL_SHELLS = 3
"""Half-maps of pure noise agree so many shells beyond the cut of the shared map; convergence is judged beyond them."""
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
    "refine": "the refinement",
    "defocus": "the defocus refinement",
    "encoder": "the training of the encoder on the final map",
    "confidence": "the confidence of the poses",
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
_PROVENANCE = {"folder": "in the folder", "date": "on", "expected_s": "time expected", "memory_gib": "memory expected"}


@dataclass(frozen=True)
class Shared:
    """The map of all images that both half-sets began from.

    Attributes
    ----------
    cut_angstrom : resolution at which it was cut.
    reach_angstrom : resolution to which the soft edge of the cut and the spherical mask make even noise agree.
    """

    cut_angstrom: float
    reach_angstrom: float


@dataclass(frozen=True)
class Summary:
    """Numbers of a run; NaN where unknown.

    Attributes
    ----------
    resolution_angstrom, masked_angstrom : where the half-map FSC falls below 0.143, unmasked, and masked and corrected.
    crossings, corrected_crossings : threshold to the resolution in Angstrom at which that curve falls below it; NaN where it
        never does.
    """

    n_particles: float
    resolution_angstrom: float
    masked_angstrom: float
    time_s: float
    crossings: dict[float, float]
    corrected_crossings: dict[float, float]


def crossing_angstrom(frequency: np.ndarray, fsc: np.ndarray, threshold: float) -> float:
    """Resolution in Angstrom at which an FSC (n,) falls below ``threshold``, NaN if never; ``frequency`` (n,) in 1/Angstrom."""
    if not (fsc[2:] < threshold).any():
        return math.nan
    shell = resolution_shell(torch.from_numpy(fsc), threshold)
    return float(1 / np.interp(shell, np.arange(len(frequency)), frequency))


def crossings_of(frequency: np.ndarray, fsc: np.ndarray | None) -> dict[float, float]:
    """Resolution of an FSC (n,) at each of ``THRESHOLDS``; empty without a curve."""
    return {} if fsc is None else {threshold: crossing_angstrom(frequency, fsc, threshold) for threshold in THRESHOLDS}


def shared(run: RunFiles) -> Shared | None:
    """The map that the half-sets began from; None when unknown or when there are no independent half-sets."""
    band, diameter = run.setting("search", "shared_band"), number(run.last("survey"), "diameter_angstrom")
    extent = run.box_angstrom
    if run.autoencoder_only or not (band > 0 and diameter > 0 and extent > 0):
        return None
    return Shared(diameter / band, extent / (math.ceil(band * extent / diameter) + SPILL_SHELLS))


def summarise(run: RunFiles) -> Summary:
    """The numbers that the first sentence, the tiles and the FSC chart share."""
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


def show(value: float, unit: str = "", digits: int = 3) -> str:
    """A number with its unit, a dash when unknown."""
    return f"{value:.{digits}g}{unit}".replace("-", "−") if math.isfinite(value) else "–"


def show_count(n: float) -> str:
    """A count, a dash when unknown."""
    return f"{n:,.0f}" if math.isfinite(n) else "–"


def show_time(seconds: float) -> str:
    """A duration in s, min and s, or h and min."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def show_resolution(angstrom: float, crossings: dict[float, float], threshold: float = 0.143) -> str:
    """A resolution, with ≤ where the curve never falls to the threshold."""
    bound = math.isnan(crossings.get(threshold, 0.0)) and math.isfinite(angstrom)
    return ("≤ " if bound else "") + show(angstrom, " Å")


def show_share(share: float, digits: int = 1) -> str:
    """A share in per cent; a share below 1 is never rounded up to 100 %."""
    if share < 1:
        share = min(share, 1 - 10.0 ** -(digits + 2))
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else "–"


def show_crossings(crossings: dict[float, float]) -> str:
    """Where a curve falls below each threshold, in words."""
    return "; ".join(
        f"{threshold:g} at {angstrom:.3g} Å" if math.isfinite(angstrom) else f"above {threshold:g} to the last shell"
        for threshold, angstrom in crossings.items()
    )


def outcome(run: RunFiles, summary: Summary) -> tuple[str, str]:
    """How the run ended: 'good', 'bad' or 'open', and one sentence."""
    images = f"{summary.n_particles:,.0f} particles" if math.isfinite(summary.n_particles) else "an unknown number of particles"
    time = f" in {show_time(summary.time_s)}" if math.isfinite(summary.time_s) else ""
    if not run.stage("end"):
        stage = str(run.metrics[-1].get("stage", "")) if run.metrics else ""
        where = f"its last entry is from {STAGES.get(stage, stage)}" if stage else "it has logged nothing"
        return "open", f"The run has not ended: {where}; {images}{time}. The page shows the results so far."
    if run.last("end").get("converged") is not True:
        return "bad", f"The run ended without converging ({images}{time})."
    if run.autoencoder_only:
        # both half-maps have the poses of one network: their FSC is not a resolution
        return "good", f"Stage 1, run alone, converged: {images} gave a map and poses{time}."
    resolution = "at an unknown resolution"
    if math.isfinite(summary.resolution_angstrom):
        limit = math.isnan(summary.crossings.get(0.143, 0.0))
        how = ", the limit of its voxels (half-map FSC above 0.143)" if limit else " (half-map FSC 0.143)"
        resolution = f"at {summary.resolution_angstrom:.3g} Å{how}"
    return "good", f"The run converged: {images} gave a map {resolution}{time}."


def at_limit(record: Record, box_angstrom: float) -> bool:
    """Whether the resolution of a round is the Nyquist limit of its working box."""
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
        ("better than random phases by", show(number(tested, "against_null_z"), " σ", 2)),
    ]


def _results_so_far(run: RunFiles) -> list[tuple[str, str]]:
    """The numbers of the last round of an unfinished run."""
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
        ("protein in the input", str(survey.get("contrast", "–"))),
        ("images", f"{show(box, ' px', 4)}, {show(pixel_size, ' Å')}"),
    ]
    if run.map is not None and run.map.volume.shape[0] != box:
        found.append(("map", f"{run.map.volume.shape[0]} px, {run.map.pixel_size_angstrom:.3g} Å"))
    if run.evaluation is not None:
        found.append(("within 10° of the truth", show_share(number(run.evaluation, "within_10deg"), 2)))
    return found


def scores(run: RunFiles) -> list[tuple[str, str]]:
    """(name, value) of evaluation.json, if any; the resolution is a bound where the curve stays above 0.5 to its last shell."""
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
    """(heading, command, facts) for the start and for every time the run was resumed; without headings for a start alone."""
    blocks, begins = [], run.stage("begin")
    for n, begin in enumerate(begins):
        heading = f"Resumed at {show_time(number(begin, 'time_s'))}" if n else "Begun" if len(begins) > 1 else ""
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


def limits(run: RunFiles) -> list[tuple[str, str]]:
    """What the results of the run do not show: (subject, explanation)."""
    scale = "Pixel size and CTF are taken from the input. An error of the pixel size scales every length on this page."
    ignored = run.last("survey").get("not_corrected")
    if isinstance(ignored, list) and ignored:
        scale += f" Present in the input but not corrected: {', '.join(map(str, ignored))}."
    return [
        ("Hand.", _hand(run)),
        ("Coarse detail.", _coarse(run)),
        (
            "Uniqueness.",
            "Converged means that the map explains images it was not made from, that the poses are stable and that the half-maps "
            "agree beyond the map they began from. It does not prove the map. Run again with another --seed: maps that agree, up "
            "to rotation and hand, are better evidence.",
        ),
        ("Symmetry.", _symmetry(run)),
        ("Heterogeneity.", "One rigid structure was assumed. Other states, flexible parts and junk particles are averaged in."),
        (
            "Missing views.",
            "Where the view distribution is empty the map is smeared along the missing directions. The FSC is an average over "
            "directions and hardly shows it.",
        ),
        ("Scale and CTF.", scale),
    ]


def _hand(run: RunFiles) -> str:
    flipped = run.config.get("flip_hand") is True
    return (
        "Projections determine a map only up to its mirror image, and a run finds either hand by chance."
        + (" This run then mirrored its map (--flip-hand)." if flipped else "")
        + " Compare with a known structure, a tilt pair, or the handedness of alpha helices once they are resolved. The same "
        + f"command {'without' if flipped else 'with'} --flip-hand gives the other hand, maps and poses together."
    )


def _coarse(run: RunFiles) -> str:
    if run.autoencoder_only:
        return (
            "Stage 1 ran alone, as in the publication: one network, trained on all images, gave every pose, and the half-maps "
            "are reconstructed from the two halves of the images at these poses. Their FSC does not show that the poses are "
            "right, at any resolution. --stages all refines two half-sets independently."
        )
    common = shared(run)
    if common is None:
        return (
            "Both half-sets began from one map of all images, and this folder does not hold its resolution. The half-map FSC "
            "is evidence only at finer detail than that map."
        )
    return (
        f"Both half-sets began from one map of all images, cut at {common.cut_angstrom:.3g} Å. From then on every image was "
        "compared with the map of its own half-set only, in a search that did not use the earlier poses. The soft edge of the "
        f"cut and the spherical mask let even noise agree to about {common.reach_angstrom:.3g} Å. At finer detail the half-maps "
        "are independent and their FSC is evidence. At coarser detail it is not: an error of the shared map can remain in both "
        "half-maps, with a high FSC."
    )


def _symmetry(run: RunFiles) -> str:
    if run.symmetry == "C1":
        return "None was imposed. If the particle has a symmetry, --symmetry improves the map with the same images."
    text = f"{run.symmetry} was imposed on both half-maps: neither they nor their FSC show whether the particle has it."
    correlation = number(run.last("symmetry"), "correlation")
    if math.isnan(correlation):
        return f"{text} Compare with a run in C1."
    doubt = "low: compare with a run in C1" if correlation < 0.5 else "1 is perfect"
    return f"{text} Before that, the correlation of the map with its rotated copies was {correlation:.2f} ({doubt})."
