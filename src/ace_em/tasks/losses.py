"""Image, shift and pose losses, as pure functions."""

import torch
from torch import Tensor

from ace_em.maths.rotations import squared_frobenius


def image_residual(image_ft: Tensor, predicted_ft: Tensor) -> Tensor:
    """``||Y - Y_pred||^2`` (...) of half-planes (..., n).

    By Parseval's theorem this is the squared error of eq. 5 up to a constant factor.
    """
    difference = image_ft - predicted_ft
    return torch.view_as_real(difference).square().sum((-1, -2))


def image_loss(residual: Tensor, power: Tensor | float) -> Tensor:
    """Image loss of eq. 5, eq. 6 or eq. 7: the minimum over the copies of each image, averaged over the batch.

    Parameters
    ----------
    residual : (copies, b) squared residuals. One copy gives eq. 5; the image and its 180-degree rotation give eq. 6; two random
        rotations and mirrors give eq. 7.
    power : mean squared norm of the images on the full half-plane, by which the loss is divided.
    """
    return residual.amin(0).mean() / power


def shift_loss(shift_frac: Tensor) -> Tensor:
    """Second term of eq. 8: half the mean L1 norm of the shifts (b, 2), in fractions of the box edge."""
    return shift_frac.abs().sum(-1).mean() / 2


def pose_loss(
    rotation: Tensor, shift_frac: Tensor, rotations_predicted: Tensor, shift_frac_predicted: Tensor, spread: float = 0.0
) -> Tensor:
    """L_PIP of eq. 13, extended to M hypotheses.

    Parameters
    ----------
    rotation, shift_frac : (b, 3, 3) and (b, 2) sampled poses, shifts in fractions of the box edge.
    rotations_predicted, shift_frac_predicted : (b, M, 3, 3) and (b, 2) predicted poses.
    spread : weight of the mean error over all hypotheses in the rotation term; the best hypothesis has weight ``1 - spread``.
        It has no effect for M = 1.
    """
    error = squared_frobenius(rotation[:, None], rotations_predicted)
    best = (1 - spread) * error.amin(1) + spread * error.mean(1)
    return best.mean() / 9 + (shift_frac - shift_frac_predicted).abs().sum(-1).mean() / 2
