"""Soft masks of fixed shape: the disc for images and the ball for maps."""

import torch
from torch import Tensor

from ace_em.maths.fourier import radius_grid


def soft_disc(box: int, radius_px: float, edge_px: float) -> Tensor:
    """Disc (box, box): 1 inside ``radius_px``, with a raised-cosine edge of width ``edge_px``."""
    outside = ((radius_grid(box, 2) - radius_px) / edge_px).clamp(0, 1)
    return 0.5 + 0.5 * torch.cos(torch.pi * outside)


def particle_disc(box: int) -> Tensor:
    """Soft disc (box, box) that particle images are multiplied by, inscribed in the box."""
    edge = max(2.0, box / 20)
    return soft_disc(box, box / 2 - edge, edge)


def disc_share(box: int) -> float:
    """Fraction of white-noise power that remains after masking with the particle disc.

    It is also the fraction of the Fourier coefficients of a masked image that are independent.
    """
    return particle_disc(box).square().mean().item()


def soft_ball(box: int, radius_px: float) -> Tensor:
    """Ball (box, box, box): 1 inside ``radius_px``, 0 outside, with a logistic edge about two voxels wide."""
    return torch.sigmoid((radius_px - radius_grid(box, 3)) * 2)


def ball_radius_px(box: int, diameter_px: float) -> float:
    """Radius of the ball for maps: 0.8 diameters, to allow for drift and an inaccurate diameter, but inside the box."""
    return min(box / 2 - 1.5, 0.8 * diameter_px)
