"""Solvent flattening: a soft mask from the map itself, which keeps the noise of the solvent out of the references.

A particle fills about an eighth of the ball around it. The noise in the rest of the ball enters every projection; without it, and
with the FSC inside the mask, references are less noisy and trusted to a higher resolution, as in RELION and cryoSPARC.
"""

import torch
from torch import Tensor

from ace_em.metrics.fsc import MaskedFSC, masked_fsc, resolution_shell
from ace_em.refinement.mask import soft_mask
from ace_em.refinement.postprocess import filtered, fsc_weight

LOW_PASS = 0.7
"""Low-pass of the map that is thresholded, relative to its resolution."""
LEAST_SHELL = 4.0


def solvent_mask(half1: Tensor, half2: Tensor, fsc: Tensor, ball: Tensor) -> Tensor:
    """Soft mask (n, n, n) around the particle, from unfiltered half-maps (n, n, n) inside a ``ball``.

    The average of the half-maps is FSC-weighted and low-passed somewhat below its resolution. The thresholded particle is
    extended by half a period at the resolution, with a soft edge as wide. Both half-maps get the same mask.
    """
    box = len(ball)
    shell = min(max(resolution_shell(fsc, 0.143), LEAST_SHELL), box / 2 - 1)
    average = filtered((half1 + half2) / 2, fsc_weight(fsc), shell, 0.0, 1.0) * ball
    half_period_px = box / shell / 2
    return soft_mask(average, LOW_PASS * shell, half_period_px, half_period_px, ball)


def fsc_in_mask(half1: Tensor, half2: Tensor, mask: Tensor) -> MaskedFSC:
    """FSC inside the mask, corrected for the mask by phase randomisation; the random phases are the same every time."""
    return masked_fsc(half1, half2, mask, torch.Generator().manual_seed(0))
