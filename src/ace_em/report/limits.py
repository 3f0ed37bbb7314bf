"""What the results of a run do not show, for the report."""

import math

from ace_em.report.load import RunFiles, number
from ace_em.report.summary import shared


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
