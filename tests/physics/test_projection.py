"""One projection computed in three ways: line integral, central slice, and Gaussian atoms in closed form."""

import math
from collections.abc import Callable

import pytest
import roma
import torch
from torch import Tensor

from ace_em.maths.half_plane import HalfPlane
from ace_em.physics.pose import relion_angles_to_rotmat
from ace_em.physics.projection import fourier_projection, line_integral
from ace_em.simulation.density import density_map, project_atoms
from ace_em.simulation.structure import Atoms

F64 = torch.float64
RIGHT_ANGLES = torch.tensor(
    [[0.0, 0, 0], [90, 0, 0], [0, 90, 0], [0, 0, 90], [90, 90, 0], [180, 90, 270], [0, 180, 0]], dtype=F64
)
BOXES = (32, 33)


def atoms_px() -> tuple[Tensor, Tensor]:
    """Positions (x, y, z) in pixels, within 6 of the centre, and weights, without symmetry and off centre."""
    generator = torch.Generator().manual_seed(3)
    position = torch.randn(15, 3, generator=generator, dtype=F64).clamp(-1.7, 1.7) * torch.tensor([3.0, 2.0, 1.4]) + 0.6
    return position, 1 + 7 * torch.rand(15, generator=generator, dtype=F64)


def gaussian_volume(box: int, sigma: float) -> Tensor:
    position, weight = atoms_px()
    axis = torch.arange(box, dtype=F64) - box // 2
    one = torch.exp(-(axis - position[..., None]).square() / (2 * sigma**2)) / (2 * math.pi * sigma**2) ** 0.5
    return torch.einsum("a,az,ay,ax->zyx", weight, one[:, 2], one[:, 1], one[:, 0])


def gaussian_images(box: int, sigma: float, rotation: Tensor) -> Tensor:
    """The images in closed form: atoms are at the first two components of R^T p."""
    position, weight = atoms_px()
    axis = torch.arange(box, dtype=F64) - box // 2
    x, y, _ = torch.einsum("bji,aj->iba", rotation, position)
    gaussian = [torch.exp(-(axis - c[..., None]).square() / (2 * sigma**2)) / (2 * math.pi * sigma**2) ** 0.5 for c in (y, x)]
    return torch.einsum("a,bay,bax->byx", weight, *gaussian)


def largest_error(images: Tensor, truth: Tensor) -> float:
    """Largest difference in units of the brightest pixel."""
    return ((images - truth).abs().max() / truth.max()).item()


@pytest.mark.parametrize("box", BOXES)
def test_one_bright_voxel(box: int) -> None:
    """With right-angle rotations a voxel at p projects exactly to R^T p."""
    rotation = relion_angles_to_rotmat(RIGHT_ANGLES)
    p = torch.tensor([5, -3, 7])
    volume = torch.zeros(box, box, box, dtype=F64)
    volume[box // 2 + p[2], box // 2 + p[1], box // 2 + p[0]] = 1
    x, y, _ = (rotation.mT @ p.double()).round().long().T + box // 2
    wanted = torch.zeros(len(rotation), box, box, dtype=F64)
    wanted[torch.arange(len(rotation)), y, x] = 1
    torch.testing.assert_close(line_integral(volume, rotation), wanted, atol=1e-9, rtol=0)
    peaks = fourier_projection(volume, rotation).flatten(1).argmax(1)
    assert torch.equal(peaks, y * box + x)
    # the seven views differ
    assert len(set(zip(x.tolist(), y.tolist(), strict=True))) >= 5


def test_what_rot_tilt_and_psi_do() -> None:
    """A voxel on +x, by hand: tilt 90 moves it along the beam, rot 90 to -y, psi 90 to -y."""
    box = 16
    volume = torch.zeros(box, box, box, dtype=F64)
    volume[8, 8, 8 + 4] = 1
    seen = line_integral(volume, relion_angles_to_rotmat(torch.tensor([[0.0, 90, 0], [90, 0, 0], [0, 0, 90]], dtype=F64)))
    for image, (y, x) in zip(seen, ((0, 0), (-4, 0), (-4, 0)), strict=True):
        assert image[8 + y, 8 + x] == pytest.approx(1)


@pytest.mark.parametrize("box", BOXES)
def test_line_integral_against_closed_form(box: int) -> None:
    # with right-angle rotations samples coincide with voxels: the only error is the sum over z for the integral
    right = relion_angles_to_rotmat(RIGHT_ANGLES)
    assert largest_error(line_integral(gaussian_volume(box, 1.5), right), gaussian_images(box, 1.5, right)) < 1e-6
    # otherwise trilinear interpolation blurs by up to 1/4 px^2 per axis, which matters less for wider Gaussians
    rotation = roma.random_rotmat(6, generator=torch.Generator().manual_seed(1), dtype=F64)
    assert largest_error(line_integral(gaussian_volume(box, 1.5), rotation), gaussian_images(box, 1.5, rotation)) < 0.06
    assert largest_error(line_integral(gaussian_volume(box, 2.2), rotation), gaussian_images(box, 2.2, rotation)) < 0.035


@pytest.mark.parametrize("box", BOXES)
def test_fourier_projection_against_closed_form(box: int) -> None:
    rotation = roma.random_rotmat(6, generator=torch.Generator().manual_seed(1), dtype=F64)
    volume, truth = gaussian_volume(box, 1.5), gaussian_images(box, 1.5, rotation)
    assert largest_error(fourier_projection(volume, rotation, pad=2), truth) < 0.005
    assert largest_error(fourier_projection(volume, rotation, pad=4), truth) < 0.0012
    assert largest_error(fourier_projection(volume.float(), rotation.float(), pad=4), truth) < 0.0012
    # the transpose is the inverse rotation
    assert largest_error(fourier_projection(volume, rotation.mT.contiguous(), pad=4), truth) > 0.3


@pytest.mark.parametrize("box", BOXES)
def test_project_atoms_against_closed_form(box: int) -> None:
    rotation = roma.random_rotmat(6, generator=torch.Generator().manual_seed(1), dtype=F64)
    pixel, sigma = 2.5, 1.5
    atoms = Atoms(atoms_px()[0] * pixel, atoms_px()[1])
    resolution = sigma * pixel * math.pi * math.sqrt(2)
    half_plane = HalfPlane.within(box)
    images = half_plane.to_image(half_plane.gather(project_atoms(atoms, rotation, box, pixel, resolution)))
    assert largest_error(images, gaussian_images(box, sigma, rotation)) < 0.005
    assert largest_error(density_map(atoms, box, pixel, resolution), gaussian_volume(box, sigma)) < 0.005


@pytest.mark.parametrize("project", [line_integral, fourier_projection])
def test_projection_keeps_the_sum_and_is_linear(project: Callable[[Tensor, Tensor], Tensor]) -> None:
    rotation = roma.random_rotmat(4, generator=torch.Generator().manual_seed(2), dtype=F64)
    volume = gaussian_volume(32, 1.5)
    images = project(volume, rotation)
    # zero frequency is read at a grid point, where interpolation does not cancel 1 / sinc^2: 1.6 % too much
    torch.testing.assert_close(images.sum((1, 2)), volume.sum().expand(4), rtol=0.02, atol=0)
    torch.testing.assert_close(project(volume * -2, rotation), images * -2)
