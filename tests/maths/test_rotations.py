"""Rotations: coverage of the SO(3) grid, half-turn alternatives, and distances."""

import math

import numpy as np
import pytest
import roma
import torch

from ace_em.maths.rotations import (
    HALF_TURNS,
    alternatives,
    angular_distance_deg,
    healpix_centres,
    healpix_pixel,
    so3_grid,
    squared_frobenius,
)


def random_rotations(n: int, seed: int = 0) -> torch.Tensor:
    return roma.random_rotmat(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_proper(rotation: torch.Tensor, atol: float) -> None:
    eye = torch.eye(3, dtype=rotation.dtype).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.mT, eye, atol=atol, rtol=0)
    torch.testing.assert_close(
        torch.linalg.det(rotation), torch.ones(rotation.shape[:-2], dtype=rotation.dtype), atol=atol, rtol=0
    )


@pytest.mark.parametrize("spacing_deg", [30.0, 15.0])
@pytest.mark.parametrize("turned", [False, True])
def test_grid_covers_so3(spacing_deg: float, turned: bool) -> None:
    grid = so3_grid(spacing_deg, torch.Generator().manual_seed(5) if turned else None)
    assert_proper(grid, 1e-5)
    # volume of SO(3) in units where a small cube of edge a (radians) has volume a^3: 8 pi^2
    expected = 8 * math.pi**2 / math.radians(spacing_deg) ** 3
    assert 0.7 * expected < len(grid) < 1.4 * expected
    random = random_rotations(1000).float()
    # trace(A^T B) = 1 + 2 cos(angle)
    trace = (random.flatten(1) @ grid.flatten(1).T).amax(1)
    nearest_deg = torch.rad2deg(torch.arccos(((trace - 1) / 2).clamp(-1, 1)))
    # the covering radius of a cubic grid is half the cell diagonal; HEALPix cells are slightly elongated
    assert nearest_deg.max() < 1.15 * spacing_deg
    assert 0.3 * spacing_deg < nearest_deg.mean() < 0.7 * spacing_deg


def test_grid_is_even() -> None:
    """For uniform rotations the mean of R is 0 and that of R_ij^2 is 1/3."""
    grid = so3_grid(15.0)
    torch.testing.assert_close(grid.mean(0), torch.zeros(3, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(grid.square().mean(0), torch.full((3, 3), 1 / 3), atol=5e-3, rtol=0)


def test_generator_rotates_the_whole_grid() -> None:
    plain, turned = so3_grid(30.0), so3_grid(30.0, torch.Generator().manual_seed(1))
    turn = turned @ plain.mT
    torch.testing.assert_close(turn, turn[:1].expand_as(turn), atol=1e-5, rtol=0)
    assert angular_distance_deg(turn[0], torch.eye(3)) > 1
    assert torch.equal(turned, so3_grid(30.0, torch.Generator().manual_seed(1)))
    assert not torch.allclose(turned, so3_grid(30.0, torch.Generator().manual_seed(2)))


def test_alternatives_are_half_turns_about_the_image_axes() -> None:
    rotation = random_rotations(5).reshape(5, 1, 3, 3)
    four = alternatives(rotation)
    assert four.shape == (5, 1, 4, 3, 3) and four.dtype == torch.float64
    assert_proper(four, 1e-12)
    torch.testing.assert_close(four[..., 0, :, :], rotation)
    relative = rotation[..., None, :, :].mT @ four
    half_turn = torch.tensor([0.0, math.pi, math.pi, math.pi], dtype=torch.float64)
    axis = torch.tensor([[0.0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    torch.testing.assert_close(relative[0, 0], roma.rotvec_to_rotmat(half_turn[:, None] * axis))
    # a group: the product of two alternatives is an alternative
    products = (HALF_TURNS[:, None] @ HALF_TURNS[None]).reshape(16, 1, 9)
    assert ((products - HALF_TURNS.reshape(1, 4, 9)).abs().amax(-1).amin(1) == 0).all()


@pytest.mark.parametrize(("dtype", "atol_deg"), [(torch.float32, 0.1), (torch.float64, 1e-5)])
def test_distances_are_those_of_the_angle(dtype: torch.dtype, atol_deg: float) -> None:
    angle_deg = torch.tensor([0.0, 1e-3, 10.0, 90.0, 179.9, 180.0], dtype=dtype)
    axis = torch.nn.functional.normalize(torch.tensor([1.0, -2.0, 0.5], dtype=dtype), dim=0)
    a = random_rotations(6).to(dtype)
    b = a @ roma.rotvec_to_rotmat(torch.deg2rad(angle_deg)[:, None] * axis)
    torch.testing.assert_close(angular_distance_deg(a, b), angle_deg, atol=atol_deg, rtol=0)
    torch.testing.assert_close(squared_frobenius(a, b), 8 * torch.sin(torch.deg2rad(angle_deg) / 2).square(), atol=1e-5, rtol=0)


def test_random_rotations_have_mean_squared_distance_6() -> None:
    a, b = random_rotations(20_000, 1), random_rotations(20_000, 2)
    # standard error 0.015
    assert squared_frobenius(a, b).mean() == pytest.approx(6, abs=0.06)


@pytest.mark.parametrize("n_side", [1, 2, 4, 16])
def test_pixel_centres_match_healpix(n_side: int) -> None:
    """Against astropy-healpix, which supports powers of 2."""
    from astropy_healpix import healpix_to_lonlat

    longitude, latitude = healpix_to_lonlat(np.arange(12 * n_side**2), n_side, order="ring")
    lon, lat = longitude.rad, latitude.rad
    wanted = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)
    centres = healpix_centres(n_side)
    torch.testing.assert_close(centres, torch.from_numpy(wanted), atol=1e-12, rtol=0)
    assert torch.equal(healpix_pixel(centres, n_side), torch.arange(12 * n_side**2))


@pytest.mark.parametrize("n_side", [3, 5, 11])
def test_pixels_of_any_number_have_the_same_area(n_side: int) -> None:
    """Centres are unit vectors with zero mean, and equally many random directions are nearest to each, within counting errors."""
    centres = healpix_centres(n_side)
    assert centres.shape == (12 * n_side**2, 3)
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(len(centres), dtype=torch.float64))
    torch.testing.assert_close(centres.T @ centres / len(centres), torch.eye(3, dtype=torch.float64) / 3, atol=2e-2, rtol=0)
    assert centres.mean(0).abs().max() < 1e-12
    some = torch.nn.functional.normalize(torch.randn(40000, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    counts = torch.bincount((some.double() @ centres.T).argmax(1), minlength=len(centres)) / (40000 / len(centres))
    assert 0.4 < counts.min() and counts.max() < 1.8
