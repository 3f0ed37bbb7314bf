"""Exhaustive pose search over a grid on SO(3) and a grid of in-plane shifts, by matrix products.

For whitened images the log-likelihood of a pose is ``2 Re<y, h S> - |h S|^2`` up to a constant. With the effective CTF and the
shift applied to the image instead of the slice, the first term for all images, shifts and orientations of a block is one real
matrix product, and the second term is another.
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
from ace_em.refinement.pose_refinement import ANY_SHIFT, LocalResult, refine_candidates, refine_poses, replaced
from ace_em.refinement.posterior import Posterior
from ace_em.refinement.shift_prior import ShiftPrior

BLOCK_BYTES = 128 * 2**20
"""Maximum memory for the scores of a block of images."""
REFERENCE_BYTES = 256 * 2**20
"""Maximum memory for the reference projections held at a time."""
RADIAN_DEG = 57.29578


@dataclass(frozen=True)
class SearchResult:
    """Result of a grid search of N images.

    Attributes
    ----------
    pose : (N, K) the K best poses of each image, best first.
    log_likelihood : (N, K) log-likelihoods of these poses, relative to that of a blank image, with the prior of the shifts.
    log_sum : (N,) log of the likelihood summed over all rotations, each at its best shift, with log-likelihoods scaled by the
        fraction of independent coefficients (:class:`ContentTest`).
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
    """Shifts (t, 2), (y, x) in pixels, of a square grid inside a circle of radius ``max_shift_px``."""
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
    prior: ShiftPrior = ANY_SHIFT,
) -> SearchResult:
    """Score all rotations and shifts for every image.

    Each score is a sum over hundreds of coefficients with unit noise. The rounding error of the factors (:func:`product`) is
    far smaller than that noise, and the poses kept are compared again in full precision.

    Parameters
    ----------
    volume_ft : reference, on the device to compute on.
    stack : N images, already cut to the band of this round.
    rotations : (g, 3, 3) rotations to try.
    shifts_px : (t, 2) shifts to try, (y, x) in pixels, relative to ``centre_px``.
    centre_px : (N, 2) centre of the shift grid of each image.
    top_k : orientations kept per image, each with its best shift.
    on_block : called with the number of images scored, starting over for each chunk of references.
    factors : number format of the matrix product.
    independent : fraction of independent coefficients of an image, for ``log_sum``.
    prior : of the shifts.
    """
    merged = None
    for chunk in chunks(rotations, stack.half_plane):
        found = _search_chunk(
            volume_ft, stack, chunk, shifts_px, centre_px, min(top_k, len(chunk)), on_block, factors, independent, prior
        )
        merged = found if merged is None else merged.merged(found, top_k)
    assert merged is not None
    return merged


def chunks(rotations: Tensor, half_plane: HalfPlane) -> Sequence[Tensor]:
    """Split the rotations (g, 3, 3) into chunks whose reference projections fit in ``REFERENCE_BYTES``."""
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
    prior: ShiftPrior,
) -> SearchResult:
    device, home = volume_ft.device, centre_px.device
    references = References.of(volume_ft, stack.half_plane, rotations, shifts_px)

    def score(rows: slice) -> SearchResult:
        batch, centre = stack.batch(rows, device), centre_px[rows].to(device)
        cross, power = references.compare(batch, centre, factors)
        if prior.weight > 0:
            cross -= prior.cost(centre[:, None] + references.shifts_px)[..., None]
        best_cross, best_shift = cross.max(1)
        likelihood = best_cross - power
        top = likelihood.topk(top_k, dim=1)
        shift = centre[:, None] + references.shifts_px[best_shift.gather(1, top.indices)]
        on_block(rows.stop)
        log_sum = (independent * likelihood).logsumexp(1)
        return SearchResult(Pose(references.rotations[top.indices], shift).to(home), top.values.to(home), log_sum.to(home))

    return SearchResult.cat(in_blocks(len(stack), references.at_a_time, score))


