"""VoxelGrid against line integrals of its volume, and its gradient against the adjoint."""

import pytest
import roma
import torch

from ace_em.maths.fourier import HalfPlane, radius_grid
from ace_em.maths.slices import central_slices, volume_to_ft
from ace_em.models.voxel_grid import VoxelGrid, soft_ball
from ace_em.physics.projection import line_integral

BOX = 20
HALF_PLANE = HalfPlane.within(BOX)


def rotations(n: int) -> torch.Tensor:
    return roma.random_rotmat(n, generator=torch.Generator().manual_seed(0))


def lumpy(pad: int = 2) -> VoxelGrid:
    """Smooth and without symmetry."""
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
        # the line integral's own interpolation blurs a blob of 2.5 pixels by a few per cent
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


def test_height_scales_the_volume_and_not_the_parameter() -> None:
    decoder = VoxelGrid(BOX, 7.0, 3.0)
    before, volume = decoder.density.detach().clone(), decoder.volume().detach()
    decoder.scale_to(250.0)
    assert torch.equal(decoder.density, before)
    torch.testing.assert_close(decoder.volume(), 250 * volume)
    assert decoder.state_dict()["height"] == 250
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
    # and one after another towards the rim
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
