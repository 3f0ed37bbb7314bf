"""Image, symmetric, shift and pose losses, as pure functions."""

import torch
from torch import Tensor

from ace_em.maths.rotations import squared_frobenius


def image_residual(image_ft: Tensor, predicted_ft: Tensor) -> Tensor:
    """``||Y - Y_pred||^2`` (...) of half-planes (..., n): by Parseval the squared error of eq. 5 up to a constant factor."""
    difference = image_ft - predicted_ft
    return torch.view_as_real(difference).square().sum((-1, -2))


def image_loss(residual: Tensor, power: Tensor | float) -> Tensor:
    """Eq. 5: mean over the batch of residuals (b,), relative to the images' mean power over the whole half-plane."""
    return residual.mean() / power


def symmetric_loss(residual: Tensor, residual_turned: Tensor, power: Tensor | float) -> Tensor:
    """Eq. 6: per image the smaller residual of the image and of its 180-degree turn, both (b,)."""
    return torch.minimum(residual, residual_turned).mean() / power


def shift_loss(shift_frac: Tensor) -> Tensor:
    """Second term of eq. 8: half the mean L1 norm of shifts (b, 2) as fractions of the box edge."""
    return shift_frac.abs().sum(-1).mean() / 2


def pose_loss(
    rotation: Tensor, shift_frac: Tensor, rotations_predicted: Tensor, shift_frac_predicted: Tensor, spread: float = 0.0
) -> Tensor:
    """Eq. 13 with M hypotheses.

    Parameters
    ----------
    rotation, shift_frac : (b, 3, 3), (b, 2) drawn poses.
    rotations_predicted, shift_frac_predicted : (b, M, 3, 3), (b, 2).
    spread : share of the rotation term that all hypotheses pay; the best one pays the rest. With M = 1 it has no effect.
    """
    error = squared_frobenius(rotation[:, None], rotations_predicted)
    best = (1 - spread) * error.amin(1) + spread * error.mean(1)
    return best.mean() / 9 + (shift_frac - shift_frac_predicted).abs().sum(-1).mean() / 2
