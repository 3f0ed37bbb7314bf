"""One evaluator for every program: its poses against the truth, and the map that they give by one and the same way."""

from pathlib import Path

import torch

from ace_em.data.particles import Particles
from ace_em.io.mrc import read_volume
from ace_em.maths.fourier import fourier_resize
from ace_em.metrics.alignment import align_poses, apply_frame
from ace_em.metrics.pose_error import pose_error
from ace_em.run.evaluation import bound, matched_poses


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
    box = final_box or truth.box
    true_volume = fourier_resize(torch.from_numpy(read_volume(truth_folder / "volume.mrc")[0]), box, 3)
    return {
        "within_10deg": error.within_10deg,
        "rot_median": error.rot_median,
        "rot_mean": error.rot_mean,
        "trans": error.trans,
        "fsc05_px": box / bound(truth, aligned, true_volume, rows),
    }
