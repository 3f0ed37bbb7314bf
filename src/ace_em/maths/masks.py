"""Soft masks with a known shape: the disc that images are multiplied by, the ball that maps are kept in."""

import torch
from torch import Tensor

from ace_em.maths.fourier import radius_grid


def soft_disc(box: int, radius_px: float, edge_px: float) -> Tensor:
    """(box, box) 1 inside ``radius_px``, falling to 0 over ``edge_px`` as half a cosine."""
    outside = ((radius_grid(box, 2) - radius_px) / edge_px).clamp(0, 1)
    return 0.5 + 0.5 * torch.cos(torch.pi * outside)


def particle_disc(box: int) -> Tensor:
    """(box, box) the soft disc that particle images are multiplied by: the inscribed circle."""
    edge = max(2.0, box / 20)
    return soft_disc(box, box / 2 - edge, edge)


def disc_share(box: int) -> float:
    """Share of white noise's power inside the particle disc, and so of an image's coefficients that are independent."""
    return particle_disc(box).square().mean().item()


def soft_ball(box: int, radius_px: float) -> Tensor:
    """(box, box, box) 1 inside ``radius_px``, 0 outside, with a logistic edge of about two voxels."""
    return torch.sigmoid((radius_px - radius_grid(box, 3)) * 2)


def ball_radius_px(box: int, diameter_px: float) -> float:
    """Radius of the ball that maps are kept in: 0.8 diameters (room for drift and a wrong diameter), inside the box."""
    return min(box / 2 - 1.5, 0.8 * diameter_px)
