"""Noise-free images of a few Gaussian blobs, in closed form: not made with the decoder that is to learn them."""

import dataclasses

import pytest
import roma
import torch

from ace_em.data.working_set import TransferOptics, WorkingSet
from ace_em.maths.half_plane import HalfPlane
from ace_em.physics.ctf import CTFParameters
from ace_em.simulation.density import project_atoms
from ace_em.simulation.structure import Atoms

BOX, N = 16, 240


@pytest.fixture(scope="session")
def blobs() -> WorkingSet:
    generator = torch.Generator().manual_seed(0)
    position = torch.randn(12, 3, generator=generator).clamp(-1.5, 1.5) * torch.tensor([2.5, 2.0, 1.2])
    atoms = Atoms(position, 0.5 + torch.rand(12, generator=generator))
    half_plane = HalfPlane.within(BOX)
    clean = half_plane.gather(project_atoms(atoms, roma.random_rotmat(N, generator=generator), BOX, 1.0, 5.0))
    transfer = 0.4 + torch.cos(half_plane.radius * (0.2 + 0.3 * torch.rand(N, 1, generator=generator)))
    image_ft = 20 * clean * transfer
    return WorkingSet(half_plane, image_ft, transfer, torch.full((len(half_plane),), 0.1))


@pytest.fixture(scope="session")
def astigmatic_blobs(blobs: WorkingSet) -> WorkingSet:
    """The same projections through real optics, astigmatic ones, which can turn with the images."""
    generator, half_plane = torch.Generator().manual_seed(1), blobs.half_plane
    mean = 9000 + 3000 * torch.rand(N, generator=generator)
    half_spread, angle = 500 + 1500 * torch.rand(N, generator=generator), 180 * torch.rand(N, generator=generator)
    constants = (torch.full((N,), value) for value in (300.0, 2.7, 0.1, 0.0))
    optics = TransferOptics(
        CTFParameters(mean + half_spread, mean - half_spread, angle, *constants), 6.0, 3 + 0 * half_plane.radius
    )
    transfer = optics.transfer(half_plane)
    return dataclasses.replace(blobs, image_ft=blobs.image_ft / blobs.transfer * transfer, transfer=transfer, optics=optics)
