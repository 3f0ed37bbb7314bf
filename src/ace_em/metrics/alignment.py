"""The global rotation, origin and hand that relate two sets of poses.

Ab initio reconstruction determines neither the frame nor the hand: poses ``R`` of a map are equivalent to ``A R`` of the map
rotated by ``A``, and to ``J R J`` of the mirrored map.
"""

import math
from dataclasses import dataclass

import roma
import torch
from torch import Tensor

from ace_em.maths.fourier import centred_ifft, frequencies
from ace_em.maths.point_group import nearest_copy
from ace_em.maths.rotations import squared_frobenius
from ace_em.maths.slices import sample, volume_to_ft
from ace_em.physics.pose import Pose

CLIP = 8 * math.sin(math.radians(30) / 2) ** 2
"""Squared Frobenius distance of 30 degrees; poses with a larger error are treated as outliers."""


@dataclass(frozen=True)
class Frame:
    """Transformation from the estimated to the true frame: ``truth ~ rotation @ R``, with ``R`` first mirrored if ``mirrored``.

    ``origin_px`` (3,), in x, y, z order of the true frame, is the position of the true origin in the rotated estimated map: the
    true map at ``r`` is the rotated estimated map at ``r + origin_px``.
    """

    rotation: Tensor
    mirrored: bool
    origin_px: Tensor


def align_poses(estimate: Pose, truth: Pose, group: Tensor | None = None) -> Frame:
    """Robust alignment of two sets of poses of the same particles.

    The hand and rotation minimise the mean error, clipped at 30 degrees. Clipping matters for pseudo-symmetric particles, where
    for example a third of the poses may be correct and the rest off by 120 degrees: a mean or median error would have its
    minimum in between.

    Parameters
    ----------
    estimate, truth : (N,) poses.
    group : (g, 3, 3) point group of the estimated map, whose poses are correct up to ``g @ R``.
    """
    best, lowest = Frame(torch.eye(3), False, torch.zeros(3)), float("inf")
    for mirrored in (False, True):
        candidate = estimate.mirrored() if mirrored else estimate
        rotation = _align_rotations(candidate.rotation, truth.rotation, _group_of(group, mirrored))
        frame = Frame(rotation, mirrored, torch.zeros(3))
        aligned = apply_frame(nearest_estimate(estimate, truth, frame, group), frame)
        error = _clipped(squared_frobenius(aligned.rotation, truth.rotation)).item()
        if error < lowest:
            best, lowest = frame, error
    aligned = apply_frame(nearest_estimate(estimate, truth, best, group), best)
    near = squared_frobenius(aligned.rotation, truth.rotation) <= CLIP
    rows = near if near.sum() >= 3 else torch.ones_like(near)
    return Frame(best.rotation, best.mirrored, _common_origin(aligned[rows], truth[rows]))


def _clipped(error: Tensor) -> Tensor:
    return error.clamp(max=CLIP).mean()


def _group_of(group: Tensor | None, mirrored: bool) -> Tensor:
    """The point group (g, 3, 3) of the map, or of the mirrored map."""
    if group is None:
        return torch.eye(3)[None]
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=group.dtype))
    return mirror @ group @ mirror if mirrored else group


def nearest_estimate(estimate: Pose, truth: Pose, frame: Frame, group: Tensor | None) -> Pose:
    """For each particle (N,), the symmetry-equivalent pose ``g @ R`` nearest to the truth after applying ``frame``."""
    if group is None or len(group) == 1:
        return estimate
    rotation = estimate.mirrored().rotation if frame.mirrored else estimate.rotation
    nearest = nearest_copy(rotation, frame.rotation.T @ truth.rotation, _group_of(group, frame.mirrored))
    pose = Pose(nearest, estimate.shift_px)
    return pose.mirrored() if frame.mirrored else pose


def _align_rotations(estimate: Tensor, truth: Tensor, group: Tensor, n_seeds: int = 300) -> Tensor:
    """``A`` (3, 3) with ``A @ estimate ~ truth``: the best of the rotations from single pairs, then Procrustes on the inliers."""
    seeds = torch.linspace(0, len(truth) - 1, min(n_seeds, len(truth))).long()
    candidates = truth[seeds] @ estimate[seeds].mT
    errors = []
    for candidate in candidates:
        copies = nearest_copy(estimate[seeds], candidate.T @ truth[seeds], group)
        errors.append(_clipped(squared_frobenius(candidate @ copies, truth[seeds])))
    rotation = candidates[torch.stack(errors).argmin()]
    for _ in range(5):
        copies = nearest_copy(estimate, rotation.T @ truth, group)
        error = squared_frobenius(rotation @ copies, truth)
        near = error <= (4 * error.median()).clamp(max=CLIP)
        if near.sum() < 3:
            break
        rotation = roma.special_procrustes((truth[near] @ copies[near].mT).sum(0))
    return rotation


def _common_origin(estimate: Pose, truth: Pose) -> Tensor:
    """Origin ``c`` (3,) with ``truth.shift = estimate.shift + (R^T c)`` in the image plane, by robust least squares."""
    difference = (truth.shift_px - estimate.shift_px).flip(-1)
    design = truth.rotation.mT[:, :2, :]
    keep = torch.ones(len(difference), dtype=torch.bool)
    origin = torch.zeros(3)
    for _ in range(5):
        origin = torch.linalg.lstsq(design[keep].reshape(-1, 3), difference[keep].reshape(-1, 1)).solution[:, 0]
        error = (difference - design @ origin).norm(dim=-1)
        keep = error <= 3 * error.median() + 1e-6
    return origin


def apply_frame(estimate: Pose, frame: Frame) -> Pose:
    """Transform estimated poses to the true frame."""
    pose = estimate.mirrored() if frame.mirrored else estimate
    rotation = frame.rotation @ pose.rotation
    moved = (rotation.mT[..., :2, :] @ frame.origin_px).flip(-1)
    return Pose(rotation, pose.shift_px + moved)


def turn_volume(volume: Tensor, frame: Frame, pad: int = 3) -> Tensor:
    """Transform an estimated map (n, n, n) to the true frame (mirror, rotation, shift) by Fourier interpolation."""
    n = volume.shape[-1]
    axis = frequencies(n, dtype=volume.dtype)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    k = torch.stack([x, y, z], dim=-1).view(-1, 3)
    inside = k.norm(dim=-1) < n / 2
    # V_true(q) = V(J A^T q), with J = diag(1, 1, -1) if mirrored, else the identity
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0 if frame.mirrored else 1.0]))
    values = sample(volume_to_ft(volume, pad), k[inside], mirror @ frame.rotation.T)
    angle = 2 * math.pi / n * (k[inside] @ frame.origin_px)
    turned = torch.zeros(n**3, dtype=values.dtype)
    turned[inside] = values * torch.polar(torch.ones_like(angle), angle)
    return centred_ifft(turned.view(n, n, n), 3).real
