"""Centre, parity and normalisation of the transforms, and the half-plane."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from ace_em.maths.fourier import centred_fft, centred_ifft, fourier_resize, frequencies, radius_grid, resize, shell_sums
from ace_em.maths.half_plane import HalfPlane

BOXES = (16, 17)


def random_volume(n: int, ndim: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn((n,) * ndim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def in_circle(n: int) -> Tensor:
    """The circle |k| < n / 2, (n, n), from integers."""
    axis = torch.arange(n) - n // 2
    return 4 * (axis[:, None].square() + axis.square()) < n**2


def band_limited_image(n: int, seed: int = 0) -> Tensor:
    return torch.fft.ifftn(torch.fft.fftn(random_volume(n, 2, seed)) * torch.fft.ifftshift(in_circle(n))).real


def turned_180(image: Tensor) -> Tensor:
    """The image rotated by 180 degrees about index n // 2: point p goes to -p."""
    n = image.shape[-1]
    index = (-(torch.arange(n) - n // 2) + n // 2) % n
    return image[..., index, :][..., index]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("n", BOXES)
def test_delta_at_the_centre_has_a_flat_transform(n: int, ndim: int, dtype: torch.dtype) -> None:
    delta = torch.zeros((n,) * ndim, dtype=dtype)
    delta[(n // 2,) * ndim] = 3
    delta_ft = centred_fft(delta, ndim)
    assert delta_ft.real.dtype == dtype
    torch.testing.assert_close(delta_ft, torch.full_like(delta_ft, 3))
    # conversely, the transform of a constant is a delta at zero frequency
    torch.testing.assert_close(
        centred_fft(torch.ones_like(delta), ndim).real, delta / 3 * n**ndim, atol=2e-3 if dtype == torch.float32 else 1e-9, rtol=0
    )


@pytest.mark.parametrize("n", BOXES)
def test_transform_is_the_sum_of_the_conventions(n: int) -> None:
    image = random_volume(n, 2)
    axis = frequencies(n, dtype=torch.float64)
    assert axis[n // 2] == 0 and len(axis) == n
    wave = torch.exp(-2j * math.pi / n * axis[:, None] * axis)
    torch.testing.assert_close(centred_fft(image, 2), wave @ image.to(wave.dtype) @ wave.T)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("n", BOXES)
def test_inverse_and_parseval(n: int, ndim: int) -> None:
    batch = torch.stack([random_volume(n, ndim, seed) for seed in range(2)])
    batch_ft = centred_fft(batch, ndim)
    torch.testing.assert_close(centred_ifft(batch_ft, ndim).real, batch)
    torch.testing.assert_close(batch_ft.abs().square().sum(), batch.square().sum() * n**ndim)


@pytest.mark.parametrize(("old", "new"), list(itertools.product((6, 7, 9, 10), repeat=2)))
def test_resize_keeps_the_centre(old: int, new: int) -> None:
    at = {p: 100.0 + p for p in range(-(old // 2), old - old // 2)}
    wanted = torch.tensor([at.get(p, -1.0) for p in range(-(new // 2), new - new // 2)])
    line = torch.tensor(list(at.values()))
    torch.testing.assert_close(resize(line, new, 1, fill=-1.0), wanted)
    # all trailing axes are resized, leading axes unchanged
    square = resize(line.expand(3, old, old), new, 2, fill=-1.0)
    assert square.shape == (3, new, new)
    inside = (wanted >= 0)[:, None] & (wanted >= 0)
    torch.testing.assert_close(square[1], torch.where(inside, wanted, -1.0))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("old", "new"), list(itertools.product((12, 13, 18, 19), repeat=2)))
def test_fourier_resize_samples_the_same_function(old: int, new: int, ndim: int) -> None:
    """A sum of a few waves, sampled in both boxes: the values are those of the function."""

    def sampled(n: int) -> Tensor:
        axis = 2 * math.pi * (torch.arange(n, dtype=torch.float64) - n // 2) / n
        grids = torch.meshgrid(*[axis] * ndim, indexing="ij")
        out = torch.full((n,) * ndim, 0.7, dtype=torch.float64)
        for wave, (amplitude, phase) in {(1, -2, 3): (1.0, 0.3), (5, 0, 1): (0.5, 1.0), (-2, 5, -5): (0.8, -0.4)}.items():
            out += amplitude * torch.cos(sum(k * g for k, g in zip(wave, grids, strict=False)) + phase)
        return out

    torch.testing.assert_close(fourier_resize(sampled(old), new, ndim), sampled(new), atol=1e-12, rtol=0)


def test_radius_and_shells() -> None:
    radius = radius_grid(5, 2)
    assert radius[2, 2] == 0 and radius[0, 2] == 2 and radius[4, 2] == 2 and radius[1, 1] == pytest.approx(2**0.5)
    shells = radius.round().long().flatten()
    count = shell_sums(torch.ones(2, 25), shells, 3)
    # by hand: 1 at the centre, 8 around it (diagonals at 1.41), 12 at 2 and 2.24; 4 corners at 2.83 belong to shell 3
    torch.testing.assert_close(count, torch.tensor([1.0, 8, 12]).expand(2, 3))


@pytest.mark.parametrize("max_radius", [None, 5.0, 0.0])
@pytest.mark.parametrize("n", [*BOXES, 20])  # at 20, (6, 8) lies on the Nyquist circle itself
def test_half_plane_holds_each_pair_once(n: int, max_radius: float | None) -> None:
    half_plane = HalfPlane.within(n, max_radius)
    kept = [(int(x), int(y)) for x, y in half_plane.k]
    axis = range(-(n // 2), n - n // 2)
    inside = {
        (x, y)
        for x in axis
        for y in axis
        if 4 * (x * x + y * y) < n * n and (max_radius is None or x * x + y * y <= max_radius**2)
    }
    partners = {(-x, -y) for x, y in kept}
    assert len(set(kept)) == len(kept) == len(half_plane)
    assert set(kept) | partners == inside
    assert set(kept) & partners == {(0, 0)}
    assert all(x > 0 or (x == 0 and y >= 0) for x, y in kept)


@pytest.mark.parametrize("n", BOXES)
def test_half_plane_is_sorted_and_bands_are_prefixes(n: int) -> None:
    half_plane = HalfPlane.within(n)
    torch.testing.assert_close(half_plane.radius, half_plane.k.square().sum(-1).sqrt())
    assert (half_plane.radius.diff() >= 0).all()
    assert (half_plane.shell == (half_plane.radius + 0.5).floor().long()).all()
    assert half_plane.k3.shape == (len(half_plane), 3) and (half_plane.k3[:, 2] == 0).all()
    for radius in (0.0, 2.5, 5.0, 100.0):
        band = half_plane.band(radius)
        assert len(band) == sum(1 for k in half_plane.k if k.norm() <= radius)
        assert torch.equal(band.k, half_plane.k[: len(band)]) and band.box == n
        if radius:
            assert torch.equal(band.k, HalfPlane.within(n, radius).k)


@pytest.mark.parametrize("n", BOXES)
def test_half_plane_sums_are_those_of_the_circle(n: int) -> None:
    image = random_volume(n, 2)
    half = HalfPlane.within(n).from_image(image)
    whole = centred_fft(image, 2)[in_circle(n)]
    torch.testing.assert_close(2 * half.abs().square().sum() - half[0].abs().square(), whole.abs().square().sum())
    # in a sum, the imaginary parts of partners cancel
    torch.testing.assert_close((2 * half.sum() - half[0]).real, whole.sum().real)


@pytest.mark.parametrize("n", BOXES)
def test_half_plane_round_trip(n: int) -> None:
    half_plane = HalfPlane.within(n)
    images = torch.stack([band_limited_image(n, seed) for seed in range(3)])
    torch.testing.assert_close(half_plane.to_image(half_plane.from_image(images)), images)
    # coefficients outside the circle are removed, those inside are kept
    white = random_volume(n, 2, 0)
    torch.testing.assert_close(half_plane.to_image(half_plane.from_image(white)), band_limited_image(n, 0))


def test_half_plane_orders_x_before_y() -> None:
    """A wave along x has its power at (kx, 0)."""
    n = 16
    wave = torch.cos(2 * math.pi * 3 * frequencies(n) / n).expand(n, n)
    half_plane = HalfPlane.within(n)
    assert half_plane.k[half_plane.from_image(wave).abs().argmax()].tolist() == [3, 0]
    assert half_plane.k[half_plane.from_image(wave.T).abs().argmax()].tolist() == [0, 3]
    # gather reads the given frequencies
    kx = frequencies(n).expand(n, n)
    assert torch.equal(half_plane.gather(torch.stack([kx, kx.T])), half_plane.k.T)


@pytest.mark.parametrize("n", BOXES)
def test_conjugate_is_the_image_turned_by_180_degrees(n: int) -> None:
    half_plane = HalfPlane.within(n)
    image = band_limited_image(n)
    torch.testing.assert_close(half_plane.to_image(half_plane.from_image(image).conj()), turned_180(image))
