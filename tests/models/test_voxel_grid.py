"""VoxelGrid against line integrals of its volume, and its gradient against the adjoint."""

import pytest
import roma
import torch

from ace_em.maths.fourier import radius_grid
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.slices import central_slices, volume_to_ft
from ace_em.models import voxel_grid
from ace_em.models.voxel_grid import VoxelGrid, ball_radius_px, integrated_slices, soft_ball
from ace_em.physics.projection import line_integral

BOX = 20
HALF_PLANE = HalfPlane.within(BOX)


def rotations(n: int) -> torch.Tensor:
    return roma.random_rotmat(n, generator=torch.Generator().manual_seed(0))


def lumpy(pad: int = 2) -> VoxelGrid:
    """A smooth volume without symmetry."""
    decoder = VoxelGrid(BOX, 7.0, 2.5, pad)
    z, y, x = torch.meshgrid(*[torch.arange(BOX) - BOX // 2] * 3, indexing="ij")
    with torch.no_grad():
        decoder.density *= 1 + 0.3 * x + 0.1 * y * z - 0.05 * z**2
    decoder.scale_to(4.0)
    return decoder


@pytest.mark.parametrize("pad", [2, 3])
def test_projects_its_volume(pad: int) -> None:
    decoder, rotation = lumpy(pad), rotations(6)
    with torch.no_grad():
        slices = decoder.projector()(HALF_PLANE, rotation)
        assert torch.equal(slices, central_slices(volume_to_ft(decoder.volume(), pad), HALF_PLANE, rotation))
        images = line_integral(decoder.volume(), rotation)
        # interpolation in the line integral blurs a blob of 2.5 pixels by a few per cent
        assert (HALF_PLANE.to_image(slices) - images).norm() / images.norm() < 0.06
        turned = line_integral(decoder.volume(), rotation.mT)
        assert (HALF_PLANE.to_image(slices) - turned).norm() / images.norm() > 0.3


def test_starts_as_a_blob() -> None:
    decoder = VoxelGrid(BOX, 7.0, 3.0)
    centre = BOX // 2
    volume = decoder.volume().detach()
    assert volume[centre, centre, centre] == volume.max()
    assert volume.max() == pytest.approx(1, abs=1e-4)
    assert volume[centre, centre, centre + 3] == pytest.approx(0.6065, abs=1e-3)


def test_the_amplitude_scales_the_volume_and_not_the_parameter() -> None:
    decoder = VoxelGrid(BOX, 7.0, 3.0)
    before, volume = decoder.density.detach().clone(), decoder.volume().detach()
    decoder.scale_to(250.0)
    assert torch.equal(decoder.density, before)
    torch.testing.assert_close(decoder.volume(), 250 * volume)
    assert decoder.state_dict()["amplitude"] == 250
    assert [name for name, _ in decoder.named_parameters()] == ["density"]


def test_mask_is_one_inside_and_zero_outside() -> None:
    decoder = VoxelGrid(BOX, 7.0, 3.0)
    with torch.no_grad():
        decoder.density.fill_(1)
    radius = radius_grid(BOX, 3)
    volume = decoder.volume().detach()
    assert volume[radius > 10].max() < 0.003
    assert volume[radius < 4].min() > 0.997
    assert volume[radius == 7].allclose(torch.tensor(0.5), atol=1e-6)
    # and decreasing towards the edge
    ball = soft_ball(BOX, 7.0)[BOX // 2, BOX // 2, BOX // 2 :]
    assert (ball.diff() <= 0).all() and ball[0] > 0.999 and ball[-1] < 0.02


def test_gradient_is_the_adjoint_and_stays_in_the_ball() -> None:
    """A projection is linear in the density: ``<d loss / d density, density>`` is the loss itself."""
    decoder = lumpy()
    slices = decoder.projector()(HALF_PLANE, rotations(4))
    y = torch.randn(slices.shape, dtype=slices.dtype, generator=torch.Generator().manual_seed(5))
    loss = (slices.real * y.real + slices.imag * y.imag).sum()
    loss.backward()
    gradient = decoder.density.grad
    assert gradient is not None
    torch.testing.assert_close((gradient * decoder.density).sum(), loss, rtol=1e-3, atol=1e-3)
    radius = radius_grid(BOX, 3)
    assert gradient[radius < 5].abs().min() > 0
    assert gradient[radius > 10.5].abs().max() < 0.01 * gradient.abs().max()


def smooth(box: int, integral: bool) -> VoxelGrid:
    """A volume without symmetry, wide enough that the blur of trilinear interpolation, 1/6 px^2, is 1.4 % of its variance."""
    decoder = VoxelGrid(box, 9.5, 3.5, pad=4, integral=integral)
    z, y, x = torch.meshgrid(*[torch.arange(box) - box // 2] * 3, indexing="ij")
    with torch.no_grad():
        decoder.density.mul_(1 + 0.15 * x - 0.1 * y + 0.02 * y * z)
    decoder.scale_to(3.0)
    return decoder


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("box", [24, 25])
@pytest.mark.parametrize("shape", [(6,), (2, 3), (6, 1)])
def test_the_two_projectors_agree(box: int, shape: tuple[int, ...]) -> None:
    """Eq. 22 and eq. 26: values, and gradients with respect to the voxels."""
    half_plane, decoders = HalfPlane.within(box), (smooth(box, False), smooth(box, True))
    rotation = roma.random_rotmat(shape, generator=torch.Generator().manual_seed(0))
    slices, integrals = (decoder.projector()(half_plane, rotation) for decoder in decoders)
    assert slices.shape == integrals.shape == (*shape, len(half_plane))
    assert relative_error(integrals, slices) < 0.02
    assert relative_error(decoders[1].projector()(half_plane, rotation.mT), slices) > 0.2
    # each image has a different smooth target
    other = roma.random_rotmat(shape, generator=torch.Generator().manual_seed(1))
    target = decoders[0].projector()(half_plane, other).detach()
    gradients = []
    for projected, decoder in zip((slices, integrals), decoders, strict=True):
        (gradient,) = torch.autograd.grad((projected.conj() * target).real.sum(), decoder.density)
        gradients.append(gradient)
    assert relative_error(gradients[1], gradients[0]) < 0.05
    # but not with differently rotated targets
    turned = decoders[1].projector()(half_plane, rotation.mT)
    (wrong,) = torch.autograd.grad((turned.conj() * target).real.sum(), decoders[1].density)
    assert relative_error(wrong, gradients[0]) > 0.1


@pytest.mark.parametrize("voxels", [1, 2 * BOX**3, 3 * BOX**3 + 5])
def test_blocks_of_rotations_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, voxels: int) -> None:
    """One, two and three of five rotations at a time against all at once, in float64 because the order of sums differs."""
    blocks: list[int] = []

    def counted(volume: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        blocks.append(len(rotation))
        return line_integral(volume, rotation)

    monkeypatch.setattr(voxel_grid, "line_integral", counted)
    volume, rotation = lumpy().volume().detach().double().requires_grad_(), rotations(5).double()
    found = []
    for limit in (2**30, voxels):
        monkeypatch.setattr(voxel_grid, "INTEGRAL_VOXELS", limit)
        blocks.clear()
        slices = integrated_slices(volume, HALF_PLANE, rotation)
        done = list(blocks)
        (gradient,) = torch.autograd.grad(slices.abs().square().sum(), volume)
        found.append((slices.detach(), gradient))
    assert sum(done) == 5 and max(done) == max(1, voxels // BOX**3) < 5
    torch.testing.assert_close(found[1][0], found[0][0])
    torch.testing.assert_close(found[1][1], found[0][1])


def test_ball_is_larger_than_the_particle_but_inside_the_box() -> None:
    assert ball_radius_px(64, 30.0) == pytest.approx(24)
    assert ball_radius_px(64, 60.0) == pytest.approx(30.5)
