"""Half-maps of opposite hands are brought to one hand; half-maps of one hand, of noise and without symmetry are left alone."""

from typing import Any

import pytest
import torch

from ace_em.maths.point_group import axes_after_mirror, point_group
from ace_em.maths.rotations import angular_distance_deg
from ace_em.maths.slices import volume_to_ft
from ace_em.metrics.alignment import Frame, apply_frame
from ace_em.physics.imaging import project
from ace_em.physics.pose import Pose
from ace_em.refinement.backprojection import Halves
from ace_em.refinement.half_sets import HalfSets, HalfSetState, first_state, next_round
from ace_em.refinement.hand import of_one_hand
from volumes import symmetrise_volume

N = 120


def halves_of(particle: Any, name: str, mirror_second: bool, brightness: float = 10.0) -> tuple[HalfSets, HalfSetState, Pose]:
    """Maps of two half-sets of a particle with a point group at its true poses, those of half 2 mirrored or not."""
    p, group = particle(N, box=24, noise=1.0, brightness=brightness), point_group(name).float()
    volume = symmetrise_volume(p.volume, group)
    clean = project(volume_to_ft(volume), p.images.effective_ctf, p.images.half_plane, p.pose)
    noise = p.images.image_ft - project(volume_to_ft(p.volume), p.images.effective_ctf, p.images.half_plane, p.pose)
    half_set = 1 + torch.arange(N) % 2
    sets = HalfSets(p.images.with_images(clean + noise), half_set, p.mask, group)
    pose = p.pose
    if mirror_second:
        frame = Frame(axes_after_mirror(group.double()).float(), True, torch.zeros(3))
        second, rotation, shift = half_set == 2, pose.rotation.clone(), pose.shift_px.clone()
        other = apply_frame(pose[second], frame)
        rotation[second], shift[second] = other.rotation, other.shift_px
        pose = Pose(rotation, shift)
    nothing = torch.zeros(24, 24, 24)
    before = first_state(sets.stack, pose, Halves(*[nothing] * 3, torch.ones(13), *[nothing] * 2, torch.ones(13)), 8.0)
    return sets, next_round(sets, before, 8.0, None), p.pose


@pytest.mark.parametrize("name", ["D2", "T", "O"])
def test_half_2_of_the_other_hand_is_mirrored(particle: Any, name: str) -> None:
    sets, state, true = halves_of(particle, name, mirror_second=True)
    found = of_one_hand(sets, state)
    assert angular_distance_deg(found.pose.rotation, true.rotation).max() < 3
    assert found.halves.fsc[2:9].min() > max(0.9, state.halves.fsc[2:9].min() + 0.1)
    assert torch.equal(found.pose.rotation[::2], state.pose.rotation[::2])


@pytest.mark.parametrize(("name", "mirror_second", "brightness"), [("D2", False, 10.0), ("D2", True, 0.0), ("C1", True, 10.0)])
def test_others_are_left_alone(particle: Any, name: str, mirror_second: bool, brightness: float) -> None:
    sets, state, _ = halves_of(particle, name, mirror_second, brightness)
    assert of_one_hand(sets, state) is state
