"""How much of the images' signal a map accounts for, and how much noise lets the right map account for."""

import math

from torch import Tensor


def explained_share(power: Tensor, residual: Tensor, noise: Tensor) -> float:
    """``(power - residual) / (power - noise)``: means over images' squared norms, residuals and noise power, (N,) each."""
    mean = power.mean()
    return ((mean - residual.mean()) / (mean - noise.mean()).clamp(min=1e-6)).item()


def expected_share(power: Tensor, noise: Tensor, n_coefficients: int, band: float, n_images: int) -> float:
    """Share of held-out images' power above the noise that the right map, made from ``n_images`` others, explains at least.

    Such a map has noise of its own: a coefficient of shell r is seen by ``n_images / 2r`` images, which leaves
    ``2 pi band^3 / 3 n_images`` times the noise of one coefficient in an image's half-plane. Twice that is allowed, and an
    error of 3 % in the noise power.

    Parameters
    ----------
    power : (N,) squared norms of the held-out images, inside the band.
    noise : (N,) expected squared norms of their noise.
    n_coefficients : of an image, inside the band.
    """
    allowed = 2 * (2 * math.pi * band**3 / (3 * n_images)) * noise.mean() / n_coefficients + 0.03 * noise.mean()
    return max(0.0, (1 - allowed / (power.mean() - noise.mean()).clamp(min=1e-6)).item())
