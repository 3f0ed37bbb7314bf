"""Noise: SNR in decibel, power per Fourier shell, background mean and deviation."""

import torch
from torch import Tensor

from ace_em.maths.fourier import HalfPlane, radius_grid, shell_sums


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
