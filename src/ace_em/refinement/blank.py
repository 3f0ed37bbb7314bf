"""Images that show no particle, told by what their best pose explains.

An image of noise fits any map somewhere by chance. Inserted there it writes its noise into the map, which then draws more
noise to that view. So the empty image is a hypothesis beside all poses, and images for which it is the likeliest are left
out of maps, noise, intensity scales and all that a map is judged by.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_SHOWN = 20
"""With fewer images that show a particle there is nothing to tell them by: all are kept."""
ITERATIONS = 200


@dataclass(frozen=True)
class BlankTest:
    """The empty image against the best of many poses.

    Attributes
    ----------
    poses_tried : poses that the best one is the best of: each has that share of the prior of "shows the particle".
    independent : share of an image's coefficients that are independent of each other; the disc about the particle makes
        neighbours alike. A log-likelihood counts them all, and is that share of what it says.
    """

    poses_tried: float = 1.0
    independent: float = 1.0

    def log_odds(self, gain: Tensor, log_sum: Tensor | None = None) -> Tensor:
        """Log of the likelihood (N,) of "shows the particle" over "empty", both as likely before.

        Parameters
        ----------
        gain : (N,) power of a whitened image less the residual that its best pose leaves, inside a band: the log-likelihood
            of that pose less that of the empty image.
        log_sum : (N,) log of the summed likelihoods of all poses tried. A weak image may fit many poses a little, where a
            strong one has a peak that the grid steps over: the larger of the two counts.
        """
        best = self.independent * gain
        return (best if log_sum is None else torch.maximum(best, log_sum)) - math.log(self.poses_tried)

    def shown(self, gain: Tensor, log_sum: Tensor | None = None) -> Tensor:
        """Which images (N,) more likely than not show the particle.

        The share of images that do is found beside (expectation-maximisation of a mixture of two). Where nearly all do, a
        weak image is kept that one stack of junk would have dropped.
        """
        log_odds, share = self.log_odds(gain, log_sum).double(), 0.5
        if len(gain) < LEAST_SHOWN:
            return torch.ones_like(gain, dtype=torch.bool)
        least = 1 / (2 * len(gain))
        for _ in range(ITERATIONS):
            probability = torch.sigmoid(log_odds + math.log(share / (1 - share)))
            before, share = share, min(max(probability.mean().item(), least), 1 - least)
            if abs(share - before) < 1e-6:
                break
        shown = log_odds + math.log(share / (1 - share)) > 0
        return shown if shown.sum() >= LEAST_SHOWN else torch.ones_like(shown)
