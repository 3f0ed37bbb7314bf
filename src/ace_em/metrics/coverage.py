"""Coverage of the view sphere by the poses (figure 3)."""

import numpy as np
import torch
from torch import Tensor

from ace_em.maths.rotations import healpix_pixel


def view_directions(rotation: Tensor) -> Tensor:
    """Viewing directions (..., 3): the last column of ``R``, which is the z axis of the image in the frame of the particle."""
    return rotation[..., :, 2]


N_SIDE = 4
N_VIEWS = 12 * N_SIDE**2
"""Number of HEALPix pixels of the view sphere."""


def view_counts(rotation: Tensor, n_side: int = N_SIDE) -> np.ndarray:
    """Number of particles per HEALPix pixel of the viewing direction, (12 n_side^2,)."""
    return torch.bincount(healpix_pixel(view_directions(rotation), n_side), minlength=12 * n_side**2).numpy()


def coverage(rotation: Tensor, n_side: int = N_SIDE) -> float:
    """Fraction of HEALPix pixels with at least one particle."""
    return float((view_counts(rotation, n_side) > 0).mean())
