"""Local refinement of poses: damped Gauss-Newton steps per image on rotation and shift.

Five unknowns per image: a turn in the image's frame (three angles) and the shift. The derivative of a slice with respect to
the turn is a finite difference of slices, that with respect to the shift is exact. The 5 x 5 normal equations of a whole block
are solved at once (Levenberg-Marquardt: a step that does not help is undone and damped more).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import roma
import torch
from torch import Tensor

from ace_em.data.particle_stack import Batch, ParticleStack
from ace_em.maths.blocks import in_blocks, where_it_fits
from ace_em.maths.levenberg_marquardt import damped_step
from ace_em.maths.slices import VolumeFT, central_slices, volume_to_ft
from ace_em.physics.imaging import image_of_slice, project
from ace_em.physics.pose import Pose
from ace_em.tasks.losses import image_residual

BLOCK = 128
STILL = 0.02
"""An image is done when a step that helped moved it by no more than this, in samples and radians at the band's rim."""


@dataclass(frozen=True)
class LocalResult:
    """Refined poses of N images.

    Attributes
    ----------
    residual : (N,) ``|y - h S|^2`` of the refined poses.
    log_sum : (N,) log of the summed likelihoods of a grid, where one was searched (:class:`SearchResult`); None where not.
    """

    pose: Pose
    residual: Tensor
    log_sum: Tensor | None = None

    @property
    def of_grid(self) -> Tensor:
        """``log_sum``, or minus infinity."""
        return torch.full_like(self.residual, -torch.inf) if self.log_sum is None else self.log_sum

    def to(self, device: torch.device) -> "LocalResult":
        return LocalResult(self.pose.to(device), self.residual.to(device), self.of_grid.to(device))

    @staticmethod
    def cat(parts: "Sequence[LocalResult]") -> "LocalResult":
        residual, of_grid = torch.cat([p.residual for p in parts]), torch.cat([p.of_grid for p in parts])
        return LocalResult(Pose.cat([p.pose for p in parts]), residual, of_grid)


def replaced(results: LocalResult, rows: Tensor, new: LocalResult) -> LocalResult:
    """``results`` (N,) with those of some ``rows``, indices or a mask, exchanged."""
    rotation, shift, residual = results.pose.rotation.clone(), results.pose.shift_px.clone(), results.residual.clone()
    rotation[rows], shift[rows], residual[rows] = new.pose.rotation, new.pose.shift_px, new.residual
    of_grid = results.of_grid.clone()
    of_grid[rows] = new.of_grid
    return LocalResult(Pose(rotation, shift), residual, of_grid)


def better(one: LocalResult, other: LocalResult) -> LocalResult:
    """Per image the result with the smaller residual."""
    first = one.residual <= other.residual
    rotation = torch.where(first[:, None, None], one.pose.rotation, other.pose.rotation)
    shift = torch.where(first[:, None], one.pose.shift_px, other.pose.shift_px)
    return LocalResult(Pose(rotation, shift), torch.where(first, one.residual, other.residual))


def reference_on(device: torch.device, volume: Tensor) -> VolumeFT:
    """A map's transform on the device that images are compared on, or on the CPU if the device has no room for it."""
    return where_it_fits(device, volume_to_ft(volume).to)


@torch.no_grad()
def refine_poses(volume_ft: VolumeFT, stack: ParticleStack, pose: Pose, steps: int) -> LocalResult:
    """A few Gauss-Newton steps for every image.

    Parameters
    ----------
    volume_ft : the reference, on the device that does the work.
    stack : images, cut to the band that counts.
    pose : (N,) starting poses, within about a radian over the band's radius of the truth.
    steps : tries per image; an image that no longer moves is left alone.
    """

    def refine(rows: slice) -> LocalResult:
        batch, start = stack.batch(rows, volume_ft.device), pose[rows].to(volume_ft.device)
        return refine_batch(volume_ft, batch, start, steps).to(pose.rotation.device)

    # each image has six slices and five derivatives
    return LocalResult.cat(in_blocks(len(stack), stack.at_a_time(BLOCK), refine))


@torch.no_grad()
def refine_candidates(
    volume_ft: VolumeFT, stack: ParticleStack, candidates: Pose, steps: int, before: Pose | None = None
) -> LocalResult:
    """The best of several starting poses per image: one step from each, then all ``steps`` from the two that fit best.

    Parameters
    ----------
    candidates : (N, K) poses.
    before : (N,) one more start for each image, which is given all ``steps`` at once.
    """

    def refine(rows: slice) -> LocalResult:
        batch, some = stack.batch(rows, volume_ft.device), candidates[rows].to(volume_ft.device)
        best = _best_candidate(volume_ft, batch, some, steps)
        if before is not None:
            best = better(best, refine_batch(volume_ft, batch, before[rows].to(volume_ft.device), steps))
        return best.to(candidates.rotation.device)

    return LocalResult.cat(in_blocks(len(stack), stack.at_a_time(BLOCK), refine))


