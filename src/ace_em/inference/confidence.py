"""How probable a pose is, judged against a map that its image is not part of.

An image's own noise is in the map that was made from it, at the pose that it was given: there even an image of nothing fits
better than anywhere else. So every image is searched anew against the map of the other half-set, and its pose compared
with all poses there are, with an empty image, and with the residual that right poses leave.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.config import SearchConfig
from ace_em.data.working_set import WorkingSet, blocks, image_power
from ace_em.maths.blocks import in_blocks
from ace_em.maths.point_group import nearest_copy
from ace_em.maths.rotations import angular_distance_deg
from ace_em.maths.slices import VolumeFT
from ace_em.physics.pose import Pose
from ace_em.refinement.abinitio import expected_share, explained_share
from ace_em.refinement.half_sets import HalfSets, HalfSetState
from ace_em.refinement.pose_refinement import LocalResult, reference_on, refine_poses
from ace_em.refinement.search import PoseGrid, References, SearchResult, SearchSpace, chunks

DOUBT = 0.01
"""Share of images that are expected to show something else than the map, or to be damaged."""


@dataclass(frozen=True)
class Usual:
    """The residuals that right poses leave: median and spread of the ``excess`` of particles that a map was made from."""

    median: float
    spread: float

    @staticmethod
    def of(excess: Tensor) -> "Usual":
        """Median, and the standard deviation that the median absolute deviation of Gaussian numbers stands for."""
        median = excess.median()
        return Usual(median.item(), max(1.4826 * (excess - median).abs().median().item(), 1e-3))


def pose_probability(against: Tensor, excess: Tensor, usual: Usual) -> Tensor:
    """Probability (N,) that poses are right.

    Parameters
    ----------
    against : (N,) log of the likelihood of all other answers together, over that of the pose.
    excess : (N,) residual above what noise leaves, in standard deviations of that. Right poses leave the one that is
        ``usual``; with one that leaves more, the likelihood grows that the image shows something else.
    """
    z = ((excess - usual.median) / usual.spread).clamp(0, 12)
    return 1 / (1 + against.clamp(max=80).exp() + DOUBT * (z.square() / 2).exp())


def residual_excess(residual: Tensor, noise_variance: Tensor, independent: float) -> Tensor:
    """Residuals (N,) above what noise of a variance (n,) leaves, in standard deviations of that."""
    return (residual - noise_variance.sum()) / (noise_variance.square().sum() / independent).sqrt()


@dataclass(frozen=True)
class Evidence:
    """Of N poses.

    Attributes
    ----------
    against, excess : (N,), see :func:`pose_probability`.
    gap : (N,) log-likelihood of the pose less that of the best distinct other one, natural units.
    explained, expected : share of the signal in the particles of one half that the map of the other accounts for, and what
        noise lets the right map account for at least.
    """

    against: Tensor
    excess: Tensor
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
    """What the other half-set's map says of every image's pose.

    Parameters
    ----------
    sets : images brought up to the ``state``.
    space : at their box; searched up to its ``last_band``, symmetric copies left out.
    distinct_deg : poses nearer to each other than this, up to the point group, are one answer.
    on_block : called with the number of images done.
    """
    band, n = space.band(space.config.last_band), len(sets.images)
    grid = space.grid(band, torch.Generator().manual_seed(0))
    found = [torch.empty(n) for _ in range(5)]
    done = 0
    for mine, other in zip(sets.rows, (state.halves.half2, state.halves.half1), strict=True):
        reference = reference_on(sets.device, other)
        for some in blocks(sets.images, mine):
            images = sets.images.rows(some).band(band)
            judged = _judged(reference, images, state.pose[some], grid, space, sets.blank.independent, distinct_deg)
            for of_all, of_some in zip(found, judged, strict=True):
                of_all[some] = of_some
            done += len(some)
            on_block(done)
    against, excess, gap, power, residual = found
    # what shows something else says nothing about the arrangement
    usual = Usual.of(excess[state.shown])
    ordinary = state.shown & (excess < usual.median + 3 * usual.spread)
    noise = sets.images.band(band).noise_variance
    explained = explained_share(power[ordinary], residual[ordinary], noise)
    expected = expected_share(power[ordinary], noise, band, max(1, int(ordinary.sum()) // 2))
    return Evidence(against, excess, gap, explained, expected)


def arrangement_probability(explained: float, expected: float, config: SearchConfig) -> float:
    """How far the poses as a whole may be believed, from what the maps explain and what noise would let them.

    Every image can sit firmly in a wrong arrangement of views, whose map then fits none of them well. 1 within the tolerance
    for a start, 0 where the shortfall is that of a run that has not converged.
    """
    short, width = expected - explained, max(config.shortfall - config.tolerance, 1e-6)
    return min(1.0, max(0.0, (config.shortfall - short) / width))


def _judged(
    reference: VolumeFT,
    images: WorkingSet,
    pose: Pose,
    grid: PoseGrid,
    space: SearchSpace,
    independent: float,
    distinct_deg: float,
) -> tuple[Tensor, ...]:
    """``against``, ``excess``, ``gap``, power and residual of a block of images."""
    steps, power = space.config.local_steps, image_power(images)
    kept = refine_poses(reference, images, pose, steps)
    likelihood = independent * (power - kept.residual)
    # the best of the grid, each at its own maximum, and the grid as it stands for the many that are not tried so closely
    others = _on_grid(reference, images, kept.pose, grid, space, independent, distinct_deg)
    refined = [refine_poses(reference, images, others.pose.column(k), steps) for k in range(others.pose.rotation.shape[1])]
    # minus the residual is the log-likelihood of a whitened image
    rivals = independent * (power[:, None] - distinct_residuals(kept.pose, refined, space.group, distinct_deg))
    # an empty image is as likely before as one that shows the particle in any of the poses
    empty = torch.full_like(likelihood, math.log(len(grid)))
    # the grid has seen the same rivals from further away
    against = torch.logaddexp(torch.maximum(rivals.logsumexp(1), others.log_sum), empty)
    excess = residual_excess(kept.residual, images.noise_variance, independent)
    return against - likelihood, excess, likelihood - rivals.amax(1), power, kept.residual


def distinct_residuals(kept: Pose, answers: Sequence[LocalResult], group: Tensor, distinct_deg: float) -> Tensor:
    """Residuals (N, K) of answers other than the poses (N,) that are kept, infinite for those that are the same one.

    Several ways to one answer count once: an answer near to a better one that counts is left out.
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
    images: WorkingSet,
    kept: Pose,
    grid: PoseGrid,
    space: SearchSpace,
    independent: float,
    distinct_deg: float,
) -> SearchResult:
    """All poses of the grid that are not the kept one; ``log_sum`` counts every shift of every rotation."""
    device, home = reference.device, kept.rotation.device
    # a rotation is within an angle of another when the trace of one's transpose times the other is large
    least_trace = 1 + 2 * math.cos(math.radians(distinct_deg))
    found: SearchResult | None = None
    for chunk in chunks(grid.rotations, images.half_plane):
        references = References.of(reference, images.half_plane, chunk, grid.shifts_px)
        copies = (space.group.to(device)[:, None] @ references.rotations).flatten(2)
        top_k = min(space.config.top_k, len(chunk))

        def score(rows: slice, r: References = references, copies: Tensor = copies, k: int = top_k) -> SearchResult:
            batch, pose = images.rows(rows).to(device), kept[rows].to(device)
            cross, power = r.compare(batch, pose.shift_px, space.config.factors)
            near = (pose.rotation.flatten(1) @ copies.mT).amax(0) >= least_trace
            best_cross, best_shift = cross.max(1)
            top = (best_cross - power).masked_fill_(near, -torch.inf).topk(k, dim=1)
            shift = pose.shift_px[:, None] + r.shifts_px[best_shift.gather(1, top.indices)]
            # sum over shifts about the best one of each rotation, then over rotations
            over_shifts = cross.sub_(best_cross[:, None]).mul_(independent).exp_().sum(1).log_()
            likelihood = (over_shifts + independent * (best_cross - power)).masked_fill_(near, -torch.inf)
            best = Pose(r.rotations[top.indices], shift).to(home)
            return SearchResult(best, top.values.to(home), likelihood.logsumexp(1).to(home))

        best = SearchResult.cat(in_blocks(len(images), references.at_a_time, score))
        found = best if found is None else found.merged(best, space.config.top_k)
    assert found is not None
    return found
