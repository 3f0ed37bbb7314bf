"""Pose search: every image against a grid on SO(3) and a grid of shifts, by matrix product.

For whitened images the log-likelihood of a pose is ``2 Re<y, h S> - |h S|^2`` up to a constant. With the effective CTF and the
shift applied to the image instead of the slice, the first term for all images, shifts and orientations is one real matrix
product per block, and the second another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ace_em.config import SearchConfig
from ace_em.data.particle_stack import Batch, ParticleStack
from ace_em.maths.blocks import in_blocks
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.point_group import in_asymmetric_unit
from ace_em.maths.products import Factors, product
from ace_em.maths.rotations import so3_grid
from ace_em.maths.slices import VolumeFT, central_slices
from ace_em.physics.imaging import shift_phase, slice_of_image
from ace_em.physics.pose import Pose
from ace_em.refinement.pose_refinement import LocalResult, refine_candidates, refine_poses, replaced

BLOCK_BYTES = 128 * 2**20
"""Most memory for the scores of a block of images."""
REFERENCE_BYTES = 256 * 2**20
"""And for the references that they are scored against at a time."""
RADIAN_DEG = 57.29578


@dataclass(frozen=True)
class SearchResult:
    """What a grid says of N images.

    Attributes
    ----------
    pose : (N, K, ...) the K best poses of each, best first.
    log_likelihood : (N, K) theirs, less that of an empty image.
    log_sum : (N,) log of the summed likelihoods of all rotations, each at its best shift; a log-likelihood counts as
        ``independent`` times what it is.
    """

    pose: Pose
    log_likelihood: Tensor
    log_sum: Tensor

    @staticmethod
    def cat(parts: "Sequence[SearchResult]") -> "SearchResult":
        likelihood, log_sum = torch.cat([p.log_likelihood for p in parts]), torch.cat([p.log_sum for p in parts])
        return SearchResult(Pose.cat([p.pose for p in parts]), likelihood, log_sum)

    def merged(self, other: "SearchResult", top_k: int) -> "SearchResult":
        """The best ``top_k`` of this and another result for the same images."""
        likelihood = torch.cat([self.log_likelihood, other.log_likelihood], dim=1)
        top = likelihood.topk(min(top_k, likelihood.shape[1]), dim=1)
        rows = torch.arange(len(likelihood))[:, None]
        rotation = torch.cat([self.pose.rotation, other.pose.rotation], dim=1)[rows, top.indices]
        shift = torch.cat([self.pose.shift_px, other.pose.shift_px], dim=1)[rows, top.indices]
        return SearchResult(Pose(rotation, shift), top.values, torch.logaddexp(self.log_sum, other.log_sum))


def shift_grid(max_shift_px: float, step_px: float) -> Tensor:
    """Shifts (t, 2), (y, x), of a square grid inside a circle."""
    n = int(max_shift_px / step_px + 1e-6)
    axis = torch.arange(-n, n + 1) * step_px
    shifts = torch.cartesian_prod(axis, axis)
    return shifts[shifts.norm(dim=-1) <= max_shift_px + 1e-6]


@torch.no_grad()
def search(
    volume_ft: VolumeFT,
    stack: ParticleStack,
    rotations: Tensor,
    shifts_px: Tensor,
    centre_px: Tensor,
    top_k: int = 1,
    on_block: Callable[[int], None] = lambda done: None,
    factors: Factors = "processor",
    independent: float = 1.0,
) -> SearchResult:
    """Score all rotations and shifts for every image.

    A score is a sum over hundreds of coefficients of unit noise. Rounding its factors (:func:`product`) moves it by far less
    than that noise, and the poses kept are judged again in full precision.

    Parameters
    ----------
    volume_ft : the reference, on the device that scores.
    stack : images, already cut to the band of this round.
    rotations : (g, 3, 3).
    shifts_px : (t, 2), added to each image's ``centre_px`` (N, 2).
    top_k : orientations kept per image, each with its best shift.
    on_block : called with the number of images done, once for every lot of references that memory has room for.
    factors : how they are multiplied.
    independent : share of an image's coefficients that are independent of each other, for ``log_sum``.
    """
    kept = None
    for chunk in chunks(rotations, stack.half_plane):
        found = _search_chunk(
            volume_ft, stack, chunk, shifts_px, centre_px, min(top_k, len(chunk)), on_block, factors, independent
        )
        kept = found if kept is None else kept.merged(found, top_k)
    assert kept is not None
    return kept


def chunks(rotations: Tensor, half_plane: HalfPlane) -> Sequence[Tensor]:
    """The rotations (g, 3, 3) in lots whose references memory has room for."""
    return rotations.split(max(1, REFERENCE_BYTES // (12 * len(half_plane))))


def _search_chunk(
    volume_ft: VolumeFT,
    stack: ParticleStack,
    rotations: Tensor,
    shifts_px: Tensor,
    centre_px: Tensor,
    top_k: int,
    on_block: Callable[[int], None],
    factors: Factors,
    independent: float,
) -> SearchResult:
    device, home = volume_ft.device, centre_px.device
    references = References.of(volume_ft, stack.half_plane, rotations, shifts_px)

    def score(rows_of: slice) -> SearchResult:
        batch, centre = stack.batch(rows_of, device), centre_px[rows_of].to(device)
        cross, power = references.compare(batch, centre, factors)
        best_cross, best_shift = cross.max(1)
        likelihood = best_cross - power
        top = likelihood.topk(top_k, dim=1)
        shift = centre[:, None] + references.shifts_px[best_shift.gather(1, top.indices)]
        on_block(rows_of.stop)
        log_sum = (independent * likelihood).logsumexp(1)
        return SearchResult(Pose(references.rotations[top.indices], shift).to(home), top.values.to(home), log_sum.to(home))

    return SearchResult.cat(in_blocks(len(stack), references.at_a_time, score))


@dataclass(frozen=True)
class References:
    """Projections of a map at rotations (g, 3, 3), to be compared with images at shifts (t, 2), on the map's device.

    ``slices`` (2 n, g) are twice their real and imaginary parts, ``powers`` (n, g) their squares.
    """

    half_plane: HalfPlane
    rotations: Tensor
    shifts_px: Tensor
    slices: Tensor
    powers: Tensor

    @staticmethod
    def of(volume_ft: VolumeFT, half_plane: HalfPlane, rotations: Tensor, shifts_px: Tensor) -> "References":
        device = volume_ft.device
        half_plane, rotations, shifts_px = half_plane.to(device), rotations.to(device), shifts_px.to(device)
        slices = central_slices(volume_ft, half_plane, rotations)
        doubled = 2 * torch.view_as_real(slices).flatten(1).T.contiguous()
        return References(half_plane, rotations, shifts_px, doubled, slices.abs().square().T.contiguous())

    @property
    def at_a_time(self) -> int:
        """Images whose scores memory has room for."""
        return BLOCK_BYTES // (4 * len(self.shifts_px) * len(self.rotations))

    def compare(self, batch: Batch, centre_px: Tensor, factors: Factors) -> tuple[Tensor, Tensor]:
        """``2 Re <y, h S>`` (b, t, g) of images at all shifts about their centres (b, 2), and ``|h S|^2`` (b, g)."""
        moved = slice_of_image(batch.image_ft, batch.effective_ctf, self.half_plane, centre_px)
        rows = torch.view_as_real(moved[:, None] * shift_phase(self.half_plane, -self.shifts_px)).flatten(2)
        cross = product(rows.flatten(0, 1), self.slices, factors).view(len(batch), len(self.shifts_px), -1)
        return cross, batch.effective_ctf.square() @ self.powers


@dataclass(frozen=True)
class PoseGrid:
    """Rotations (g, 3, 3), and shifts (t, 2), (y, x) pixels, about an image's last shift.

    ``independent`` is the share of an image's coefficients that are independent of each other (:class:`ContentTest`).
    """

    rotations: Tensor
    shifts_px: Tensor
    independent: float = 1.0

    def __len__(self) -> int:
        """Poses that are tried for every image."""
        return len(self.rotations) * len(self.shifts_px)


@dataclass(frozen=True)
class SearchSpace:
    """Which poses are searched at a working box.

    Attributes
    ----------
    box : working box in pixels.
    diameter_px : of the particle, in its pixels.
    group : (|G|, 3, 3) point group; symmetric copies are left out of the grid.
    independent : share of an image's coefficients that are independent of each other.
    """

    box: int
    diameter_px: float
    config: SearchConfig
    group: Tensor
    independent: float = 1.0

    def band(self, per_diameter: float) -> float:
        """Shell of a band given in cycles per diameter, below Nyquist."""
        return min(per_diameter * self.box / self.diameter_px, self.box / 2 - 1)

    def grid(self, band: float, generator: torch.Generator) -> PoseGrid:
        """Shell r of the particle's diameter needs orientations about 1/r rad apart; the grid as a whole is turned at random."""
        per_diameter = band * self.diameter_px / self.box
        rotations = so3_grid(RADIAN_DEG / per_diameter * self.config.spacing, generator)
        if len(self.group) > 1:
            rotations = rotations[in_asymmetric_unit(rotations, self.group)]
        shifts = shift_grid(self.config.shift * self.diameter_px, self.config.shift_step * self.diameter_px)
        return PoseGrid(rotations, shifts, self.independent)


