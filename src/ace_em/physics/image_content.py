"""What an image shows: the particle, noise alone, or something else.

An image of noise fits any map somewhere by chance, and an image of a carbon edge or of another particle fits it in part. Inserted
there, it bends the map towards itself, and the map then draws more of its kind to that view. So two more hypotheses stand beside
all poses: the empty image, and an image of something else, which has more power than the map and the noise account for. Images
that are likelier to be one of these are left out of maps, noise, intensity scales and of all that a map is judged by.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.maths.fourier import shell_sums
from ace_em.maths.half_plane import HalfPlane

UNUSUAL_POWER = 4.0
"""Robust standard deviations above the median from which on the power of an image is unusual."""
LEAST_SHOWN = 20
"""With fewer images that show a particle there is nothing to tell the others by: all are kept."""
LEAST_SHARE = 0.1
"""Where fewer than this share of the images that are not empty fit the map, the map is wrong, not the images: all are kept."""
BEST_FITTING = 0.3
"""Share of the images that are not empty from which the residuals of particles are first learnt."""
ITERATIONS = 200
TOLERANCE = 1e-4
LEAST_EXCESS = -0.5
"""The noise is known to no better than a factor of two."""
AMPLITUDES = torch.logspace(-1, 2, 13)
"""Power that something else may have beyond what is accounted for, relative to the signal of the images."""


def of_unusual_power(power: Tensor) -> Tensor:
    """(N,) bool: images with far more ``power`` (N,) than most: carbon edges, crystals of ice."""
    median = power.median()
    return power > median + UNUSUAL_POWER * 1.4826 * (power - median).abs().median()


@dataclass(frozen=True)
class ShellPower:
    """Of N whitened images, summed over the coefficients of each of S shells.

    Attributes
    ----------
    power, residual : (N, S) squared norms, before and after subtraction of the projection at the best pose.
    n_coefficients : (S,) complex coefficients in a shell.
    """

    power: Tensor
    residual: Tensor
    n_coefficients: Tensor

    @property
    def gain(self) -> Tensor:
        """Log-likelihood (N,) of the best pose less that of the empty image, if all coefficients were independent."""
        return (self.power - self.residual).sum(1)

    @staticmethod
    def of(image_ft: Tensor, predicted_ft: Tensor, half_plane: HalfPlane) -> "ShellPower":
        """From images and predictions (N, n) on a half-plane."""
        n_shells = int(half_plane.box // 2 + 1)
        power, residual = (
            shell_sums(torch.view_as_real(x).square().sum(-1), half_plane.shell, n_shells)
            for x in (image_ft, image_ft - predicted_ft)
        )
        return ShellPower(power, residual, shell_sums(torch.ones_like(half_plane.radius), half_plane.shell, n_shells))

    @staticmethod
    def cat(parts: "Sequence[ShellPower]") -> "ShellPower":
        power, residual = torch.cat([p.power for p in parts]), torch.cat([p.residual for p in parts])
        return ShellPower(power, residual, parts[0].n_coefficients)

    def to(self, device: torch.device) -> "ShellPower":
        return ShellPower(self.power.to(device), self.residual.to(device), self.n_coefficients.to(device))


@dataclass(frozen=True)
class Content:
    """Probabilities (N,) that images show the particle, noise alone or something else; they add up to 1."""

    particle: Tensor
    empty: Tensor
    other: Tensor

    @property
    def shows_particle(self) -> Tensor:
        """(N,) bool: more likely than not."""
        return self.particle > 0.5

    @property
    def kind(self) -> Tensor:
        """(N,) what is most probable: 0 the particle, 1 noise alone, 2 something else."""
        return torch.stack([self.particle, self.empty, self.other], 1).argmax(1)

    @staticmethod
    def of_particles(n: int, like: Tensor) -> "Content":
        """N images that are all taken for particles."""
        one, zero = like.new_ones(n), like.new_zeros(n)
        return Content(one, zero, zero)

    def to(self, device: torch.device) -> "Content":
        return Content(self.particle.to(device), self.empty.to(device), self.other.to(device))

    @staticmethod
    def cat(parts: "Sequence[Content]") -> "Content":
        return Content(*(torch.cat([getattr(p, name) for p in parts]) for name in ("particle", "empty", "other")))

    def __getitem__(self, rows: Tensor) -> "Content":
        return Content(self.particle[rows], self.empty[rows], self.other[rows])


@dataclass(frozen=True)
class ContentTest:
    """The particle in the best of many poses, against the empty image and an image of something else.

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

    def content(self, shells: ShellPower, log_sum: Tensor | None = None) -> Content:
        """Probabilities of the three hypotheses for each of N images, by expectation-maximisation.

        The shares of the three are found, and the residual spectrum of particles: the map's own error, and what the noise
        model lacks. With it an image of the particle is noise of variance ``1 + e`` about its projection. Something else is
        noise of variance ``1 + a S`` about nothing, or ``1 + e + a S`` about the best projection, which it resembles; S is the
        spectrum of the images' signal and the amplitude a unknown (:data:`AMPLITUDES`, each as likely as the others).

        Parameters
        ----------
        shells : inside the band of the search.
        log_sum : see :meth:`log_odds`.
        """
        n = len(shells.power)
        over_empty = self.log_odds(shells.gain, log_sum).double()
        filled = over_empty > 0
        if n < LEAST_SHOWN or filled.sum() < LEAST_SHOWN:
            return Content.of_particles(n, shells.power)
        likelihoods = _Likelihoods.of(shells, self.independent, filled)
        weight = _best_fitting(shells.residual, filled)
        excess = (weight * shells.residual).sum(0) / (weight.sum() * likelihoods.count) - 1
        share = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64, device=over_empty.device)
        for _ in range(ITERATIONS):
            against_other = likelihoods.against_other(over_empty, excess, weight[:, 0])
            log_odds = torch.stack([torch.zeros_like(over_empty), -over_empty, -against_other], 1) + share.log()
            probability = torch.softmax(log_odds, 1)
            before, share = share, probability.mean(0).clamp(min=1 / (2 * n))
            share = share / share.sum()
            weight = probability[:, :1].to(shells.residual)
            excess = (weight * shells.residual).sum(0) / (weight.sum() * likelihoods.count).clamp(min=1e-6) - 1
            if (share - before).abs().max() < TOLERANCE:
                break
        particle, empty, other = probability.to(shells.power.dtype).T
        if particle.sum() < LEAST_SHOWN or particle.sum() < LEAST_SHARE * filled.sum():
            return Content.of_particles(n, shells.power)
        return Content(particle, empty, other)


