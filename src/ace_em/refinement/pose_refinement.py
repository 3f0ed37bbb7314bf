"""Local refinement of poses: damped Gauss-Newton steps per image on rotation and shift.

Each image has five unknowns: a rotation vector in the frame of the image, and the in-plane shift. The derivative with respect
to the rotation is a finite difference of slices; that with respect to the shift is exact. The 5 x 5 normal equations of a block
of images are solved together (Levenberg-Marquardt: a step that does not lower the residual is rejected and the damping raised).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import roma
import torch
from torch import Tensor

from ace_em.data.particle_stack import Batch, ParticleStack
from ace_em.maths.blocks import in_blocks, where_it_fits
from ace_em.maths.levenberg_marquardt import damped_step
from ace_em.maths.slices import VolumeFT, central_slices, volume_to_ft
from ace_em.physics.imaging import image_of_slice, project
from ace_em.physics.pose import Pose
from ace_em.refinement.posterior import Posterior
from ace_em.refinement.shift_prior import ShiftPrior
from ace_em.tasks.losses import image_residual

BLOCK = 128
"""Images refined together; each needs memory for six slices and five derivatives."""
CLOSE = 30.0
"""A candidate whose cost after one step is larger than that of the best by this much is far too improbable to be refined."""
CONVERGED = 0.02
"""An image has converged once an accepted step changes it by at most this at the edge of the band (see :func:`_edge_move`)."""

ANY_SHIFT = ShiftPrior.none()


@dataclass(frozen=True)
class LocalResult:
    """Refined poses of N images.

    Attributes
    ----------
    pose : (N,) poses.
    residual : (N,) ``|y - h S|^2`` at the refined poses.
    log_sum : (N,) log of the likelihood summed over a grid (:class:`SearchResult`); None if no grid was searched.
    posterior : the best pose and others with their probabilities; None if others were not looked at.
    """

    pose: Pose
    residual: Tensor
    log_sum: Tensor | None = None
    posterior: Posterior | None = None

    @property
    def of_grid(self) -> Tensor:
        """``log_sum``, or minus infinity if no grid was searched."""
        return torch.full_like(self.residual, -torch.inf) if self.log_sum is None else self.log_sum

    @property
    def poses(self) -> Posterior:
        """``posterior``, or the one pose of each image."""
        return Posterior.certain(self.pose) if self.posterior is None else self.posterior

    def to(self, device: torch.device) -> "LocalResult":
        posterior = None if self.posterior is None else self.posterior.to(device)
        return LocalResult(self.pose.to(device), self.residual.to(device), self.of_grid.to(device), posterior)

    @staticmethod
    def cat(parts: "Sequence[LocalResult]") -> "LocalResult":
        residual, of_grid = torch.cat([p.residual for p in parts]), torch.cat([p.of_grid for p in parts])
        single = all(p.posterior is None for p in parts)
        posterior = None if single else Posterior.cat([p.poses for p in parts])
        return LocalResult(Pose.cat([p.pose for p in parts]), residual, of_grid, posterior)


def replaced(results: LocalResult, rows: Tensor, new: LocalResult) -> LocalResult:
    """``results`` (N,) with those at ``rows`` (indices or a mask) replaced by ``new``."""
    rotation, shift, residual = results.pose.rotation.clone(), results.pose.shift_px.clone(), results.residual.clone()
    rotation[rows], shift[rows], residual[rows] = new.pose.rotation, new.pose.shift_px, new.residual
    of_grid = results.of_grid.clone()
    of_grid[rows] = new.of_grid
    single = results.posterior is None and new.posterior is None
    posterior = None if single else results.poses.replaced(rows, new.poses)
    return LocalResult(Pose(rotation, shift), residual, of_grid, posterior)


def better(one: LocalResult, other: LocalResult, prior: ShiftPrior = ANY_SHIFT) -> LocalResult:
    """For each image, the more probable result: that with the smaller residual, but for the prior of the shifts."""
    first = one.residual + prior.cost(one.pose.shift_px) <= other.residual + prior.cost(other.pose.shift_px)
    rotation = torch.where(first[:, None, None], one.pose.rotation, other.pose.rotation)
    shift = torch.where(first[:, None], one.pose.shift_px, other.pose.shift_px)
    return LocalResult(Pose(rotation, shift), torch.where(first, one.residual, other.residual))


def reference_on(device: torch.device, volume: Tensor) -> VolumeFT:
    """Fourier transform of a map on the given device, or on the CPU if the device has too little memory."""
    return where_it_fits(device, volume_to_ft(volume).to)


@torch.no_grad()
def refine_poses(volume_ft: VolumeFT, stack: ParticleStack, pose: Pose, steps: int, prior: ShiftPrior = ANY_SHIFT) -> LocalResult:
    """Refine all poses by a few damped Gauss-Newton steps.

    Parameters
    ----------
    volume_ft : reference, on the device to compute on.
    stack : images, cut to the band to use.
    pose : (N,) starting poses. To converge, they must be within about ``1 / band`` radians of the truth, band in shells.
    steps : maximum number of steps per image; converged images stop earlier.
    prior : of the shifts.
    """

    def refine(rows: slice) -> LocalResult:
        batch, start = stack.batch(rows, volume_ft.device), pose[rows].to(volume_ft.device)
        return refine_batch(volume_ft, batch, start, steps, prior).to(pose.rotation.device)

    return LocalResult.cat(in_blocks(len(stack), stack.at_a_time(BLOCK), refine))


@torch.no_grad()
def refine_among_copies(volume_ft: VolumeFT, stack: ParticleStack, pose: Pose, copies: Tensor, steps: int) -> LocalResult:
    """Refine all poses, then choose between each pose ``R`` and its copies ``g R`` about the axes of a pseudo-symmetry.

    The copies of the refined pose are compared without refinement, by one slice each. The best of them gets one step, as an axis
    that is off by a degree costs it more than the difference between nearly equal copies, and the other steps if as much gain
    again would make it win. The image takes it only if its residual is then the smaller one, so equal copies change nothing. For
    C1 the result is that of :func:`refine_poses`.

    Parameters
    ----------
    copies : (c, 3, 3) point group of the pseudo-symmetry, with the identity first and the axes through the origin of the map.
    """

    def refine(rows: slice) -> LocalResult:
        batch, start = stack.batch(rows, volume_ft.device), pose[rows].to(volume_ft.device)
        best = refine_batch(volume_ft, batch, start, steps)
        others = [Pose(g @ best.pose.rotation, best.pose.shift_px) for g in copies[1:].to(best.pose.rotation)]
        return (_or_copy(volume_ft, batch, best, others, steps) if others else best).to(pose.rotation.device)

    return LocalResult.cat(in_blocks(len(stack), stack.at_a_time(BLOCK), refine))


def _or_copy(volume_ft: VolumeFT, batch: Batch, best: LocalResult, others: list[Pose], steps: int) -> LocalResult:
    """For each image of a batch the refined pose ``best`` or the best of ``others``, (b,) poses each, refined as well."""
    lowest = torch.stack([_residual(volume_ft, batch, other) for other in others]).min(0)
    tried, row = Pose.stack(others), torch.arange(len(best.residual), device=best.residual.device)
    copy = refine_batch(volume_ft, batch, Pose(tried.rotation[row, lowest.indices], tried.shift_px[row, lowest.indices]), 1)
    # steps converge: none gains more than the one before
    close = torch.nonzero(2 * copy.residual - lowest.values < best.residual)[:, 0]
    if steps > 1 and len(close):
        copy = replaced(copy, close, refine_batch(volume_ft, batch.rows(close), copy.pose[close], steps - 1))
    return better(best, copy)


@dataclass(frozen=True)
class Candidates:
    """Refined candidate poses of N images.

    Attributes
    ----------
    pose : (N, K).
    residual : (N, K) their residuals; infinite for a pose that is far too improbable to be refined.
    cost : (N, K) residuals and the cost of the shifts.
    """

    pose: Pose
    residual: Tensor
    cost: Tensor

    @property
    def best(self) -> LocalResult:
        row, column = torch.arange(len(self.cost)), self.cost.argmin(1)
        return LocalResult(Pose(self.pose.rotation[row, column], self.pose.shift_px[row, column]), self.residual[row, column])

    @staticmethod
    def of(results: "Sequence[LocalResult]", prior: ShiftPrior) -> "Candidates":
        cost = [r.residual + prior.cost(r.pose.shift_px) for r in results]
        return Candidates(
            Pose.stack([r.pose for r in results]), torch.stack([r.residual for r in results], 1), torch.stack(cost, 1)
        )

    def to(self, device: torch.device) -> "Candidates":
        return Candidates(self.pose.to(device), self.residual.to(device), self.cost.to(device))

    @staticmethod
    def cat(parts: "Sequence[Candidates]") -> "Candidates":
        residual, cost = torch.cat([p.residual for p in parts]), torch.cat([p.cost for p in parts])
        return Candidates(Pose.cat([p.pose for p in parts]), residual, cost)


@torch.no_grad()
def refine_candidates(
    volume_ft: VolumeFT,
    stack: ParticleStack,
    candidates: Pose,
    steps: int,
    before: Pose | None = None,
    prior: ShiftPrior = ANY_SHIFT,
) -> Candidates:
    """Refine several candidate poses per image: one step from each, then ``steps`` from the best two and all close to the best.

    Parameters
    ----------
    candidates : (N, K) poses.
    before : (N,) one additional starting pose per image, always refined by ``steps``.
    prior : of the shifts.
    """

    def refine(rows: slice) -> Candidates:
        batch, in_block = stack.batch(rows, volume_ft.device), candidates[rows].to(volume_ft.device)
        results = _refined(volume_ft, batch, in_block, steps, prior)
        if before is not None:
            results.append(refine_batch(volume_ft, batch, before[rows].to(volume_ft.device), steps, prior))
        return Candidates.of(results, prior).to(candidates.rotation.device)

    return Candidates.cat(in_blocks(len(stack), stack.at_a_time(BLOCK), refine))


def _refined(volume_ft: VolumeFT, batch: Batch, candidates: Pose, steps: int, prior: ShiftPrior) -> list[LocalResult]:
    """Results (b,) of the candidates (b, K) of a batch, the best after one step first."""
    first = Candidates.of(
        [refine_batch(volume_ft, batch, candidates.column(i), 1, prior) for i in range(len(candidates.rotation[0]))], prior
    )
    order, rows = first.cost.argsort(1), torch.arange(len(first.cost), device=first.cost.device)
    results = []
    for place, column in enumerate(order.T):
        start = Pose(first.pose.rotation[rows, column], first.pose.shift_px[rows, column])
        close = first.cost[rows, column] < first.cost[rows, order[:, 0]] + CLOSE
        if place < 2 or close.all():
            results.append(refine_batch(volume_ft, batch, start, steps, prior))
            continue
        result = LocalResult(start, torch.full_like(first.cost[:, 0], torch.inf))
        some = torch.nonzero(close)[:, 0]
        if len(some):
            result = replaced(result, some, refine_batch(volume_ft, batch.rows(some), start[some], steps, prior))
        results.append(result)
    return results


@torch.no_grad()
def with_other_poses(
    volume_ft: VolumeFT, stack: ParticleStack, best: LocalResult, before: Posterior, steps: int, independent: float, group: Tensor
) -> LocalResult:
    """Refined results with the earlier ``before`` poses of images that have several, refined as well and weighed anew.

    Parameters
    ----------
    best : (N,) refined best poses.
    before : (N,) posteriors before, whose first poses are those that ``best`` was refined from.
    steps, independent, group : see :func:`refine_poses`, :class:`Posterior`.
    """
    image, column = torch.nonzero(before.probability[:, 1:] > 0).T
    if len(image) == 0:
        return best
    others = Pose(before.pose.rotation[image, column + 1], before.pose.shift_px[image, column + 1])
    refined = refine_poses(volume_ft, stack.subset(image), others, steps)
    # the first column is the best pose; the others are empty where there is no other pose
    rotation, shift = before.pose.rotation.clone(), before.pose.shift_px.clone()
    residual = torch.full_like(before.probability, torch.inf)
    rotation[:, 0], shift[:, 0], residual[:, 0] = best.pose.rotation, best.pose.shift_px, best.residual
    rotation[image, column + 1], shift[image, column + 1] = refined.pose.rotation, refined.pose.shift_px
    residual[image, column + 1] = refined.residual
    candidates = Candidates(Pose(rotation, shift), residual, residual)
    # relative to the best, as the power of the images, which is common to all poses of one, does not matter here
    relative = independent * (best.residual[:, None] - residual)
    posterior = Posterior.of(candidates.pose, relative, torch.full_like(best.residual, -torch.inf), group)
    return replace(candidates.best, log_sum=best.log_sum, posterior=posterior)


def refine_batch(volume_ft: VolumeFT, batch: Batch, pose: Pose, steps: int, prior: ShiftPrior = ANY_SHIFT) -> LocalResult:
    """Refine the poses (b,) of a batch by damped Gauss-Newton steps. All tensors are on the device of the reference."""
    best = LocalResult(pose, _residual(volume_ft, batch, pose))
    damping = torch.full((len(pose),), 1e-3, device=pose.rotation.device, dtype=best.residual.dtype)
    moving = torch.arange(len(pose), device=pose.rotation.device)
    for _ in range(steps):
        active = batch if len(moving) == len(pose) else batch.rows(moving)
        current = LocalResult(best.pose[moving], best.residual[moving])
        normal, gradient = _with_prior(*_normal_equations(volume_ft, active, current.pose), current.pose, prior)
        floor = 1e-6 * normal.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True) + 1e-12
        step = damped_step(normal, gradient, damping[moving], floor)
        trial = Pose(current.pose.rotation @ roma.rotvec_to_rotmat(step[:, :3]), current.pose.shift_px + step[:, 3:])
        tried = LocalResult(trial, _residual(volume_ft, active, trial))
        improved = tried.residual + prior.cost(trial.shift_px) < current.residual + prior.cost(current.pose.shift_px)
        damping[moving] = torch.where(improved, damping[moving] * 0.3, damping[moving] * 10)
        best = replaced(best, moving, better(current, tried, prior))
        moving = moving[~improved | (_edge_move(batch, step) > CONVERGED)]
        if len(moving) == 0:
            break
    return best


def _edge_move(batch: Batch, step: Tensor) -> Tensor:
    """Size (b,) of steps (b, 5) at the edge of the band.

    It is the larger of the displacement by the rotation, in Fourier samples, and the phase change by the shift, in radians.
    """
    edge = float(batch.half_plane.radius[-1])
    return torch.maximum(step[:, :3].norm(dim=1) * edge, step[:, 3:].norm(dim=1) * (2 * math.pi / batch.box) * edge)


def _residual(volume_ft: VolumeFT, batch: Batch, pose: Pose) -> Tensor:
    """``|y - h S|^2`` (b,) of images against projections of the map at their poses (b,)."""
    return image_residual(batch.image_ft, project(volume_ft, batch.effective_ctf, batch.half_plane, pose))


def _with_prior(normal: Tensor, gradient: Tensor, pose: Pose, prior: ShiftPrior) -> tuple[Tensor, Tensor]:
    """The normal equations with the prior of the shifts, which is two more equations for each image."""
    if prior.weight == 0:
        return normal, gradient
    normal[:, 3:, 3:] += prior.weight * torch.eye(2).to(normal)
    gradient[:, 3:] -= prior.weight * (pose.shift_px - prior.centre_px.to(gradient))
    return normal, gradient


def _normal_equations(volume_ft: VolumeFT, batch: Batch, pose: Pose) -> tuple[Tensor, Tensor]:
    """``J^T J`` (b, 5, 5) and ``J^T r`` (b, 5), with r the residual and the unknowns (rotation vector, shift)."""
    half_plane = batch.half_plane
    # half a sample of the padded transform at the edge of the band: smaller differences would pick up the kinks of the
    # trilinear interpolation
    delta = 0.5 / (volume_ft.padded_box / volume_ft.box) / float(half_plane.radius[-1])
    turns = roma.rotvec_to_rotmat(torch.cat([torch.zeros(1, 3), delta * torch.eye(3)]).to(pose.rotation))
    slices = central_slices(volume_ft, half_plane, pose.rotation[:, None] @ turns)
    slices = image_of_slice(slices, batch.effective_ctf[:, None], half_plane, pose.shift_px[:, None])
    predicted, turned = slices[:, 0], slices[:, 1:]
    d_shift = predicted[:, None] * half_plane.k.flip(-1).T * (-2j * math.pi / half_plane.box)
    jacobian = torch.cat([(turned - predicted[:, None]) / delta, d_shift], dim=1)
    jacobian = torch.view_as_real(jacobian).flatten(2)
    residual = torch.view_as_real(batch.image_ft - predicted).flatten(1)
    return jacobian @ jacobian.mT, (jacobian @ residual[..., None])[..., 0]