@dataclass(frozen=True)
class References:
    """Reference projections of a map, on the device of the map.

    Attributes
    ----------
    half_plane : the n coefficients compared.
    rotations : (g, 3, 3) orientations of the projections.
    shifts_px : (t, 2) shifts to try, (y, x) in pixels.
    slices : (2 n, g) real and imaginary parts of the projections, times 2.
    powers : (n, g) squared moduli.
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
        """Number of images whose scores fit in ``BLOCK_BYTES``."""
        return BLOCK_BYTES // (4 * len(self.shifts_px) * len(self.rotations))

    def compare(self, batch: Batch, centre_px: Tensor, factors: Factors) -> tuple[Tensor, Tensor]:
        """``2 Re<y, h S>`` (b, t, g) of images at all shifts about their centres (b, 2), and ``|h S|^2`` (b, g)."""
        moved = slice_of_image(batch.image_ft, batch.effective_ctf, self.half_plane, centre_px)
        rows = torch.view_as_real(moved[:, None] * shift_phase(self.half_plane, -self.shifts_px)).flatten(2)
        cross = product(rows.flatten(0, 1), self.slices, factors).view(len(batch), len(self.shifts_px), -1)
        return cross, batch.effective_ctf.square() @ self.powers


@dataclass(frozen=True)
class PoseGrid:
    """Poses to search.

    Attributes
    ----------
    rotations : (g, 3, 3) rotations.
    shifts_px : (t, 2) shifts, (y, x) in pixels, relative to the last shift of each image.
    independent : fraction of independent coefficients of an image (:class:`ContentTest`).
    prior : of the shifts.
    group : (g, 3, 3) point group, of which the rotations cover one asymmetric unit.
    """

    rotations: Tensor
    shifts_px: Tensor
    independent: float = 1.0
    prior: ShiftPrior = ANY_SHIFT
    group: Tensor = torch.eye(3)[None]

    def __len__(self) -> int:
        """Number of poses tried for every image."""
        return len(self.rotations) * len(self.shifts_px)


@dataclass(frozen=True)
class SearchSpace:
    """The space of poses to search at a working box.

    Attributes
    ----------
    box : working box in pixels.
    diameter_px : particle diameter in pixels of the working box.
    group : (|G|, 3, 3) point group; the grid covers one asymmetric unit.
    independent : fraction of independent coefficients of an image (:class:`ContentTest`).
    """

    box: int
    diameter_px: float
    config: SearchConfig
    group: Tensor
    independent: float = 1.0

    def band(self, per_diameter: float) -> float:
        """Convert a band from cycles per particle diameter to shells, limited to below Nyquist."""
        return min(per_diameter * self.box / self.diameter_px, self.box / 2 - 1)

    def grid(self, band: float, generator: torch.Generator) -> PoseGrid:
        """Randomly rotated pose grid for a band (in shells).

        At r cycles per particle diameter the orientations must be about 1/r radian apart.
        """
        per_diameter = band * self.diameter_px / self.box
        rotations = so3_grid(RADIAN_DEG / per_diameter * self.config.spacing, generator)
        if len(self.group) > 1:
            rotations = rotations[in_asymmetric_unit(rotations, self.group)]
        shifts = shift_grid(self.config.shift * self.diameter_px, self.config.shift_step * self.diameter_px)
        return PoseGrid(rotations, shifts, self.independent, group=self.group)


def find_poses(
    volume_ft: VolumeFT,
    stack: ParticleStack,
    before: Pose,
    grid: PoseGrid,
    config: SearchConfig,
    keep_before: bool = True,
    on_block: Callable[[int], None] = lambda done: None,
    recentred: bool = False,
) -> LocalResult:
    """The best poses of every image, from local refinement of the ``top_k`` best grid poses and of the earlier pose.

    Parameters
    ----------
    before : (N,) earlier poses. Their shifts are the centres of the shift grid.
    keep_before : whether the earlier poses are candidates too.
    recentred : centre the shift grids on the centre of the prior instead, in case that the earlier shifts are far off.
    """
    centre = grid.prior.centre_px.expand_as(before.shift_px) if recentred else before.shift_px
    settings = config.top_k, on_block, config.factors, grid.independent, grid.prior
    found = search(volume_ft, stack, grid.rotations, grid.shifts_px, centre, *settings)
    tried = refine_candidates(volume_ft, stack, found.pose, config.local_steps, before if keep_before else None, grid.prior)
    # relative to a blank image, as is the sum over the grid
    log_likelihood = grid.independent * (stack.power()[:, None] - tried.cost)
    posterior = Posterior.of(tried.pose, log_likelihood, found.log_sum, grid.group)
    return replace(tried.best, log_sum=found.log_sum, posterior=posterior)


def find_or_follow_poses(
    volume_ft: VolumeFT,
    stack: ParticleStack,
    before: Pose,
    settled: Tensor,
    grid: PoseGrid,
    config: SearchConfig,
    on_block: Callable[[int], None] = lambda done: None,
    recentred: bool = False,
) -> LocalResult:
    """Refine the poses of ``settled`` images, (N,) bool, locally; search those of the other images exhaustively."""
    if not settled.any():
        return find_poses(volume_ft, stack, before, grid, config, True, on_block, recentred)
    result = refine_poses(volume_ft, stack, before, config.local_steps, grid.prior)
    if settled.all():
        return result
    found = find_poses(volume_ft, stack.subset(~settled), before[~settled], grid, config, True, on_block, recentred)
    return replaced(result, ~settled, found)
