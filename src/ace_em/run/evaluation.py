"""Evaluation of a finished run against ground truth: the metrics of the paper, and their bound at true poses."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ace_em.data.particle_stack import CPU
from ace_em.data.particles import Particles
from ace_em.data.preprocess import read_stack
from ace_em.data.survey import survey
from ace_em.errors import InputError
from ace_em.io.atomic import replace_atomically
from ace_em.io.mrc import read_volume
from ace_em.maths.fourier import fourier_resize
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.masks import ball_radius_px, soft_ball
from ace_em.metrics.alignment import align_poses, apply_frame, nearest_estimate, turn_volume
from ace_em.metrics.coverage import coverage
from ace_em.metrics.fsc import fourier_shell_correlation, resolution_shell
from ace_em.metrics.pose_error import pose_error
from ace_em.physics.pose import Pose
from ace_em.refinement.backprojection import Accumulator, accumulate, reconstruct_halves
from ace_em.run.folder import RunFolder
from ace_em.run.reporter import Reporter
from ace_em.run.validate import choose_device, group_of

READ_AT_A_TIME = 5000
"""Images read at a time for the insertion; fewer if they would exceed ``READ_BYTES``."""
READ_BYTES = 2**30


@dataclass(frozen=True)
class Evaluation:
    """The numbers of ``evaluation.json``.

    Attributes
    ----------
    fsc05_px, fsc05_angstrom : resolution at which the FSC of volume.mrc with the true volume falls below 0.5.
    bound_px : fsc05_px of the map reconstructed at the true poses, without symmetry.
    rot_mean, rot_median : squared Frobenius norm of the rotation error.
    trans : mean squared shift error, pixels^2 of the images.
    within_10deg, coverage : share of poses within 10 degrees, and of the view sphere that is covered.
    hand : 'same' or 'mirrored', relative to the truth.
    fsc_truth : FSC of volume.mrc with the true volume, one value per shell.
    """

    fsc05_px: float
    fsc05_angstrom: float
    bound_px: float
    rot_mean: float
    rot_median: float
    trans: float
    within_10deg: float
    coverage: float
    hand: str
    fsc_truth: list[float]


def matched_poses(estimate: Particles, truth: Particles) -> tuple[Pose, Pose, list[int]]:
    """Estimated and true poses, matched by image name, and their rows in ``truth``."""
    row_of = {name: row for row, name in enumerate(truth.image_names)}
    missing = [name for name in estimate.image_names if name not in row_of]
    if missing:
        raise InputError(f"{truth.table.path}: no particle {missing[0]}; expected all images of {estimate.table.path}")
    rows = [row_of[name] for name in estimate.image_names]
    poses = [p.poses() for p in (estimate, truth)]
    for particles, pose in zip((estimate, truth), poses, strict=True):
        if pose is None:
            raise InputError(f"{particles.table.path}: no rlnAngleRot, rlnAngleTilt, rlnAnglePsi columns; expected poses")
    assert poses[0] is not None and poses[1] is not None
    return poses[0], poses[1][torch.tensor(rows)], rows


def bound(
    truth: Particles,
    pose: Pose,
    volume: Tensor,
    rows: list[int],
    device: torch.device = CPU,
    on_block: Callable[[int], None] = lambda done: None,
) -> float:
    """Shell at which the FSC between the map of the images at ``pose`` and the true volume (n, n, n) falls below 0.5.

    Parameters
    ----------
    pose : poses in the true frame, pixels of the images; the true ones give the bound.
    rows : their rows in ``truth``.
    device : for the insertion of the images.
    on_block : called with the number of images done.
    """
    box = volume.shape[-1]
    look = survey(truth)
    at_box = pose.rescaled(box / truth.box)
    sums: list[Accumulator] = []
    block = _read_at_a_time(box)
    for start in range(0, len(rows), block):
        some = slice(start, start + block)
        stack = read_stack(truth, look, box, rows=np.array(rows[some]))
        # even rows are the first half
        halves = [torch.arange(first, len(stack), 2) for first in (0, 1)]
        inserted = [accumulate(stack, at_box[some], half, device=device) for half in halves]
        sums = [a + b for a, b in zip(sums, inserted, strict=True)] if sums else inserted
        on_block(start + len(stack))
    diameter_px = look.diameter_angstrom / (truth.box * truth.pixel_size_angstrom) * box
    maps = reconstruct_halves(sums[0], sums[1], soft_ball(box, ball_radius_px(box, diameter_px)))
    return resolution_shell(fourier_shell_correlation(maps.combined, volume), 0.5)


def _read_at_a_time(box: int) -> int:
    """Images read at a time; an even number, so that every block starts with the first half."""
    most = min(READ_AT_A_TIME, READ_BYTES // (12 * len(HalfPlane.within(box))))
    return max(2, most // 2 * 2)


def insertion_device(name: str) -> torch.device:
    """Device for the insertion of images; the CPU instead of MPS, where insertion is untested."""
    device = choose_device(name)
    return torch.device(device if device == "cuda" else "cpu")


def run_settings(run: RunFolder) -> dict[str, Any]:
    """Settings of a run from its config.yaml; empty without that file."""
    import yaml

    return yaml.safe_load(run.config.read_text()) or {} if run.config.is_file() else {}


def evaluate(run_path: Path, truth_path: Path, device: torch.device = CPU, reporter: Reporter | None = None) -> Evaluation:
    """Compare RUN/ with a simulated data set (truth.star, volume.mrc); writes evaluation.json.

    Poses are compared up to the point group of the run.

    Parameters
    ----------
    device : for the insertion of images at their true poses.
    reporter : for progress; None for no messages.
    """
    reporter = Reporter(mode="quiet") if reporter is None else reporter
    run = RunFolder(run_path)
    for needed in (run.poses, run.volume, truth_path / "truth.star", truth_path / "volume.mrc"):
        if not needed.is_file():
            raise InputError(f"{needed}: no such file; expected a finished run and a folder made by `ace-em simulate`")
    truth = Particles.open(truth_path / "truth.star")
    estimate = Particles.open(run.poses, project_root=truth_path)
    found, true, rows = matched_poses(estimate, truth)
    group = group_of(run_settings(run).get("symmetry", "C1"))
    frame = align_poses(found, true, group)
    aligned = apply_frame(nearest_estimate(found, true, frame, group), frame)
    error = pose_error(aligned, true)

    map_found, pixel_size = read_volume(run.volume)
    map_true, _ = read_volume(truth_path / "volume.mrc")
    box = map_found.shape[-1]
    true_volume = fourier_resize(torch.from_numpy(map_true), box, 3)
    at_box = dataclasses.replace(frame, origin_px=frame.origin_px * (box / truth.box))
    fsc = fourier_shell_correlation(turn_volume(torch.from_numpy(map_found), at_box), true_volume)
    shell = resolution_shell(fsc, 0.5)
    with reporter.heartbeat(), reporter.task("inserting the images at their true poses", len(rows)) as task:
        bound_shell = bound(truth, true, true_volume, rows, device, task.update)
    result = Evaluation(
        fsc05_px=box / shell,
        fsc05_angstrom=box / shell * pixel_size,
        bound_px=box / bound_shell,
        rot_mean=error.rot_mean,
        rot_median=error.rot_median,
        trans=error.trans,
        within_10deg=error.within_10deg,
        coverage=coverage(aligned.rotation),
        hand="mirrored" if frame.mirrored else "same",
        fsc_truth=[round(v, 5) for v in fsc.tolist()],
    )
    with replace_atomically(run.evaluation) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(result), indent=1) + "\n")
    return result
