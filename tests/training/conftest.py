"""Noise-free images of a few Gaussian blobs in closed form, independent of the decoders."""

import pytest
import roma
import torch

from ace_em.data.particle_stack import ParticleStack
from ace_em.maths.half_plane import HalfPlane
from ace_em.physics.ctf import CTFParameters, ctf
from ace_em.physics.noise import NoiseModel
from ace_em.simulation.density import project_atoms
from ace_em.simulation.structure import Atoms
from stacks import FixedStack, stack_of

BOX, N = 16, 240


@pytest.fixture(scope="session")
def blobs() -> FixedStack:
    generator = torch.Generator().manual_seed(0)
    position = torch.randn(12, 3, generator=generator).clamp(-1.5, 1.5) * torch.tensor([2.5, 2.0, 1.2])
    atoms = Atoms(position, 0.5 + torch.rand(12, generator=generator))
    half_plane = HalfPlane.within(BOX)
    clean = half_plane.gather(project_atoms(atoms, roma.random_rotmat(N, generator=generator), BOX, 1.0, 5.0))
    effective_ctf = 0.4 + torch.cos(half_plane.radius * (0.2 + 0.3 * torch.rand(N, 1, generator=generator)))
    return FixedStack.of(half_plane, 20 * clean * effective_ctf, effective_ctf, 0.1)


@pytest.fixture(scope="session")
def astigmatic_blobs(blobs: FixedStack) -> ParticleStack:
    """The same projections with astigmatic CTFs, which rotate with the images."""
    generator, half_plane = torch.Generator().manual_seed(1), blobs.half_plane
    mean = 9000 + 3000 * torch.rand(N, generator=generator)
    half_spread, angle = 500 + 1500 * torch.rand(N, generator=generator), 180 * torch.rand(N, generator=generator)
    constants = (torch.full((N,), value) for value in (300.0, 2.7, 0.1, 0.0))
    parameters = CTFParameters(mean + half_spread, mean - half_spread, angle, *constants)
    # noise of a ninth of the power: a gain of 3
    noise = NoiseModel(torch.full((1, BOX // 2 + 1), 1 / 9), torch.full((1, BOX // 2 + 1), 0.1))
    images = blobs.image_ft / blobs.effective_ctf * ctf(parameters, half_plane, 6.0)
    return stack_of(half_plane, images, parameters, 6.0, noise)
