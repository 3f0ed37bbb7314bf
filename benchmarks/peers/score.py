"""One evaluator for every program: its poses against the truth, and the map that they give by one and the same way."""

from pathlib import Path

import numpy as np
import torch

from ace_em.data.mrc import read_volume
from ace_em.data.particles import Particles
from ace_em.data.preprocess import survey, working_set
from ace_em.evaluation import matched_poses
from ace_em.maths.fourier import fourier_resize
from ace_em.metrics.alignment import align_poses, apply_frame
from ace_em.metrics.fsc import fourier_shell_correlation, resolution_shell
from ace_em.metrics.pose_error import pose_error
from ace_em.models.voxel_grid import ball_radius_px, soft_ball
from ace_em.physics.pose import Pose
from ace_em.refinement.backprojection import accumulate, reconstruct_halves


def score(poses_star: Path | None, truth_folder: Path, final_box: int) -> dict[str, float]:
    """Errors of the poses in the true frame, and FSC 0.5 of the map that the images give at them, with the true volume.

    Parameters
    ----------
    poses_star : image names as in truth.star; None for the true poses, whose map is the bound.
    truth_folder : made by ``ace-em simulate``.
    final_box : pixels of the map; 0 for the box of the images.
    """
    truth = Particles.open(truth_folder / "truth.star")
    estimate = truth if poses_star is None else Particles.open(poses_star, project_root=truth_folder)
    found, true, rows = matched_poses(estimate, truth)
    aligned = true if poses_star is None else apply_frame(found, align_poses(found, true))
    error = pose_error(aligned, true)
    return {
        "within_10deg": error.within_10deg,
        "rot_median": error.rot_median,
        "rot_mean": error.rot_mean,
        "trans": error.trans,
        "fsc05_px": fsc05_px(truth, aligned, truth_folder / "volume.mrc", final_box or truth.box, rows),
    }


def fsc05_px(truth: Particles, pose: Pose, volume: Path, box: int, rows: list[int]) -> float:
    """Where the map of the images ``rows`` at ``pose`` (true frame, image pixels) leaves the true volume, pixels of the map."""
    true_volume = fourier_resize(torch.from_numpy(read_volume(volume)[0]), box, 3)
    look = survey(truth)
    images = working_set(truth, look, box, rows=np.array(rows))
    at_box = pose.rescaled(box / truth.box)
    mask = soft_ball(box, ball_radius_px(box, look.diameter_angstrom / (truth.box * truth.pixel_size_angstrom) * box))
    even = torch.arange(len(images)) % 2 == 0
    one, two = (accumulate(images.rows(half), at_box[half]) for half in (even, ~even))
    combined = reconstruct_halves(one, two, mask).combined
    return box / resolution_shell(fourier_shell_correlation(combined, true_volume), 0.5)
