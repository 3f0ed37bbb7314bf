"""What a run cannot tell, said on its page."""

import math

from ace_em.report.run_files import RunFiles, number
from ace_em.report.sentences import last, shared


def limits(run: RunFiles) -> list[tuple[str, str]]:
    """What this run cannot tell: (short name, explanation)."""
    only = (
        "Converged means that the map explains images it was not made from, that the poses no longer move, and that the "
        "half-maps agree beyond what they were given in common; not that the map is right. Run again with another --seed: maps "
        "that agree, up to turn and hand, are the better evidence."
    )
    views = (
        "Where the view distribution is empty the map is smeared along the missing directions; the FSC, an average over "
        "directions, hardly notices."
    )
    scale = "Pixel size and CTF are taken from the input as true; an error in the pixel size scales every length here."
    ignored = last(run.stage("survey")).get("not_corrected")
    if isinstance(ignored, list) and ignored:
        scale += f" The input has more than the image model: not corrected are {', '.join(map(str, ignored))}."
    return [
        ("The hand.", _hand(run)),
        ("Whether coarse detail is right.", _coarse(run)),
        ("Whether this is the only answer.", only),
        ("Whether the symmetry is right.", _symmetry(run)),
        (
            "Whether all particles are alike.",
            "One rigid structure was assumed. Other states, moving parts and junk are averaged in.",
        ),
        ("What no view shows.", views),
        ("Scale and CTF.", scale),
    ]


def _hand(run: RunFiles) -> str:
    flipped = run.config.get("flip_hand") is True
    return (
        "Projections fix a map only up to its mirror image, and a run takes either by chance"
        + ("; this one then mirrored what it had found (--flip-hand). " if flipped else ". ")
        + "Compare with a known structure, a tilt pair, or the turn of helices once they are resolved. The same command "
        + ("without" if flipped else "with")
        + " --flip-hand gives the other hand, maps and poses together."
    )


def _coarse(run: RunFiles) -> str:
    if run.autoencoder_only:
        return (
            "The autoencoder ran alone, as published: one network, trained on all images, gave every pose, and the half-maps "
            "are the two halves of the images at those poses. Their FSC tells how well images and poses agree, not that the "
            "poses are right, at any resolution. --stages all refines two halves apart."
        )
    common = shared(run)
    if common is None:
        return (
            "The half-maps began from one map of all images, and this folder does not say how fine that was. Their agreement "
            "is evidence only beyond it."
        )
    return (
        f"Both half-sets began from one map of all images, cut at {common.cut_angstrom:.3g} Å, and forgot the poses that made "
        "it; from then on every image was compared with the map of its own half only. The cut's soft edge and the outline of the "
        f"ball let even noise agree to about {common.reach_angstrom:.3g} Å. Finer than that the halves share nothing: what they "
        "agree on there was found twice, and no common reference raises the FSC. Coarser, their agreement proves nothing: a "
        "wrong arrangement that both were given can stay in both, with a high FSC."
    )


def _symmetry(run: RunFiles) -> str:
    if run.symmetry == "C1":
        return "None was imposed. If the particle has any, --symmetry makes the map better with the same images."
    text = (
        f"{run.symmetry} was imposed on both half-maps, so that neither they nor their FSC can show whether the particle has it."
    )
    correlation = number(last(run.stage("symmetry")), "correlation")
    if math.isnan(correlation):
        return f"{text} Compare with a run in C1."
    doubt = "that is little: compare with a run in C1" if correlation < 0.5 else "1 is perfect"
    return f"{text} Before that the map correlated with its turned copies to {correlation:.2f}; {doubt}."
