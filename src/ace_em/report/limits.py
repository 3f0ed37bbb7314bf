"""Limits of the results of a run, for the report."""

import math

from ace_em.report.load import RunFiles, number
from ace_em.report.summary import shared


def limits(run: RunFiles) -> list[tuple[str, str]]:
    """Limits of the results of a run: (subject, explanation)."""
    scale = "Pixel size and CTF are taken from the input. An error in the pixel size scales all lengths on this page."
    ignored = run.last("survey").get("not_corrected")
    if isinstance(ignored, list) and ignored:
        scale += f" Present in the input but not corrected: {', '.join(map(str, ignored))}."
    return [
        ("Hand.", _hand(run)),
        ("Coarse detail.", _coarse(run)),
        (
            "Uniqueness.",
            "Converged means that the map explains held-out images, that the poses are stable and that the half-maps agree "
            "beyond their common starting map. This does not prove that the map is correct. Repeat the run with another --seed: "
            "maps that agree up to rotation and hand are better evidence.",
        ),
        ("Symmetry.", _symmetry(run)),
        ("Heterogeneity.", "One rigid structure was assumed. Other states, flexible parts and junk particles are averaged in."),
        (
            "Missing views.",
            "Gaps in the view distribution smear the map along the missing directions. The FSC is an average over directions and "
            "hardly shows this.",
        ),
        ("Scale and CTF.", scale),
    ]


def _hand(run: RunFiles) -> str:
    flipped = run.config.get("flip_hand") is True
    return (
        "Projections determine a map only up to its mirror image, so either hand may result."
        + (" The map of this run was mirrored at the end (--flip-hand)." if flipped else "")
        + " Compare with a known structure, a tilt pair, or the handedness of alpha helices once they are resolved. The same "
        + f"command {'without' if flipped else 'with'} --flip-hand gives the other hand, maps and poses together."
    )


def _coarse(run: RunFiles) -> str:
    if run.autoencoder_only:
        return (
            "Only stage 1 was run, as in the publication: all poses come from one network trained on all images, and the "
            "half-maps are reconstructed at these poses. Their FSC is no evidence, at any resolution, that the poses are "
            "correct. --stages all refines two half-sets independently."
        )
    common = shared(run)
    if common is None:
        return (
            "Both half-sets started from one map of all images, whose resolution is not recorded in this folder. The half-map "
            "FSC is evidence only beyond the resolution of that map."
        )
    return (
        f"Both half-sets started from one map of all images, low-passed at {common.cut_angstrom:.3g} Å. After that every image "
        "was compared only with the map of its own half-set, in a search that did not use the earlier poses. The soft edge of "
        f"the low-pass filter and the spherical mask correlate even noise to about {common.reach_angstrom:.3g} Å. Beyond this "
        "resolution the half-maps are independent and their FSC is evidence. At lower resolution it is not: an error of the "
        "shared map can remain in both half-maps and still give a high FSC."
    )


def _symmetry(run: RunFiles) -> str:
    if run.symmetry == "C1":
        return "None was imposed. If the particle has a point group symmetry, --symmetry improves the map."
    text = f"{run.symmetry} was imposed on both half-maps, so neither they nor their FSC show whether the particle has it."
    correlation = number(run.last("symmetry"), "correlation")
    if math.isnan(correlation):
        return f"{text} Compare with a run in C1."
    comment = "low: compare with a run in C1" if correlation < 0.5 else "1 is perfect"
    return f"{text} Before symmetrisation the correlation of the map with its rotated copies was {correlation:.2f} ({comment})."
