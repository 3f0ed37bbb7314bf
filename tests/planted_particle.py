"""A known volume and images of it, made with the reference's own slices (exact) or in closed form from its atoms."""

from dataclasses import dataclass

import roma
import torch
from torch import Tensor

from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.masks import soft_ball
from ace_em.maths.slices import VolumeFT, volume_to_ft
from ace_em.physics.imaging import image_of_slice, project
from ace_em.physics.pose import Pose
from ace_em.simulation.density import density_map, project_atoms
from ace_em.simulation.structure import Atoms
from stacks import FixedStack


@dataclass(frozen=True)
class Particle:
    """``images`` of ``volume`` at ``pose``, with unit noise or none."""

    volume: Tensor
    images: FixedStack
    pose: Pose
    mask: Tensor

    @property
    def volume_ft(self) -> VolumeFT:
        return volume_to_ft(self.volume)

    def double(self) -> "Particle":
        """The same in float64: what is computed from it is the algebra itself, whatever the processor."""
        pose = Pose(self.pose.rotation.double(), self.pose.shift_px.double())
        return Particle(self.volume.double(), self.images.double(), pose, self.mask.double())


def make_particle(
    n: int, box: int = 20, seed: int = 0, noise: float = 0.0, brightness: float = 10.0, closed_form: bool = False
) -> Particle:
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(17)
    position = torch.randn(25, 3, generator=fixed).clamp(-1.6, 1.6) * torch.tensor([3.6, 3.0, 2.4]) * (box / 24)
    # holes beside peaks: without them the mean, which is the same from everywhere, outweighs all else
    atoms = Atoms(position, brightness * (1.5 * torch.rand(25, generator=fixed) - 0.5))
    volume = density_map(atoms, box, 1.0, 4.0)
    half_plane = HalfPlane.within(box)
    pose = Pose(roma.random_rotmat(n, generator=generator), 0.7 * torch.randn(n, 2, generator=generator))
    # zeros at a different place in every image
    effective_ctf = torch.cos(half_plane.radius * (0.25 + 0.3 * torch.rand(n, 1, generator=generator)) - 0.6)
    if closed_form:
        clean = half_plane.gather(project_atoms(atoms, pose.rotation, box, 1.0, 4.0))
        image_ft = image_of_slice(clean, effective_ctf, half_plane, pose.shift_px)
    else:
        image_ft = project(volume_to_ft(volume), effective_ctf, half_plane, pose)
    parts = torch.randn(*image_ft.shape, 2, generator=generator) * 0.5**0.5
    image_ft = image_ft + noise * torch.view_as_complex(parts)
    images = FixedStack.of(half_plane, image_ft, effective_ctf, noise**2)
    return Particle(volume, images, pose, soft_ball(box, box / 2 - 2))
