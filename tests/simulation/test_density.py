"""Density of atoms against explicit sums and against gemmi."""

import math

import gemmi
import pytest
import roma
import torch
from torch import Tensor

from ace_em.maths.half_plane import HalfPlane
from ace_em.simulation.density import density_map, gaussian_sigma_angstrom, lay_points, project_atoms
from ace_em.simulation.structure import Atoms

F64 = torch.float64
PIXEL = 2.0


def some_atoms(n: int = 40, seed: int = 0, radius_angstrom: float = 16.0) -> Atoms:
    generator = torch.Generator().manual_seed(seed)
    position = torch.randn(n, 3, generator=generator, dtype=F64) * torch.tensor([9.0, 6.0, 4.0])
    position = position * (radius_angstrom / position.norm(dim=1, keepdim=True)).clamp(max=1)
    number = torch.tensor([6, 7, 8, 16])[torch.randint(4, (n,), generator=generator)]
    return Atoms(position, number.double())


def direct_sum(atoms: Atoms, box: int, sigma_angstrom: float) -> Tensor:
    """Gaussians of integral Z, sampled at the voxels; per voxel, not per cubic Angstrom."""
    axis = (torch.arange(box, dtype=F64) - box // 2) * PIXEL
    one = torch.exp(-(axis - atoms.position_angstrom[..., None]).square() / (2 * sigma_angstrom**2))
    one = one * PIXEL / (2 * math.pi * sigma_angstrom**2) ** 0.5
    return torch.einsum("a,az,ay,ax->zyx", atoms.weight, one[:, 2], one[:, 1], one[:, 0])


def test_sigma_is_molmaps() -> None:
    # ChimeraX: sigma = 0.225 * resolution
    assert gaussian_sigma_angstrom(6.0) == pytest.approx(0.225 * 6, rel=1e-3)


@pytest.mark.parametrize("box", [32, 33])
def test_density_is_the_sum_of_gaussians(box: int) -> None:
    resolution = 12.0
    atoms = some_atoms()
    truth = direct_sum(atoms, box, gaussian_sigma_angstrom(resolution))
    volume = density_map(atoms, box, PIXEL, resolution)
    assert volume.dtype == torch.float32
    torch.testing.assert_close(volume.double(), truth, atol=0.006 * truth.max().item(), rtol=0)
    assert volume.sum().item() == pytest.approx(atoms.weight.sum().item(), rel=1e-4)
    # z, y, x order, not x, y, z
    assert (volume.double() - truth.permute(2, 1, 0)).abs().max() > 0.2 * truth.max()


def test_density_matches_gemmi() -> None:
    """gemmi's neutron density with one Gaussian per atom, weighted by the atomic number."""
    # sigma is one pixel, so the density beyond Nyquist, which gemmi's sampling aliases, is small
    box, resolution = 40, 9.0
    atoms = some_atoms()
    sigma = gaussian_sigma_angstrom(resolution)
    scattering = {6: 6.646, 7: 9.36, 8: 5.803, 16: 2.847}
    model, chain, residue = gemmi.Model(1), gemmi.Chain("A"), gemmi.Residue()
    for position, weight in zip((atoms.position_angstrom + box // 2 * PIXEL).tolist(), atoms.weight.int().tolist(), strict=True):
        atom = gemmi.Atom()
        atom.element = gemmi.Element(weight)
        atom.pos = gemmi.Position(*position)
        atom.b_iso = 8 * math.pi**2 * sigma**2
        atom.occ = weight / scattering[weight]
        residue.add_atom(atom)
    chain.add_residue(residue)
    model.add_chain(chain)
    calculator = gemmi.DensityCalculatorN()
    calculator.cutoff = 1e-7
    calculator.grid.unit_cell = gemmi.UnitCell(*[box * PIXEL] * 3, 90, 90, 90)
    calculator.grid.spacegroup = gemmi.SpaceGroup("P1")
    calculator.grid.set_size(box, box, box)
    calculator.put_model_density_on_grid(model)
    theirs = torch.tensor(calculator.grid.array).permute(2, 1, 0).double()
    ours = density_map(atoms, box, PIXEL, resolution).double()
    assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.999
    assert (ours / PIXEL**3).max().item() == pytest.approx(theirs.max().item(), rel=0.03)


@pytest.mark.parametrize("box", [32, 33])
def test_projection_is_the_transform_of_rotated_atoms(box: int) -> None:
    resolution = 7.0
    atoms = some_atoms()
    rotation = roma.random_rotmat(4, generator=torch.Generator().manual_seed(1), dtype=F64)
    half_plane = HalfPlane.within(box)
    k = half_plane.k.double()
    phase = -2 * math.pi / (box * PIXEL) * torch.einsum("bji,aj,ki->bak", rotation[..., :2], atoms.position_angstrom, k)
    gaussian = torch.exp(-2 * (math.pi * gaussian_sigma_angstrom(resolution) / (box * PIXEL)) ** 2 * k.square().sum(1))
    truth = (torch.exp(1j * phase) * atoms.weight[:, None]).sum(1) * gaussian
    made = half_plane.gather(project_atoms(atoms, rotation, box, PIXEL, resolution))
    error = (made - truth).norm() / truth.norm()
    assert error < 0.01
    torch.testing.assert_close(made[:, 0].real, atoms.weight.sum().expand(4))
    single = half_plane.gather(project_atoms(atoms, rotation.float(), box, PIXEL, resolution))
    assert single.dtype == torch.complex64 and (single - made).norm() / made.norm() < 1e-4


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("n", [10, 11])
def test_lay_points_keeps_weight_and_centre(n: int, ndim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    position = torch.rand(30, ndim, generator=generator, dtype=F64) * 6 - 3
    weight = torch.rand(30, generator=generator, dtype=F64) + 0.5
    grid = lay_points(position, weight, n)
    assert grid.shape == (n,) * ndim
    torch.testing.assert_close(grid.sum(), weight.sum())
    axis = torch.arange(n, dtype=F64) - n // 2
    for d in range(ndim):
        others = tuple(a for a in range(ndim) if a != d)
        torch.testing.assert_close((grid.sum(others) * axis).sum(), (position[:, d] * weight).sum())


def test_points_on_nodes_and_outside() -> None:
    position = torch.tensor([[2.0, -1.0], [0.0, 0.0], [40.0, 0.0], [0.0, -40.0]])
    grid = lay_points(position, torch.tensor([3.0, 5.0, 7.0, 11.0]), 8)
    wanted = torch.zeros(8, 8)
    wanted[6, 3], wanted[4, 4] = 3, 5
    assert torch.equal(grid, wanted)
