"""Poses: conversion from and to RELION's angles, and the opposite hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ace_em.maths.rotations import angular_distance_deg
from ace_em.physics.pose import Pose, relion_angles_to_rotmat, rotmat_to_relion_angles
from ace_em.physics.projection import line_integral

DEGREES = st.floats(-360, 360, allow_nan=False)


def written_out(rot: float, tilt: float, psi: float) -> Tensor:
    """Rz(rot) Ry(tilt) Rz(psi), the transpose of the matrix in RELION's euler.cpp, element by element."""
    a, b, g = (math.radians(x) for x in (rot, tilt, psi))
    ca, cb, cg, sa, sb, sg = math.cos(a), math.cos(b), math.cos(g), math.sin(a), math.sin(b), math.sin(g)
    relion = [
        [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
        [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
        [sb * ca, sb * sa, cb],
    ]
    return torch.tensor(relion, dtype=torch.float64).T


@given(DEGREES, DEGREES, DEGREES)
@settings(max_examples=60, deadline=None)
def test_relion_angles(rot: float, tilt: float, psi: float) -> None:
    angles = torch.tensor([rot, tilt, psi], dtype=torch.float64)
    rotation = relion_angles_to_rotmat(angles)
    torch.testing.assert_close(rotation, written_out(rot, tilt, psi), atol=1e-12, rtol=0)
    back = relion_angles_to_rotmat(rotmat_to_relion_angles(rotation))
    torch.testing.assert_close(back, rotation, atol=1e-6, rtol=0)


@pytest.mark.parametrize("tilt", [0.0, 1e-6, 90.0, 179.9999, 180.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_angles_of_a_batch_at_the_poles(tilt: float, dtype: torch.dtype) -> None:
    angles = torch.tensor([[30.0, tilt, -50.0], [-170.0, tilt, 100.0], [0.0, tilt, 0.0]], dtype=dtype)
    rotation = relion_angles_to_rotmat(angles)
    recovered = rotmat_to_relion_angles(rotation)
    assert recovered.dtype == dtype and recovered.isfinite().all()
    distance = angular_distance_deg(relion_angles_to_rotmat(recovered).double(), rotation.double())
    assert distance.max() < (0.05 if dtype == torch.float32 else 1e-4)
    assert ((recovered[:, 1] >= 0) & (recovered[:, 1] <= 180)).all()


@pytest.mark.parametrize("box", [20, 21])
def test_mirrored_pose_gives_the_same_image_of_the_reflected_volume(box: int) -> None:
    generator = torch.Generator().manual_seed(0)
    volume = torch.zeros(box, box, box, dtype=torch.float64)
    points = torch.randint(-4, 5, (25, 3), generator=generator) + box // 2
    volume[points[:, 0], points[:, 1], points[:, 2]] = torch.rand(25, generator=generator, dtype=torch.float64) + 1
    reflected = volume[(2 * (box // 2) - torch.arange(box)) % box]
    pose = Pose(relion_angles_to_rotmat(torch.rand(6, 3, generator=generator, dtype=torch.float64) * 180), torch.randn(6, 2))
    images = line_integral(volume, pose.rotation)
    torch.testing.assert_close(line_integral(reflected, pose.mirrored().rotation), images)
    assert torch.equal(pose.mirrored().shift_px, pose.shift_px)
    torch.testing.assert_close(pose.mirrored().mirrored().rotation, pose.rotation)
    # the mirrored volume is different: the original pose does not give the image
    assert (line_integral(reflected, pose.rotation) - images).abs().max() > 0.5


def test_pose_operations_act_on_rotation_and_shift() -> None:
    pose = Pose(torch.arange(27.0).view(3, 3, 3), torch.tensor([[1.0, 2], [3, 4], [5, 6]]))
    assert len(pose) == 3
    assert torch.equal(pose[1:].shift_px, torch.tensor([[3.0, 4], [5, 6]])) and torch.equal(
        pose[1:].rotation[0], pose.rotation[1]
    )
    assert torch.equal(pose.rescaled(0.5).shift_px, pose.shift_px / 2) and torch.equal(pose.rescaled(0.5).rotation, pose.rotation)
    joined = Pose.cat([pose[2:], pose[:1]])
    assert torch.equal(joined.shift_px, torch.tensor([[5.0, 6], [1, 2]])) and torch.equal(joined.rotation[1], pose.rotation[0])