def find_poses(
    volume_ft: VolumeFT,
    stack: ParticleStack,
    before: Pose,
    grid: PoseGrid,
    config: SearchConfig,
    keep_before: bool = True,
    on_block: Callable[[int], None] = lambda done: None,
) -> LocalResult:
    """The best pose of every image: the ``top_k`` best of the grid, and its pose before, refined.

    Parameters
    ----------
    before : (N,) poses; their shifts centre the grid's.
    keep_before : whether these are candidates too; otherwise only the grid is.
    """
    settings = config.top_k, on_block, config.factors, grid.independent
    found = search(volume_ft, stack, grid.rotations, grid.shifts_px, before.shift_px, *settings)
    best = refine_candidates(volume_ft, stack, found.pose, config.local_steps, before if keep_before else None)
    return replace(best, log_sum=found.log_sum)


def find_or_follow_poses(
    volume_ft: VolumeFT,
    stack: ParticleStack,
    before: Pose,
    settled: Tensor,
    grid: PoseGrid,
    config: SearchConfig,
    on_block: Callable[[int], None] = lambda done: None,
) -> LocalResult:
    """Refine poses that are ``settled`` (N,) bool where they are; search those of the other images exhaustively."""
    if not settled.any():
        return find_poses(volume_ft, stack, before, grid, config, True, on_block)
    result = refine_poses(volume_ft, stack, before, config.local_steps)
    if settled.all():
        return result
    found = find_poses(volume_ft, stack.subset(~settled), before[~settled], grid, config, True, on_block)
    return replaced(result, ~settled, found)
