"""Share of right poses of a pseudo-symmetric particle after a refinement, with and without relaxation of the symmetry.

python benchmarks/relax_symmetry.py SET --symmetry C3 --diameter 200

SET is a folder of ``ace-em simulate``. A share of the true poses is turned about the axes found in the map at the true poses.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from ace_em.config import RefineConfig
from ace_em.data.particles import Particles
from ace_em.data.preprocess import read_stack
from ace_em.data.split import half_sets
from ace_em.data.survey import survey
from ace_em.maths.masks import ball_radius_px, soft_ball
from ace_em.maths.point_group import point_group
from ace_em.maths.rotations import angular_distance_deg
from ace_em.metrics.alignment import align_poses, apply_frame
from ace_em.physics.pose import Pose
from ace_em.refinement.half_sets import HalfSets, next_round, refine_half_sets, shared_start
from ace_em.refinement.symmetry import find_axes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path)
    parser.add_argument("--symmetry", default="C3")
    parser.add_argument("--turned", type=float, default=1 / 3)
    parser.add_argument("--diameter", type=float, required=True, help="Angstrom")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random, group = torch.Generator().manual_seed(args.seed), point_group(args.symmetry).float()
    particles, true = Particles.open(args.set / "particles.star"), Particles.open(args.set / "truth.star").poses()
    assert true is not None
    n, box = len(particles), particles.box
    stack = read_stack(particles, survey(particles, 1.0, args.seed), box)
    mask = soft_ball(box, ball_radius_px(box, args.diameter / particles.pixel_size_angstrom))
    plain = HalfSets(stack, torch.from_numpy(half_sets(n, args.seed)), mask, torch.eye(3)[None])
    first = next_round(plain, shared_start(stack, torch.zeros(box, box, box), true, 10.0), 10.0, None)
    axes = find_axes(first.halves.combined, group, first.fsc143_shell, random)
    true = apply_frame(true, axes.frame)
    print(f"{args.symmetry}: correlation of the map with its copies {axes.correlation:.2f}")
    turned = torch.rand(n, generator=random) < args.turned
    copy = torch.where(turned, torch.randint(1, len(group), (n,), generator=random), 0)
    start = shared_start(stack, first.halves.combined, Pose(group[copy] @ true.rotation, true.shift_px), 10.0)
    for name, sets in (("plain", plain), ("relaxed", replace(plain, copies=group))):
        began = time.process_time()
        for number, state in enumerate(refine_half_sets(sets, [start], RefineConfig()), 1):
            found = apply_frame(state.pose, align_poses(state.pose, true))
            right = (angular_distance_deg(found.rotation, true.rotation) < 10).float().mean()
            spent = f"{state.changed_copy.sum()} changed copy, {time.process_time() - began:.0f} s of CPU"
            print(f"{name}, round {number}: {right:.2%} within 10 degrees, {spent}")


if __name__ == "__main__":
    main()
