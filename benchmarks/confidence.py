r"""Calibration of the pose probabilities: the fraction of correct poses against the predicted probability.

    make demo    # RUN is demo/run, SEEN is demo/data
    ace-em simulate examples/data/5nrl_every10th_atom.npz -o NEW --n 2000 --box 128 --pixel-size 4.25 --snr-db -10 \
        --shift-sd 20 --resolution 12 --seed 2
    ace-em predict NEW/particles.star --run RUN -o NEW/poses.star
    python benchmarks/confidence.py RUN SEEN NEW

A pose is correct if it is within 15 degrees of the truth in the frame of the run's map.
"""

import argparse
from pathlib import Path

import torch

from ace_em.config import PredictConfig
from ace_em.data.particles import Particles
from ace_em.data.pose_columns import PROBABILITY
from ace_em.io.star import numeric_column, read_particle_star
from ace_em.maths.rotations import angular_distance_deg
from ace_em.metrics.alignment import align_poses, apply_frame
from ace_em.physics.pose import Pose

EDGES = (0.0, 0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 1.0)


def poses(star: Path, images: Path) -> Pose:
    found = Particles.open(star, images).poses()
    assert found is not None, f"{star} has no poses"
    return found


def table(name: str, said: torch.Tensor, right: torch.Tensor) -> None:
    print(f"{name}: {len(said)} particles, {right.float().mean():.1%} right, {said.mean():.1%} said on average")
    for low, high in zip(EDGES, EDGES[1:], strict=False):
        inside = (said >= low) & (said < high)
        if inside.any():
            print(f"  said {low:4.2f} to {high:4.2f}: {int(inside.sum()):5d}, right {right[inside].float().mean():6.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("run", "seen", "new"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    own, true = poses(args.run / "poses.star", args.seen), poses(args.seen / "truth.star", args.seen)
    frame = align_poses(own, true)
    for name, star, folder in (("own", args.run / "poses.star", args.seen), ("new", args.new / "poses.star", args.new)):
        found = apply_frame(poses(star, folder), frame).rotation
        error = angular_distance_deg(found, poses(folder / "truth.star", folder).rotation)
        said = torch.from_numpy(numeric_column(read_particle_star(star), PROBABILITY))
        table(name, said, error < PredictConfig().distinct_deg)


if __name__ == "__main__":
    main()
