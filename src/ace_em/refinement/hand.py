"""One hand for both half-maps of a symmetric particle.

The map that the half-sets start from may be so coarse that it has no hand: with octahedral symmetry the features of lowest order
that have one are of degree 9. Each half-set then takes one of the two hands by chance, and a half-map disagrees with the other
beyond the shared band although all poses are right.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ace_em.maths.point_group import axes_after_mirror
from ace_em.maths.radial_mean import features
from ace_em.metrics.alignment import Frame, turn_volume
from ace_em.metrics.fsc import fourier_shell_correlation
from ace_em.refinement.half_sets import HalfSets, HalfSetState, next_round
from ace_em.refinement.map_alignment import align_maps

LEAST_GAIN = 0.1
"""Half 2 is mirrored if its mean FSC with half 1 rises by this: half-maps of noise do not differ by as much."""


def of_one_hand(sets: HalfSets, state: HalfSetState) -> HalfSetState:
    """The state, with map and poses of half 2 mirrored if they then agree better with half 1.

    Without symmetry it is returned as it is: the mirror image of a map has axes that are known from its point group alone.
    """
    if len(sets.group) == 1:
        return state
    one, two = (half * sets.mask for half in (state.halves.weak1, state.halves.weak2))
    mirror = Frame(axes_after_mirror(sets.group.double()).float(), True, torch.zeros(3))
    mirrored = turn_volume(two, mirror)
    drift = align_maps(mirrored, one, state.halves.fsc, state.fsc143_shell)
    agreement = [_agreement(one, half, state.band) for half in (two, turn_volume(mirrored, drift))]
    if agreement[1] < agreement[0] + LEAST_GAIN:
        return state
    rows = sets.rows[1]
    moved = state.posterior[rows].in_frame(mirror).in_frame(drift)
    return next_round(sets, replace(state, posterior=state.posterior.replaced(rows, moved)), state.band, None)


def _agreement(one: Tensor, two: Tensor, band: float) -> float:
    """FSC of two maps (n, n, n) without their radial means, averaged over all coefficients inside a band."""
    fsc = fourier_shell_correlation(features(one), features(two))[1 : int(band) + 1]
    area = torch.arange(1, len(fsc) + 1).square()
    return ((fsc * area).sum() / area.sum()).item()
