"""Noise: SNR in decibels, noise power per Fourier shell and optics group, mean and standard deviation of the background."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ace_em.maths.fourier import radius_grid, shell_sums
from ace_em.maths.half_plane import HalfPlane


def snr_db_to_noise_sd(signal_variance: float, snr_db: float) -> float:
    """Standard deviation of white noise for an SNR of ``snr_db`` decibels; at -10 dB its variance is ten times the signal's."""
    return (signal_variance / 10 ** (snr_db / 10)) ** 0.5


def background_mask(box: int, radius_px: float, device: torch.device | None = None) -> Tensor:
    """Mask (box, box), true outside a centred circle of radius ``radius_px``."""
    return radius_grid(box, 2, device) > radius_px


def background_mean_sd(images: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each (b,), of images (b, n, n) over the ``background`` pixels (n, n)."""
    pixels = images[:, background]
    return pixels.mean(1), pixels.std(1)


def noise_power(images: Tensor, background: Tensor, half_plane: HalfPlane) -> Tensor:
    """Noise power ``E |F(k)|^2`` per shell of unmasked images, estimated from their background.

    The power spectrum of the masked background is divided by the fraction of the image that the background covers. Masking
    smears the spectrum, so the estimate is valid for spectra that are smooth over a shell or two.

    Parameters
    ----------
    images : (b, n, n), background mean near 0.
    background : (n, n) true where there is no particle.
    half_plane : Fourier coefficients to use; ``half_plane.box`` is ``n``.

    Returns
    -------
    (n // 2 + 1,) noise power of shells 0 ... n // 2.
    """
    masked = images * background
    masked = masked - background * (masked.sum((-1, -2), keepdim=True) / background.sum())
    power = half_plane.from_image(masked).abs().square().mean(0) / background.float().mean()
    n_shells = half_plane.box // 2 + 1
    count = shell_sums(torch.ones_like(power), half_plane.shell, n_shells)
    mean = shell_sums(power, half_plane.shell, n_shells) / count.clamp(min=1)
    # the background mean was subtracted, so shell 0 takes the noise power of shell 1
    mean[0] = mean[1]
    return torch.where(count > 0, mean, mean[count > 0][-1])


@dataclass(frozen=True)
class NoiseModel:
    """Noise power per shell of normalised, masked images, for each of G groups of images.

    Shells are in cycles per box, so that one model applies to all working boxes.

    Attributes
    ----------
    whitening_power : (G, n_shells) power by which images are whitened: the noise power or the floor, whichever is larger.
    variance : (G, n_shells) noise power after whitening: 1, or less where the floor exceeds the noise power.
    """

    whitening_power: Tensor
    variance: Tensor

    @staticmethod
    def of(power: Tensor, floor: float, share: float) -> "NoiseModel":
        """Noise model from the noise power (G, n_shells) of unmasked images.

        Parameters
        ----------
        floor : minimum whitening power. Without it, the CTF ripples outside the particle would count as noise in noise-free
            images.
        share : fraction of the noise power that remains after masking with the particle disc.
        """
        whitening = power.clamp(min=floor)
        return NoiseModel(whitening * share, power / whitening)

    @property
    def floored(self) -> Tensor:
        """(G, n_shells) true where images are whitened by the floor and not by the noise power."""
        return self.variance < 0.99

    def scaled(self, factor: Tensor) -> "NoiseModel":
        """The model with the noise power of the first m shells multiplied by ``factor`` (G, m)."""
        whitening = self.whitening_power.clone()
        whitening[:, : factor.shape[1]] *= factor
        return replace(self, whitening_power=whitening)

    def pooled(self, weight: Tensor) -> "NoiseModel":
        """A single group with the mean noise power of all groups, weighted by ``weight`` (G,), the images per group."""
        fraction = (weight / weight.sum())[:, None].to(self.variance)
        whitening = (fraction * self.whitening_power).sum(0, keepdim=True)
        return NoiseModel(whitening, (fraction * self.whitening_power * self.variance).sum(0, keepdim=True) / whitening)

    def to(self, device: torch.device) -> "NoiseModel":
        return NoiseModel(self.whitening_power.to(device), self.variance.to(device))
