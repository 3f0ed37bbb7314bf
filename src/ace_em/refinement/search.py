"""Pose search: every image against a grid on SO(3) and a grid of shifts, by matrix product.

For whitened images the log-likelihood of a pose is ``2 Re<y, h S> - |h S|^2`` up to a constant. With the image's transfer
and the shift moved to the image's side, the first term for all images, shifts and orientations is one real matrix product
per block, and the second another.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.data.preprocess import WorkingSet
from ace_em.maths.slices import VolumeFT, central_slices
from ace_em.physics.imaging import shift_phase
from ace_em.physics.pose import Pose

BLOCK_BYTES = 128 * 2**20


@dataclass(frozen=True)
class SearchResult:
    """The ``K`` best poses per image, best first: ``pose`` of shapes (N, K, ...), ``log_likelihood`` (N, K)."""

    pose: Pose
    log_likelihood: Tensor

    @property
    def best(self) -> Pose:
        return Pose(self.pose.rotation[:, 0], self.pose.shift_px[:, 0])

    @property
    def weights(self) -> Tensor:
        """(N, K) posterior probabilities among the kept poses."""
        return torch.softmax(self.log_likelihood, dim=1)


def shift_grid(max_shift_px: float, step_px: float) -> Tensor:
    """Shifts (t, 2), (y, x), of a square grid inside a circle."""
    n = int(max_shift_px / step_px + 1e-6)
    axis = torch.arange(-n, n + 1) * step_px
    shifts = torch.cartesian_prod(axis, axis)
    return shifts[shifts.norm(dim=-1) <= max_shift_px + 1e-6]


@torch.no_grad()
def search(
    volume_ft: VolumeFT,
    images: WorkingSet,
    rotations: Tensor,
    shifts_px: Tensor,
    centre_px: Tensor,
    top_k: int = 1,
    on_block: Callable[[int], None] = lambda done: None,
) -> SearchResult:
    """Score all rotations and shifts for every image.

    Parameters
    ----------
    volume_ft : the reference.
    images : the working set, already cut to the band of this round.
    rotations : (g, 3, 3).
    shifts_px : (t, 2), added to each image's ``centre_px`` (N, 2).
    top_k : orientations kept per image, each with its best shift.
    on_block : called with the number of images done.
    """
    slices = central_slices(volume_ft, images.half_plane, rotations)
    references = 2 * torch.view_as_real(slices).flatten(1).T.contiguous()
    powers = slices.abs().square().T.contiguous()
    phases = shift_phase(images.half_plane, -shifts_px)
    block = max(1, BLOCK_BYTES // (4 * len(shifts_px) * len(rotations)))
    kept = []
    for start in range(0, len(images), block):
        batch, centre = images.rows(slice(start, start + block)), centre_px[start : start + block]
        # conj(h S phase) y summed over k: transfer and shift are moved onto the image
        moved = batch.image_ft * batch.transfer * shift_phase(images.half_plane, -centre)
        rows = torch.view_as_real(moved[:, None] * phases).flatten(2)
        cross = (rows.flatten(0, 1) @ references).view(len(batch), len(shifts_px), -1)
        best_cross, best_shift = cross.max(1)
        score = best_cross - batch.transfer.square() @ powers
        top = score.topk(top_k, dim=1)
        shift = centre[:, None] + shifts_px[best_shift.gather(1, top.indices)]
        kept.append(SearchResult(Pose(rotations[top.indices], shift), top.values))
        on_block(start + len(batch))
    return SearchResult(Pose.cat([k.pose for k in kept]), torch.cat([k.log_likelihood for k in kept]))