def _best_fitting(residual: Tensor, filled: Tensor) -> Tensor:
    """(N, 1) 1 for the images with the smallest residuals (N, S) of those that are not empty: where the maximisation begins.

    From all images it would find that particles have the residuals of all.
    """
    left = torch.where(filled, residual.sum(1), torch.inf)
    least = left.kthvalue(max(1, round(BEST_FITTING * int(filled.sum())))).values
    return (left <= least).to(residual)[:, None]


@dataclass(frozen=True)
class _Likelihoods:
    """Log-likelihoods of N images, as if they were Gaussian numbers of some variance in every shell.

    ``nothing`` (N,) is that of something else which the map does not resemble at all, less that of the empty image.
    """

    shells: ShellPower
    independent: float
    count: Tensor
    amplitudes: Tensor
    nothing: Tensor

    @staticmethod
    def of(shells: ShellPower, independent: float, filled: Tensor) -> "_Likelihoods":
        count = shells.n_coefficients.clamp(min=1e-6)
        signal = ((shells.power[filled] / count).median(0).values - 1).clamp(min=0.02)
        amplitudes = AMPLITUDES.to(signal)[:, None] * signal
        found = _Likelihoods(shells, independent, count, amplitudes, shells.gain)
        zero = torch.zeros_like(signal)
        nothing = [found._gaussian(shells.power, zero + a) for a in amplitudes]
        return _Likelihoods(shells, independent, count, amplitudes, torch.stack(nothing).logsumexp(0) - math.log(len(nothing)))

    def _gaussian(self, left: Tensor, excess: Tensor) -> Tensor:
        """Log-likelihood (N,) of ``left`` (N, S) with a variance of ``1 + excess`` (S,), less that of the empty image."""
        variance = 1 + excess
        each = self.shells.power - left / variance - self.shells.n_coefficients * variance.log()
        return self.independent * each.sum(1).double()

    def against_other(self, over_empty: Tensor, excess: Tensor, weight: Tensor) -> Tensor:
        """Log-likelihood (N,) of the particle less that of something else, the residual spectrum being ``1 + excess`` (S,)."""
        excess = excess.clamp(min=LEAST_EXCESS) * (self.shells.n_coefficients > 0)
        residual = self.shells.residual
        # all poses tried, and not the best alone, speak for the particle
        of_poses = over_empty - self.independent * self.shells.gain
        particle = self._gaussian(residual, excess)
        resembling = torch.stack([self._gaussian(residual, excess + a) for a in self.amplitudes])
        resembling = resembling.logsumexp(0) - math.log(len(self.amplitudes))
        other = torch.logaddexp(resembling + of_poses, self.nothing) - math.log(2)
        return (particle + of_poses - other) / self._overdispersion(excess, weight)

    def _overdispersion(self, excess: Tensor, weight: Tensor) -> float:
        """How much more the residuals of particles, by ``weight`` (N,), scatter than those of one noise: ice and dose differ."""
        expected = self.count * (1 + excess)
        z = ((self.shells.residual - expected) / (1 + excess)).sum(1) * (self.independent / self.count.sum()) ** 0.5
        total = weight.sum().clamp(min=1e-6)
        mean = (weight * z).sum() / total
        return max(1.0, ((weight * (z - mean).square()).sum() / total).item())
