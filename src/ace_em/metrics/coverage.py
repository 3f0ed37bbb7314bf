"""Share of the view sphere that the poses reach (figure 3)."""

import numpy as np
import torch
from torch import Tensor

from ace_em.maths.rotations import healpix_pixel


def view_directions(rotation: Tensor) -> Tensor:
    """(..., 3) viewing directions: the last column of ``R``, the image's z axis in the particle's frame."""
    return rotation[..., :, 2]


N_SIDE = 4
N_VIEWS = 12 * N_SIDE**2
"""HEALPix pixels of the view sphere."""


def view_counts(rotation: Tensor, n_side: int = N_SIDE) -> np.ndarray:
    """Particles per HEALPix pixel (12 n_side^2,) of the viewing direction."""
    return torch.bincount(healpix_pixel(view_directions(rotation), n_side), minlength=12 * n_side**2).numpy()


def coverage(rotation: Tensor, n_side: int = N_SIDE) -> float:
    """Share of HEALPix pixels with at least one particle."""
    return float((view_counts(rotation, n_side) > 0).mean())
