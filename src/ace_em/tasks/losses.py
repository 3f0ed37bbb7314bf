"""Image, shift and pose losses, as pure functions."""

import torch
from torch import Tensor

from ace_em.maths.rotations import squared_frobenius


def image_residual(image_ft: Tensor, predicted_ft: Tensor) -> Tensor:
    """``||Y - Y_pred||^2`` (...) of half-planes (..., n): by Parseval the squared error of eq. 5 up to a constant factor."""
    difference = image_ft - predicted_ft
    return torch.view_as_real(difference).square().sum((-1, -2))


def image_loss(residual: Tensor, power: Tensor | float) -> Tensor:
    """Eq. 5, 6 and 7: per image the smallest residual of its copies, the mean of that over the batch.

    Parameters
    ----------
    residual : (copies, b). One copy is eq. 5; the image and its 180-degree turn are eq. 6; two random turns and mirrors are
        eq. 7.
    power : the images' mean power over the whole half-plane, which the loss is relative to.
    """
    return residual.amin(0).mean() / power


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
