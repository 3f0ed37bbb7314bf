"""The damped step of the Levenberg-Marquardt method, for a batch of small least-squares problems."""

import torch
from torch import Tensor


def damped_step(normal: Tensor, gradient: Tensor, damping: Tensor, floor: Tensor | float = 0.0) -> Tensor:
    """Solve ``(N + D) x = g`` with the damping ``D = damping * diag(N) + floor``.

    Scaling by the diagonal (Marquardt) makes the step independent of the units of the parameters.

    Parameters
    ----------
    normal : (..., p, p) normal matrix ``J^T J``.
    gradient : (..., p) ``J^T r``.
    damping : (...,) one value per problem.
    floor : (..., 1) or a number, added to the diagonal, since a parameter that the data do not determine has no curvature.

    Returns
    -------
    (..., p) the step.
    """
    diagonal = normal.diagonal(dim1=-2, dim2=-1)
    return torch.linalg.solve(normal + torch.diag_embed(damping[..., None] * diagonal + floor), gradient)
