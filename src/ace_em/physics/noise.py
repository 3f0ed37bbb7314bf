"""Noise: SNR in decibel, power per Fourier shell and optics group, background mean and deviation."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ace_em.maths.fourier import radius_grid, shell_sums
from ace_em.maths.half_plane import HalfPlane


def snr_db_to_noise_sd(signal_variance: float, snr_db: float) -> float:
    """Standard deviation of white noise for a power ratio of ``snr_db`` decibel: -10 dB is ten times the signal's variance."""
    return (signal_variance / 10 ** (snr_db / 10)) ** 0.5


def background_mask(box: int, radius_px: float, device: torch.device | None = None) -> Tensor:
    """(box, box) true outside the circle of ``radius_px`` around the centre."""
    return radius_grid(box, 2, device) > radius_px


def background_mean_sd(images: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (b,) of images (b, n, n) over the ``background`` pixels (n, n)."""
    pixels = images[:, background]
    return pixels.mean(1), pixels.std(1)


def noise_power(images: Tensor, background: Tensor, half_plane: HalfPlane) -> Tensor:
    """Noise power per shell ``E |F(k)|^2`` of whole images, estimated from their background.

    The background's own spectrum, smeared by the shape of the background, is scaled up by the share of the image that it
    covers. Valid for noise whose spectrum is smooth on the scale of a shell or two.

    Parameters
    ----------
    images : (b, n, n), background mean near 0.
    background : (n, n) true where there is no particle.
    half_plane : the coefficients; ``half_plane.box`` is ``n``.

    Returns
    -------
    (n // 2 + 1,) power of shells 0 ... n // 2.
    """
    masked = images * background
    masked = masked - background * (masked.sum((-1, -2), keepdim=True) / background.sum())
    power = half_plane.from_image(masked).abs().square().mean(0) / background.float().mean()
    n_shells = half_plane.box // 2 + 1
    count = shell_sums(torch.ones_like(power), half_plane.shell, n_shells)
    mean = shell_sums(power, half_plane.shell, n_shells) / count.clamp(min=1)
    # the zero shell has lost its mean; the noise of its neighbour stands in
    mean[0] = mean[1]
    return torch.where(count > 0, mean, mean[count > 0][-1])


@dataclass(frozen=True)
class NoiseModel:
    """Noise power of normalised images inside the particle disc, shell by shell, for each of G groups of images.

    Shells count cycles per box, so that one model serves every working box.

    Attributes
    ----------
    whitening_power : (G, n_shells) power that images are whitened by: that of the noise, or a floor above it.
    variance : (G, n_shells) noise power left by the whitening: 1, or less where the floor is above the noise.
    """

    whitening_power: Tensor
    variance: Tensor

    @staticmethod
    def of(power: Tensor, floor: float, share: float) -> "NoiseModel":
        """From the noise power of whole images (G, n_shells).

        Parameters
        ----------
        floor : least power that images are whitened by. In noise-free images the CTF's ringing outside the particle would
            otherwise count as noise.
        share : of the power that the particle disc leaves in every shell.
        """
        whitening = power.clamp(min=floor)
        return NoiseModel(whitening * share, power / whitening)

    @property
    def floored(self) -> Tensor:
        """(G, n_shells) true where the floor, not the noise, is what images are whitened by."""
        return self.variance < 0.99

    def scaled(self, factor: Tensor) -> "NoiseModel":
        """With the noise power of the first m shells multiplied by ``factor`` (G, m); the others stay."""
        whitening = self.whitening_power.clone()
        whitening[:, : factor.shape[1]] *= factor
        return replace(self, whitening_power=whitening)

    def pooled(self, weight: Tensor) -> "NoiseModel":
        """One group in place of all: their mean by ``weight`` (G,), the number of images of each."""
        share = (weight / weight.sum())[:, None].to(self.variance)
        whitening = (share * self.whitening_power).sum(0, keepdim=True)
        return NoiseModel(whitening, (share * self.whitening_power * self.variance).sum(0, keepdim=True) / whitening)

    def to(self, device: torch.device) -> "NoiseModel":
        return NoiseModel(self.whitening_power.to(device), self.variance.to(device))
