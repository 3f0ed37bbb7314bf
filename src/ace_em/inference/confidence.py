"""Probability of a pose, computed with a map that its image did not contribute to.

A map contains the noise of its own images at their assigned poses, so that even an image of pure noise fits best there. Every
image is therefore searched again against the map of the other half-set. Its pose is compared with all other poses, with an empty
image, and with the residuals of correct poses.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.config import SearchConfig
from ace_em.data.particle_stack import ParticleStack
from ace_em.maths.blocks import in_blocks
from ace_em.maths.point_group import nearest_copy
from ace_em.maths.rotations import angular_distance_deg
from ace_em.maths.slices import VolumeFT
from ace_em.physics.pose import Pose
from ace_em.refinement.explained import expected_share, explained_share
from ace_em.refinement.half_sets import HalfSets, HalfSetState
from ace_em.refinement.pose_refinement import LocalResult, reference_on, refine_poses
from ace_em.refinement.search import PoseGrid, References, SearchResult, SearchSpace, chunks

PRIOR_OF_OUTLIER = 0.01
"""Prior probability that an image shows something other than the map, or is damaged."""


@dataclass(frozen=True)
class ResidualBaseline:
    """Median and spread of the residual z-scores of the particles in a map, taken as those of correct poses."""

    median: float
    spread: float

    @staticmethod
    def of(residual_z: Tensor) -> "ResidualBaseline":
        """Median, and standard deviation estimated from the median absolute deviation (Gaussian)."""
        median = residual_z.median()
        return ResidualBaseline(median.item(), max(1.4826 * (residual_z - median).abs().median().item(), 1e-3))


def pose_probability(log_odds_against: Tensor, residual_z: Tensor, baseline: ResidualBaseline) -> Tensor:
    """Probability (N,) that poses are correct.

    Parameters
    ----------
    log_odds_against : (N,) log of the ratio of the summed likelihood of all competing poses to that of the pose.
    residual_z : (N,) see :func:`residual_z`. Values far above the ``baseline`` of correct poses indicate an image of something
        else.
    """
    z = ((residual_z - baseline.median) / baseline.spread).clamp(0, 12)
    return 1 / (1 + log_odds_against.clamp(max=80).exp() + PRIOR_OF_OUTLIER * (z.square() / 2).exp())


def residual_z(residual: Tensor, stack: ParticleStack, independent: float) -> Tensor:
    """z-scores (N,) of residuals under noise alone."""
    return (residual - stack.noise_power()) / stack.noise_power_sd(independent)


@dataclass(frozen=True)
class Evidence:
    """Evidence for and against N poses.

    Attributes
    ----------
    log_odds_against, residual_z : (N,), see :func:`pose_probability`.
    gap : (N,) log-likelihood of the pose minus that of the best distinct other pose, in nats.
    explained, expected : share of the signal in one half-set that the map of the other explains, and the least share that the
        correct map explains at this noise level.
    """

    log_odds_against: Tensor
    residual_z: Tensor
    gap: Tensor
    explained: float
    expected: float


def evidence(
    sets: HalfSets,
    state: HalfSetState,
    space: SearchSpace,
    distinct_deg: float,
    on_block: Callable[[int], None] = lambda done: None,
) -> Evidence:
    """Evidence for the pose of every image from the map of the other half-set.

    Parameters
    ----------
    space : search space at the box of the sets; searched up to its ``last_band`` in one asymmetric unit.
    distinct_deg : poses closer than this, up to the point group, count as one.
    on_block : called with the number of images done.
    """
    band, n = space.band(space.config.last_band), len(sets.stack)
    grid = space.grid(band, torch.Generator().manual_seed(0))
    stack = sets.stack_of(state).band(band)
    found = [torch.empty(n) for _ in range(5)]
    done = 0
    for mine, other in zip(sets.rows, (state.halves.half2, state.halves.half1), strict=True):
        reference = reference_on(sets.device, other)
        for some in stack.blocks(mine):
            block = stack.subset(some).in_memory()
            of_block = _evidence_of_block(reference, block, state.pose[some], grid, space, sets.test.independent, distinct_deg)
            for of_all, values in zip(found, of_block, strict=True):
                of_all[some] = values
            done += len(some)
            on_block(done)
    against, z, gap, power, residual = found
    # images of something else are excluded from the explained share
    baseline = ResidualBaseline.of(z[state.shown])
    ordinary = state.shown & (z < baseline.median + 3 * baseline.spread)
    noise = stack.noise_power()[ordinary]
    explained = explained_share(power[ordinary], residual[ordinary], noise)
    expected = expected_share(power[ordinary], noise, len(stack.half_plane), band, max(1, int(ordinary.sum()) // 2))
    return Evidence(against, z, gap, explained, expected)


def arrangement_probability(explained: float, expected: float, config: SearchConfig) -> float:
    """Probability that the map as a whole is correct, from the explained and the expected share of the signal.

    In a wrong map every image can have a clear best pose, but none fits well. The probability is 1 within ``config.tolerance``
    and falls to 0 at ``config.shortfall``, where a run counts as not converged.
    """
    short, width = expected - explained, max(config.shortfall - config.tolerance, 1e-6)
    return min(1.0, max(0.0, (config.shortfall - short) / width))


def _evidence_of_block(
    reference: VolumeFT,
    stack: ParticleStack,
    pose: Pose,
    grid: PoseGrid,
    space: SearchSpace,
    independent: float,
    distinct_deg: float,
) -> tuple[Tensor, ...]:
    """Log odds against, residual z, gap, power and residual (N,) of a block of images."""
    steps, power = space.config.local_steps, stack.power()
    kept = refine_poses(reference, stack, pose, steps)
    likelihood = independent * (power - kept.residual)
    # the best grid poses, each refined to its maximum; the sum over the grid covers the poses that are not refined
    others = _on_grid(reference, stack, kept.pose, grid, space, independent, distinct_deg)
    refined = [refine_poses(reference, stack, others.pose.column(k), steps) for k in range(others.pose.rotation.shape[1])]
    # the log-likelihood of a whitened image is minus its residual
    competing = independent * (power[:, None] - distinct_residuals(kept.pose, refined, space.group, distinct_deg))
    # prior: an empty image is as probable as an image of the particle
    empty = torch.full_like(likelihood, math.log(len(grid)))
    # the maximum, because the same competitors, before refinement, are in the sum over the grid
    against = torch.logaddexp(torch.maximum(competing.logsumexp(1), others.log_sum), empty)
    z = residual_z(kept.residual, stack, independent)
    return against - likelihood, z, likelihood - competing.amax(1), power, kept.residual


def distinct_residuals(kept: Pose, answers: Sequence[LocalResult], group: Tensor, distinct_deg: float) -> Tensor:
    """Residuals (N, K) of competing poses; infinite for poses closer than ``distinct_deg`` to the pose (N,) that is kept.

    Of competing poses close to each other only the best counts.
    """
    residual = torch.stack([a.residual for a in answers], 1)
    rotation = torch.stack([a.pose.rotation for a in answers], 1)
    rows, found = torch.arange(len(residual)), torch.full_like(residual, torch.inf)
    counted = [(kept.rotation, torch.ones(len(rows), dtype=torch.bool))]
    for k in residual.argsort(1).T:
        mine = rotation[rows, k]
        near = [(angle_deg(mine, other, group) <= distinct_deg) & counts for other, counts in counted]
        distinct = ~torch.stack(near).any(0)
        found[rows, k] = torch.where(distinct, residual[rows, k], torch.inf)
        counted.append((mine, distinct))
    return found


def angle_deg(rotation: Tensor, to: Tensor, group: Tensor) -> Tensor:
    """Angle (N,) in degrees between rotations up to the point group."""
    return angular_distance_deg(nearest_copy(rotation, to, group), to)


def _on_grid(
    reference: VolumeFT,
    stack: ParticleStack,
    kept: Pose,
    grid: PoseGrid,
    space: SearchSpace,
    independent: float,
    distinct_deg: float,
) -> SearchResult:
    """Search of the grid without the poses near the kept one; ``log_sum`` is over all shifts of all rotations."""
    device, home = reference.device, kept.rotation.device
    # rotations A and B are within an angle of each other if trace(A^T B) >= 1 + 2 cos(angle)
    least_trace = 1 + 2 * math.cos(math.radians(distinct_deg))
    found: SearchResult | None = None
    for chunk in chunks(grid.rotations, stack.half_plane):
        references = References.of(reference, stack.half_plane, chunk, grid.shifts_px)
        copies = (space.group.to(device)[:, None] @ references.rotations).flatten(2)
        top_k = min(space.config.top_k, len(chunk))

        def score(rows: slice, r: References = references, copies: Tensor = copies, k: int = top_k) -> SearchResult:
            batch, pose = stack.batch(rows, device), kept[rows].to(device)
            cross, power = r.compare(batch, pose.shift_px, space.config.factors)
            near = (pose.rotation.flatten(1) @ copies.mT).amax(0) >= least_trace
            best_cross, best_shift = cross.max(1)
            top = (best_cross - power).masked_fill_(near, -torch.inf).topk(k, dim=1)
            shift = pose.shift_px[:, None] + r.shifts_px[best_shift.gather(1, top.indices)]
            # log-sum over shifts, relative to the best shift of each rotation, then over rotations
            over_shifts = cross.sub_(best_cross[:, None]).mul_(independent).exp_().sum(1).log_()
            likelihood = (over_shifts + independent * (best_cross - power)).masked_fill_(near, -torch.inf)
            best = Pose(r.rotations[top.indices], shift).to(home)
            return SearchResult(best, top.values.to(home), likelihood.logsumexp(1).to(home))

        best = SearchResult.cat(in_blocks(len(stack), references.at_a_time, score))
        found = best if found is None else found.merged(best, space.config.top_k)
    assert found is not None
    return found
