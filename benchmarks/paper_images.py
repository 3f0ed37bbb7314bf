"""Figure 7: an input image, the projection of the decoder at the encoder's pose, and the same with CTF, shift and noise."""

from pathlib import Path

import numpy as np
import torch
from paper_runs import Spec, load_images

from ace_em.maths.slices import volume_to_ft
from ace_em.physics.imaging import project
from ace_em.physics.pose import Pose
from ace_em.tasks.pip import background_noise

ROW = 7
"""Index of the image shown; an arbitrary choice."""


def example_images(spec: Spec, arrays: dict[str, np.ndarray], folder: Path) -> list[np.ndarray]:
    """Three images (box, box) for one particle of the set of a run, whitened like the input of the encoder.

    Parameters
    ----------
    arrays : poses and map of the run.
    folder : simulated set of the run.
    """
    images, _, _ = load_images(folder, dict(spec.settings)["final_box"])
    one = images.batch(slice(ROW, ROW + 1))
    pose = Pose(torch.from_numpy(arrays["rotation"][ROW : ROW + 1]), torch.from_numpy(arrays["shift_px"][ROW : ROW + 1]))
    volume_ft = volume_to_ft(torch.from_numpy(arrays["volume"]))
    still = Pose(pose.rotation, torch.zeros(1, 2))
    projection = project(volume_ft, torch.ones_like(one.effective_ctf), one.half_plane, still)
    noise = background_noise(1, one.half_plane, one.noise_variance, torch.Generator().manual_seed(0))
    predicted = project(volume_ft, one.effective_ctf, one.half_plane, pose) + noise
    return [images.half_plane.to_image(ft)[0].numpy() for ft in (one.image_ft, projection, predicted)]
