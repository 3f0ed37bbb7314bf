"""A decoder without symmetry and noise-free images of it."""

from dataclasses import dataclass

import pytest
import roma
import torch

from ace_em.data.particle_stack import Batch
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.slices import volume_to_ft
from ace_em.models.decoder import Projector
from ace_em.models.voxel_grid import VoxelGrid
from ace_em.physics.imaging import project
from ace_em.physics.pose import Pose

BOX = 16


@dataclass(frozen=True)
class Planted:
    """Images made from ``decoder`` at ``pose``."""

    decoder: VoxelGrid
    images: Batch
    pose: Pose

    @property
    def project(self) -> Projector:
        return self.decoder.projector()

    @property
    def power(self) -> float:
        return self.images.image_ft.abs().square().sum(-1).mean().item()


@pytest.fixture
def planted() -> Planted:
    generator = torch.Generator().manual_seed(0)
    decoder = VoxelGrid(BOX, 6.0, 1.8)
    z, y, x = torch.meshgrid(*[torch.arange(BOX) - BOX // 2] * 3, indexing="ij")
    with torch.no_grad():
        decoder.density *= 1 + 0.5 * x - 0.3 * y + 0.2 * x * z + 0.15 * y * z
    n, half_plane = 24, HalfPlane.within(BOX)
    pose = Pose(roma.random_rotmat(n, generator=generator), torch.randn(n, 2, generator=generator))
    transfer = 0.3 + torch.cos(half_plane.radius * (0.3 + torch.rand(n, 1, generator=generator)))
    with torch.no_grad():
        image_ft = project(volume_to_ft(decoder.volume()), transfer, half_plane, pose)
    return Planted(decoder, Batch(half_plane, image_ft, transfer, torch.ones(n, len(half_plane))), pose)
