"""Detection of blank images (no particle) from the likelihood of their best pose.

A pure noise image fits any map at some pose by chance. Back-projected at that pose, it adds its noise to the map, and the map
then attracts further noise images to the same view. The empty image is therefore tested as a hypothesis against all poses.
Images for which it is the more probable are left out of the maps, the noise and intensity estimates, and the statistics by
which a map is judged.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_SHOWN = 20
"""With fewer images that show a particle the test is unreliable, and all images are kept."""
ITERATIONS = 200
"""Maximum number of EM iterations for the fraction of images that show a particle."""


@dataclass(frozen=True)
class BlankTest:
    """Likelihood ratio test of "shows the particle" against "blank".

    Attributes
    ----------
    poses_tried : number of poses searched. Each has a prior of ``1 / poses_tried`` given that the particle is there.
    independent : fraction of the Fourier coefficients of an image that are independent. The circular mask correlates
        neighbouring coefficients, so log-likelihoods summed over all coefficients are scaled by this fraction.
    """

    poses_tried: float = 1.0
    independent: float = 1.0

    def log_odds(self, gain: Tensor, log_sum: Tensor | None = None) -> Tensor:
        """Log-odds (N,) of "shows the particle" over "blank", with equal priors.

        Parameters
        ----------
        gain : (N,) power of each whitened image minus the residual at its best pose, inside the band. This is the
            log-likelihood of the best pose relative to that of a blank image.
        log_sum : (N,) log of the likelihood summed over all poses tried. The larger of the two is used: a weak image fits
            many poses about equally well, whereas the peak of a strong one may fall between the grid points.
        """
        best = self.independent * gain
        return (best if log_sum is None else torch.maximum(best, log_sum)) - math.log(self.poses_tried)

    def shown(self, gain: Tensor, log_sum: Tensor | None = None) -> Tensor:
        """Whether each image more probably shows the particle than not, (N,) bool.

        The fraction of images with a particle is the prior. It is estimated by expectation-maximisation of the two-component
        mixture: a weak image is kept in a clean stack but rejected in a stack of mostly junk.
        """
        log_odds, fraction = self.log_odds(gain, log_sum).double(), 0.5
        if len(gain) < LEAST_SHOWN:
            return torch.ones_like(gain, dtype=torch.bool)
        minimum = 1 / (2 * len(gain))
        for _ in range(ITERATIONS):
            probability = torch.sigmoid(log_odds + math.log(fraction / (1 - fraction)))
            previous, fraction = fraction, min(max(probability.mean().item(), minimum), 1 - minimum)
            if abs(fraction - previous) < 1e-6:
                break
        shown = log_odds + math.log(fraction / (1 - fraction)) > 0
        return shown if shown.sum() >= LEAST_SHOWN else torch.ones_like(shown)
