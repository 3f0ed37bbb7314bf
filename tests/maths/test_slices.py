"""Central slices: one bright voxel, another library, the adjoint, gradients, and an explicit slow insertion."""

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import roma
import torch
from torch import Tensor
from torch_fourier_slice import project_3d_to_2d

from ace_em.maths.fourier import centred_fft, resize
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.rotations import alternatives
from ace_em.maths.slices import (
    VolumeFT,
    central_slices,
    complete_hermitian_,
    ft_to_volume,
    insert_slices,
    padded_size,
    sample,
    volume_to_ft,
)

F64 = torch.float64


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rotations(n: int, seed: int = 0) -> Tensor:
    return roma.random_rotmat(n, generator=generator(seed), dtype=F64)


def half_plane64(box: int, max_radius: float | None = None) -> HalfPlane:
    half_plane = HalfPlane.within(box, max_radius)
    return HalfPlane(box, half_plane.k.double(), half_plane.radius.double())


def smooth_volume(box: int, seed: int = 0, n_blobs: int = 12, sigma: float = 1.7) -> Tensor:
    """Gaussians well inside the box, without symmetry."""
    axis = torch.arange(box, dtype=F64) - box // 2
    centres = (
        torch.randn(n_blobs, 3, generator=generator(seed), dtype=F64).clamp(-1.5, 1.5) * torch.tensor([3.5, 2.5, 1.8]) * box / 32
    )
    weights = 1 + torch.rand(n_blobs, generator=generator(seed + 1), dtype=F64)
    one = torch.exp(-(axis - centres[..., None]).square() / (2 * sigma**2))
    return torch.einsum("a,az,ay,ax->zyx", weights, one[:, 2], one[:, 1], one[:, 0])


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Real inner product of complex or real arrays."""
    return (a * b.conj()).real.sum() if a.is_complex() else (a * b).sum()


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """The CPU code path depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("box", [16, 17])
def test_one_bright_voxel(box: int) -> None:
    """A voxel at p gives the wave exp(-2 pi i k . R^T p / n) for any rotation, which fixes axis order, sign and centre."""
    half_plane = half_plane64(box)
    rotation = rotations(20)
    for p in ((3, 0, 0), (0, 2, 0), (0, 0, 4), (-3, 2, 1)):
        volume = torch.zeros(box, box, box, dtype=F64)
        volume[box // 2 + p[2], box // 2 + p[1], box // 2 + p[0]] = 2
        slices = central_slices(volume_to_ft(volume, 4), half_plane, rotation)
        where = rotation.mT @ torch.tensor(p, dtype=F64)
        wanted = 2 * torch.exp(-2j * math.pi / box * (where[:, :2] @ half_plane.k.T))
        torch.testing.assert_close(slices, wanted, atol=0.035, rtol=0)
        assert (slices - wanted.conj()).abs().max() > 1.5


@pytest.mark.parametrize("box", [16, 17])
def test_unrotated_slice_is_the_sum_along_z(box: int) -> None:
    """At the identity nothing is interpolated, so the projection is exact apart from the gridding correction."""
    half_plane = half_plane64(box)
    volume = smooth_volume(box, sigma=1.2)
    slices = central_slices(volume_to_ft(volume / volume.sum(), 2), half_plane, torch.eye(3, dtype=F64))
    # the difference is 1 / sinc^2, which interpolation between grid points would cancel
    size = padded_size(box, 2)
    axis = 1 / torch.sinc((torch.arange(box, dtype=F64) - box // 2) / size).square()
    corrected = volume / volume.sum() * axis[:, None, None] * axis[:, None] * axis
    torch.testing.assert_close(slices, half_plane.from_image(corrected.sum(0)), atol=1e-12, rtol=0)


def test_against_torch_fourier_slice() -> None:
    box = 32
    volume, rotation = smooth_volume(box).float(), rotations(8).float()
    half_plane = HalfPlane.within(box)
    # both interpolate, in different ways: with padding 2 they differ by 0.5 % of the maximum, with 4 by 0.13 %
    ours = half_plane.to_image(central_slices(volume_to_ft(volume, 4), half_plane, rotation))
    theirs = project_3d_to_2d(volume, rotation, pad_factor=4.0, zyx_matrices=False)
    torch.testing.assert_close(ours, theirs, atol=2e-3 * theirs.max().item(), rtol=0)
    turned_back = project_3d_to_2d(volume, rotation.mT, pad_factor=4.0, zyx_matrices=False)
    assert (ours - turned_back).abs().max() > 0.2 * theirs.max()


def test_padding_improves_accuracy() -> None:
    """Against one off-centre Gaussian in closed form: the error decreases with the padding."""
    box, sigma = 24, 1.5
    centre = torch.tensor([4.0, -3.0, 2.0], dtype=F64)
    axis = torch.arange(box, dtype=F64) - box // 2
    one = [torch.exp(-(axis - c).square() / (2 * sigma**2)) for c in centre]
    volume = one[2][:, None, None] * one[1][:, None] * one[0] / (2 * math.pi * sigma**2) ** 1.5
    half_plane, rotation = half_plane64(box), rotations(30)
    where = rotation.mT @ centre
    gaussian = torch.exp(-2 * (math.pi * sigma * half_plane.radius / box).square())
    exact = torch.exp(-2j * math.pi / box * (where[:, :2] @ half_plane.k.T)) * gaussian
    error = {
        pad: (central_slices(volume_to_ft(volume, pad), half_plane, rotation) - exact).abs().square().mean().sqrt()
        for pad in (1, 2, 4)
    }
    assert error[4] < 0.35 * error[2] < 0.35 * 0.35 * error[1]
    assert error[2] < 0.008 and error[4] < 0.002


def test_alternatives_rotate_and_mirror_the_image() -> None:
    box = 20
    half_plane = half_plane64(box, 8)
    volume_ft = volume_to_ft(smooth_volume(box))
    image, half_turn, back_x, back_y = central_slices(volume_ft, half_plane, alternatives(rotations(4))).unbind(1)
    torch.testing.assert_close(half_turn, image.conj())
    # view from the back, about x: y is reversed; about y: x is reversed
    mirrored = half_plane.to_image(image).flip(1).roll(1, 1)
    torch.testing.assert_close(half_plane.to_image(back_x), mirrored)
    torch.testing.assert_close(half_plane.to_image(back_y), half_plane.to_image(image).flip(2).roll(1, 2))
    assert (half_plane.to_image(image) - mirrored).abs().max() > 0.1


def test_sample_covers_all_of_fourier_space() -> None:
    """Frequencies outside the plane, against the transform at grid points; Hermitian by construction."""
    box = 12
    volume = torch.randn(box, box, box, generator=generator(0), dtype=F64)
    volume_ft = volume_to_ft(volume, 2)
    grid = torch.tensor(list(itertools.product(range(-5, 6), repeat=3)), dtype=F64)
    read = sample(volume_ft, grid, torch.eye(3, dtype=F64))
    torch.testing.assert_close(sample(volume_ft, -grid, torch.eye(3, dtype=F64)), read.conj())
    axis = 1 / torch.sinc((torch.arange(box, dtype=F64) - box // 2) / 24).square()
    whole = centred_fft(volume * axis[:, None, None] * axis[:, None] * axis, 3)
    index = (grid.long() + box // 2).flip(-1).unbind(-1)
    torch.testing.assert_close(read, whole[index])


def test_batch_shapes_and_dtypes() -> None:
    volume = smooth_volume(16)
    rotation = rotations(6)
    wanted = central_slices(volume_to_ft(volume), half_plane64(16), rotation)
    half_plane = HalfPlane.within(16)
    single = central_slices(volume_to_ft(volume.float()), half_plane, rotation.float().view(2, 3, 3, 3))
    assert single.dtype == torch.complex64 and single.shape == (2, 3, len(half_plane))
    torch.testing.assert_close(single.flatten(0, 1).to(wanted.dtype), wanted, atol=1e-4 * wanted.abs().max().item(), rtol=0)


@pytest.mark.parametrize("box", [10, 11])
def test_insertion_is_the_adjoint(box: int, threads: int) -> None:
    """<S v, y> = <v, S* y>."""
    half_plane, rotation = half_plane64(box), rotations(6)
    size = padded_size(box, 2)
    v = torch.randn(2, size + 1, size + 1, size // 2 + 1, generator=generator(1), dtype=F64)
    y = torch.randn(6, len(half_plane), generator=generator(2), dtype=torch.complex128)
    weights = torch.randn(6, len(half_plane), generator=generator(3), dtype=F64)
    inserted = insert_slices(y, weights, half_plane, rotation, size)
    assert inserted.shape == (3, size + 1, size + 1, size // 2 + 1)
    left = inner(central_slices(VolumeFT(v, box), half_plane, rotation), y)
    torch.testing.assert_close(left, inner(v, inserted[:2]), atol=1e-10, rtol=1e-12)
    # weights are inserted like real parts
    torch.testing.assert_close(inserted[2], insert_slices(weights + 0j, weights, half_plane, rotation, size)[0])
    torch.testing.assert_close(inserted[2].sum(), weights.sum())


def slow_insertion(values: Tensor, weights: Tensor, half_plane: HalfPlane, rotation: Tensor, size: int) -> Tensor:
    """Explicit insertion (3, P + 1, P + 1, P + 1) of every coefficient and its Hermitian partner into a full transform."""
    out = torch.zeros(3, size + 1, size + 1, size + 1, dtype=F64)
    for sign in (1, -1):
        for matrix, value_row, weight_row in zip(rotation, values, weights, strict=True):
            for k, value, weight in zip(half_plane.k3, value_row, weight_row, strict=True):
                point = sign * (matrix @ k) * (size / half_plane.box) + size // 2
                low = point.floor().long()
                for corner in itertools.product((0, 1), repeat=3):
                    node = low + torch.tensor(corner)
                    share = (1 - (point - node).abs()).clamp(min=0).prod()
                    if share > 0:
                        x, y, z = node.tolist()
                        out[:, z, y, x] += share * torch.stack([value.real, sign * value.imag, weight])
    return out


def test_hermitian_symmetry_of_the_insertion() -> None:
    box, size = 6, 12
    half_plane, rotation = half_plane64(box), rotations(3)
    values = half_plane.from_image(torch.randn(3, box, box, generator=generator(0), dtype=F64))
    weights = torch.rand(3, len(half_plane), generator=generator(1), dtype=F64)
    completed = complete_hermitian_(insert_slices(values, weights, half_plane, rotation, size))
    wanted = slow_insertion(values, weights, half_plane, rotation, size)[..., size // 2 :]
    # the outermost planes are the duplicated Nyquist planes
    torch.testing.assert_close(completed[:, 1:-1, 1:-1], wanted[:, 1:-1, 1:-1], atol=1e-12, rtol=0)
    plane = torch.complex(completed[0], completed[1])[..., 0]
    torch.testing.assert_close(plane, plane.flip(0, 1).conj())
    assert plane.abs().max() > 1


def test_duplicated_nyquist_planes_are_summed() -> None:
    grid = torch.randn(3, 9, 9, 5, generator=generator(0), dtype=F64)
    before = grid.clone()
    completed = complete_hermitian_(grid.clone())
    assert torch.equal(grid, before)
    torch.testing.assert_close(completed[:, 0, 1:-1, 1:], (grid[:, 0] + grid[:, -1])[:, 1:-1, 1:])
    assert torch.equal(completed[:, 0], completed[:, -1]) and torch.equal(completed[:, :, 0], completed[:, :, -1])


@pytest.mark.parametrize("box", [12, 13])
def test_ft_to_volume_corrects_for_the_interpolation(box: int) -> None:
    """Insertion spreads a point by a triangle, which multiplies the volume by sinc^2; the correction divides by it."""
    size = padded_size(box, 2)
    volume = smooth_volume(box)
    axis = torch.sinc((torch.arange(size, dtype=F64) - size // 2) / size).square()
    spread = resize(volume, size, 3) * axis[:, None, None] * axis[:, None] * axis
    whole = centred_fft(spread, 3)
    whole = torch.cat([whole, whole[:1]])
    whole = torch.cat([whole, whole[:, :1]], 1)
    # x from 0 to P / 2: the Nyquist plane is at -P / 2 in the centred transform
    half = torch.cat([whole[..., size // 2 :], whole[..., :1]], -1)
    torch.testing.assert_close(ft_to_volume(torch.view_as_real(half).movedim(-1, 0), box), volume)


def test_back_projection_of_projections_is_the_volume() -> None:
    """Inserted values over weights, from many directions, recover the volume: slicing and insertion agree on all axes."""
    box = 16
    half_plane, rotation = half_plane64(box), rotations(1500)
    volume = smooth_volume(box, sigma=1.4)
    slices = central_slices(volume_to_ft(volume, 2), half_plane, rotation)
    grid = complete_hermitian_(insert_slices(slices, torch.ones_like(slices.real), half_plane, rotation, padded_size(box, 2)))
    back = ft_to_volume(grid[:2] / grid[2].clamp(min=1e-3), box)
    ball = (torch.arange(box) - box // 2).square()
    inside = ball[:, None, None] + ball[:, None] + ball < 49
    error = (back - volume)[inside].norm() / volume[inside].norm()
    assert error < 0.05


def central_difference(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-6) -> Tensor:
    out = torch.zeros_like(at).flatten()
    for i in range(at.numel()):
        delta = torch.zeros_like(at).flatten()
        delta[i] = step
        delta = delta.view_as(at)
        out[i] = (function(at + delta) - function(at - delta)) / (2 * step)
    return out.view_as(at)


def test_gradient_with_respect_to_the_volume() -> None:
    box = 8
    half_plane, rotation = half_plane64(box), rotations(3)
    target = torch.randn(3, len(half_plane), generator=generator(0), dtype=torch.complex128)

    def loss(volume: Tensor) -> Tensor:
        return (central_slices(volume_to_ft(volume), half_plane, rotation) - target).abs().square().sum()

    volume = torch.randn(box, box, box, generator=generator(1), dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(volume), volume)
    direction = torch.randn(box, box, box, generator=generator(2), dtype=F64)
    with torch.no_grad():
        slope = central_difference(lambda t: loss(volume + t * direction), torch.zeros(1, dtype=F64), 1e-5)
    torch.testing.assert_close((gradient * direction).sum(), slope[0], rtol=1e-7, atol=0)


@pytest.mark.parametrize("angle", [0.0, 1.0])
def test_gradient_with_respect_to_the_rotation(angle: float) -> None:
    """With respect to a rotation vector, including the zero vector, where naive formulas give NaN."""
    box = 12
    half_plane, start = half_plane64(box, 5), rotations(3)
    volume_ft = volume_to_ft(smooth_volume(box, sigma=1.2), 3)
    target = central_slices(volume_ft, half_plane, rotations(3, 9))

    def loss(rotvec: Tensor) -> Tensor:
        return (central_slices(volume_ft, half_plane, start @ roma.rotvec_to_rotmat(rotvec)) - target).abs().square().sum()

    rotvec = (torch.randn(3, 3, generator=generator(1), dtype=F64) * angle).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(rotvec), rotvec)
    with torch.no_grad():
        numeric = central_difference(loss, rotvec, 1e-7)
    assert numeric.abs().min() > 1e-2
    torch.testing.assert_close(gradient, numeric, rtol=1e-4, atol=1e-4 * numeric.abs().max().item())