def _best_candidate(volume_ft: VolumeFT, batch: Batch, candidates: Pose, steps: int) -> LocalResult:
    first = [refine_batch(volume_ft, batch, candidates.column(i), 1) for i in range(candidates.rotation.shape[1])]
    order = torch.stack([one.residual for one in first], dim=1).argsort(dim=1)[:, :2]
    tried, rows = Pose.stack([one.pose for one in first]), torch.arange(len(order), device=order.device)
    finalists = [Pose(tried.rotation[rows, column], tried.shift_px[rows, column]) for column in order.T]
    results = [refine_batch(volume_ft, batch, pose, steps) for pose in finalists]
    return results[0] if len(results) == 1 else better(*results)


def refine_batch(volume_ft: VolumeFT, batch: Batch, pose: Pose, steps: int) -> LocalResult:
    """A few Gauss-Newton steps for b images that are in memory, all on the device of the reference."""
    best = LocalResult(pose, _residual(volume_ft, batch, pose))
    damping = torch.full((len(pose),), 1e-3, device=pose.rotation.device, dtype=best.residual.dtype)
    moving = torch.arange(len(pose), device=pose.rotation.device)
    for _ in range(steps):
        some = batch if len(moving) == len(pose) else batch.rows(moving)
        here = LocalResult(best.pose[moving], best.residual[moving])
        normal, gradient = _normal_equations(volume_ft, some, here.pose)
        floor = 1e-6 * normal.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True) + 1e-12
        move = damped_step(normal, gradient, damping[moving], floor)
        trial = Pose(here.pose.rotation @ roma.rotvec_to_rotmat(move[:, :3]), here.pose.shift_px + move[:, 3:])
        residual = _residual(volume_ft, some, trial)
        helped = residual < here.residual
        damping[moving] = torch.where(helped, damping[moving] * 0.3, damping[moving] * 10)
        best = replaced(best, moving, better(here, LocalResult(trial, residual)))
        moving = moving[~helped | (_rim_move(batch, move) > STILL)]
        if len(moving) == 0:
            break
    return best


def _rim_move(batch: Batch, move: Tensor) -> Tensor:
    """How far a step (b, 5) moves the band's rim, in samples of the transform, or turns its phases, in radians."""
    rim = float(batch.half_plane.radius[-1])
    return torch.maximum(move[:, :3].norm(dim=1) * rim, move[:, 3:].norm(dim=1) * (2 * math.pi / batch.box) * rim)


def _residual(volume_ft: VolumeFT, batch: Batch, pose: Pose) -> Tensor:
    """``|y - h S|^2`` (b,) of images against a map's projections at their poses (b,)."""
    return image_residual(batch.image_ft, project(volume_ft, batch.effective_ctf, batch.half_plane, pose))


def _normal_equations(volume_ft: VolumeFT, batch: Batch, pose: Pose) -> tuple[Tensor, Tensor]:
    """``J^T J`` (b, 5, 5) and ``J^T r`` (b, 5)."""
    half_plane = batch.half_plane
    # half a sample of the padded transform at the rim: finer differences would see the interpolation's facets
    delta = 0.5 / (volume_ft.padded_box / volume_ft.box) / float(half_plane.radius[-1])
    turns = roma.rotvec_to_rotmat(torch.cat([torch.zeros(1, 3), delta * torch.eye(3)]).to(pose.rotation))
    slices = central_slices(volume_ft, half_plane, pose.rotation[:, None] @ turns)
    slices = image_of_slice(slices, batch.effective_ctf[:, None], half_plane, pose.shift_px[:, None])
    predicted, turned = slices[:, 0], slices[:, 1:]
    by_shift = predicted[:, None] * half_plane.k.flip(-1).T * (-2j * math.pi / half_plane.box)
    jacobian = torch.cat([(turned - predicted[:, None]) / delta, by_shift], dim=1)
    jacobian = torch.view_as_real(jacobian).flatten(2)
    residual = torch.view_as_real(batch.image_ft - predicted).flatten(1)
    return jacobian @ jacobian.mT, (jacobian @ residual[..., None])[..., 0]
