"""How much of the images' signal a map accounts for, and how much noise lets the right map account for."""

import math

from torch import Tensor


def explained_share(power: Tensor, residual: Tensor, noise: Tensor) -> float:
    """``(power - residual) / (power - noise)``, each averaged over the images.

    Parameters
    ----------
    power, residual, noise : (N,) squared norms of the images, of their residuals, and the expected noise power.
    """
    mean = power.mean()
    return ((mean - residual.mean()) / (mean - noise.mean()).clamp(min=1e-6)).item()


def expected_share(power: Tensor, noise: Tensor, n_coefficients: int, band: float, n_images: int) -> float:
    """Least fraction of the signal power of held-out images that a correct map from ``n_images`` other images explains.

    The map itself is noisy. About ``n_images / 2r`` images contribute to a coefficient of shell r, so a slice of the map
    carries ``2 pi band^3 / 3 n_images`` times the noise of one image coefficient, summed over the half-plane. The bound allows
    twice that, plus a 3 % error of the noise power.

    Parameters
    ----------
    power : (N,) squared norms of the held-out images, inside the band.
    noise : (N,) expected squared norms of their noise.
    n_coefficients : coefficients per image inside the band.
    """
    allowed = 2 * (2 * math.pi * band**3 / (3 * n_images)) * noise.mean() / n_coefficients + 0.03 * noise.mean()
    return max(0.0, (1 - allowed / (power.mean() - noise.mean()).clamp(min=1e-6)).item())
