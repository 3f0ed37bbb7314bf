"""Stage 3: two half-sets refined without knowledge of each other; their maps meet only for the FSC.

Both start from stage 2's map cut at stage 2's band. What they share lies below that band; beyond it each half-map is made
from its own images alone, so that agreement there is evidence.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import roma
import torch
from torch import Tensor

from ace_em.config import RefineConfig
from ace_em.data.preprocess import WorkingSet
from ace_em.maths.fourier import centred_fft, centred_ifft, radius_grid, resize
from ace_em.maths.rotations import angular_distance_deg, squared_frobenius
from ace_em.maths.slices import VolumeFT, volume_to_ft
from ace_em.metrics.fsc import resolution_shell
from ace_em.physics.pose import Pose
from ace_em.refinement.backprojection import Halves, accumulate, reconstruct_halves
from ace_em.refinement.local import refine_poses

ALIGNMENT_IMAGES = 400


@dataclass(frozen=True)
class HalfSetState:
    """Poses (N,) at a working box, the half each image belongs to (N,) 1 or 2, maps, the last shell used, how far poses moved."""

    pose: Pose
    half_set: Tensor
    halves: Halves
    band: float
    moved_deg: Tensor

    @property
    def fsc143_shell(self) -> float:
        return resolution_shell(self.halves.fsc, 0.143)


def low_pass(volume: Tensor, shell: float) -> Tensor:
    """Volume (n, n, n) without what lies beyond ``shell``, a soft edge of two shells."""
    radius = radius_grid(volume.shape[-1], 3)
    keep = ((shell + 1 - radius) / 2).clamp(0, 1)
    return centred_ifft(centred_fft(volume, 3) * keep, 3).real


def change_box(volume: Tensor, box: int) -> Tensor:
    """Resample keeping the transform's values (not the grey values): working sets share the full box's scale."""
    return centred_ifft(resize(centred_fft(volume, 3), box, 3), 3).real


def refine_half_sets(
    images: WorkingSet,
    reference: Halves,
    pose: Pose,
    half_set: Tensor,
    mask: Tensor,
    first_band: float,
    config: RefineConfig,
) -> Iterator[HalfSetState]:
    """Yield the state after each round at one working box; poses, half-maps and band go on from the last.

    Parameters
    ----------
    images : whole half-plane of this box.
    reference : the two halves' references at this box (the same map twice at the start of stage 3).
    first_band : last shell of the first round.
    """
    rows = [torch.nonzero(half_set == h)[:, 0] for h in (1, 2)]
    maps, band = [reference.half1, reference.half2], first_band
    nyquist = images.box / 2
    for _ in range(config.max_rounds):
        inner = images.band(band)
        refined = []
        for volume, mine in zip(maps, rows, strict=True):
            refined.append(refine_poses(volume_to_ft(volume), inner.rows(mine), pose[mine], config.local_steps).pose)
        refined[1] = _into_frame_of(volume_to_ft(maps[0]), inner.rows(rows[1]), refined[1])
        order = torch.cat(rows).argsort()
        new = Pose.cat(refined)[order]
        moved = angular_distance_deg(pose.rotation, new.rotation)
        pose = new
        one, two = (accumulate(images.rows(mine), p) for mine, p in zip(rows, refined, strict=True))
        halves = reconstruct_halves(one, two, mask)
        maps = [halves.half1, halves.half2]
        state = HalfSetState(pose, half_set, halves, band, moved)
        yield state
        # the next round sees a little beyond what the halves agree on
        next_band = min(max(first_band, state.fsc143_shell + 2), nyquist, band * 1.35)
        if moved.median() < config.stable_deg and next_band <= band + 1:
            return
        band = next_band


def _into_frame_of(reference_ft: VolumeFT, images: WorkingSet, pose: Pose) -> Pose:
    """Turn and move the second half's frame as a whole onto the first's map, so that drift does not lower the FSC.

    Six numbers for the whole half-set, from how some of its images fit the other map: no image's pose learns from it.
    """
    some = torch.linspace(0, len(pose) - 1, min(ALIGNMENT_IMAGES, len(pose))).long()
    fitted = refine_poses(reference_ft, images.rows(some), pose[some], 2).pose
    error = squared_frobenius(fitted.rotation, pose.rotation[some])
    near = error <= 4 * error.median() + 1e-12
    turn = roma.special_procrustes((fitted.rotation[near] @ pose.rotation[some][near].mT).sum(0))
    rotation = turn @ pose.rotation
    design = rotation[some].mT[:, :2, :]
    difference = (fitted.shift_px - pose.shift_px[some]).flip(-1)
    origin = torch.linalg.lstsq(design[near].reshape(-1, 3), difference[near].reshape(-1, 1)).solution[:, 0]
    return Pose(rotation, pose.shift_px + (rotation.mT[:, :2, :] @ origin).flip(-1))


def at_box(halves: Halves, box: int) -> Halves:
    """The maps of one working box as references at another."""
    return replace(
        halves,
        half1=change_box(halves.half1, box),
        half2=change_box(halves.half2, box),
        combined=change_box(halves.combined, box),
    )
