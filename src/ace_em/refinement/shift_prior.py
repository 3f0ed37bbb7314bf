"""Gaussian prior of the in-plane shifts, as in RELION (Scheres 2012, section 2.3): particles are picked near their centres.

Without it the shift of an image whose orientation is wrong follows noise from round to round, until the true shift is out of
reach of the shift grid.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_IMAGES = 20
"""With fewer images the spread of the shifts is unknown: no prior."""


@dataclass(frozen=True)
class ShiftPrior:
    """Shifts scatter about ``centre_px`` (2,), (y, x) in pixels; ``weight`` is ``1 / (2 sd^2)`` in units of a residual.

    Residuals count all coefficients of an image, of which only the fraction ``independent`` is independent, so the log of the
    prior is divided by it.
    """

    centre_px: Tensor
    weight: float = 0.0

    @staticmethod
    def none() -> "ShiftPrior":
        """All shifts are equally probable."""
        return ShiftPrior(torch.zeros(2))

    @staticmethod
    def of(shift_px: Tensor, least_sd_px: float, independent: float = 1.0) -> "ShiftPrior":
        """From the shifts (N, 2) of images with correct poses: median, and spread from the median absolute deviation."""
        if len(shift_px) < LEAST_IMAGES:
            return ShiftPrior.none()
        centre = shift_px.median(0).values
        sd = max(1.4826 * (shift_px - centre).abs().median().item(), least_sd_px)
        return ShiftPrior(centre, 1 / (2 * sd**2 * independent))

    def cost(self, shift_px: Tensor) -> Tensor:
        """Cost (...,) of shifts (..., 2), to be added to residuals."""
        return self.weight * (shift_px - self.centre_px.to(shift_px)).square().sum(-1)
