"""The damped step of Levenberg-Marquardt, for many small least-squares problems at once."""

import torch
from torch import Tensor


def damped_step(normal: Tensor, gradient: Tensor, damping: Tensor, floor: Tensor | float = 0.0) -> Tensor:
    """Solve ``(N + D) x = g`` with the ridge ``D = damping * diag(N) + floor``.

    Marquardt's scaling by the diagonal makes the step independent of the parameters' units.

    Parameters
    ----------
    normal : (..., p, p) normal equations ``J^T J``.
    gradient : (..., p) ``J^T r``.
    damping : (...,) one number per problem.
    floor : (..., 1) or a number, added to the whole diagonal: a parameter that the data leave free has no curvature of its own.

    Returns
    -------
    (..., p) the step.
    """
    diagonal = normal.diagonal(dim1=-2, dim2=-1)
    return torch.linalg.solve(normal + torch.diag_embed(damping[..., None] * diagonal + floor), gradient)
