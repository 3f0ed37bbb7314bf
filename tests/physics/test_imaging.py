"""Shifts and the image formation model of eq. 27."""

import pytest
import torch
from torch import Tensor
from torch_fourier_shift import fourier_shift_image_2d

from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.slices import central_slices, volume_to_ft
from ace_em.physics.imaging import project, shift_phase
from ace_em.physics.pose import Pose, relion_angles_to_rotmat

F64 = torch.float64


def half_plane64(box: int) -> HalfPlane:
    half_plane = HalfPlane.within(box)
    return HalfPlane(box, half_plane.k.double(), half_plane.radius.double())


def image(box: int) -> Tensor:
    """Random images, band-limited to the circle of the half-plane."""
    half_plane = half_plane64(box)
    return half_plane.to_image(
        half_plane.from_image(torch.randn(box, box, generator=torch.Generator().manual_seed(0), dtype=F64))
    )


def shifted(picture: Tensor, shift_px: Tensor) -> Tensor:
    half_plane = half_plane64(picture.shape[-1])
    return half_plane.to_image(half_plane.from_image(picture) * shift_phase(half_plane, shift_px))


@pytest.mark.parametrize("box", [16, 17])
@pytest.mark.parametrize("shift", [(1, 0), (0, 1), (-3, 2)])
def test_whole_pixels_move_content_by_plus_y_x(box: int, shift: tuple[int, int]) -> None:
    pixel = torch.zeros(box, box, dtype=F64)
    pixel[box // 2 + 2, box // 2 - 1] = 1
    moved = shifted(pixel, torch.tensor(shift, dtype=F64))
    peak = divmod(moved.argmax().item(), box)
    assert peak == (box // 2 + 2 + shift[0], box // 2 - 1 + shift[1])
    torch.testing.assert_close(shifted(image(box), torch.tensor(shift, dtype=F64)), image(box).roll(shift, (0, 1)))


@pytest.mark.parametrize("box", [16, 17])
def test_against_torch_fourier_shift(box: int) -> None:
    shifts = torch.tensor([[0.3, -1.7], [2.5, 0.0], [-0.25, 4.125]], dtype=F64)
    theirs = fourier_shift_image_2d(image(box).expand(3, -1, -1), shifts)
    torch.testing.assert_close(shifted(image(box), shifts), theirs, atol=1e-6, rtol=0)
    assert (shifted(image(box), -shifts) - theirs).abs().max() > 0.1


@pytest.mark.parametrize("box", [16, 17])
def test_shifts_add_and_undo_each_other(box: int) -> None:
    half_plane = half_plane64(box)
    a, b = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(1), dtype=F64) * 3
    torch.testing.assert_close(shift_phase(half_plane, a) * shift_phase(half_plane, b), shift_phase(half_plane, a + b))
    torch.testing.assert_close(shifted(shifted(image(box), a), -a), image(box).expand(5, -1, -1))
    assert (shift_phase(half_plane, a).abs() - 1).abs().max() < 1e-12
    assert torch.equal(shift_phase(half_plane, torch.zeros(2, dtype=F64)).real, torch.ones(len(half_plane), dtype=F64))


def test_clean_image_is_slice_times_transfer_times_shift() -> None:
    generator = torch.Generator().manual_seed(2)
    box = 16
    half_plane = half_plane64(box)
    volume_ft = volume_to_ft(torch.randn(box, box, box, generator=generator, dtype=F64))
    rotation = relion_angles_to_rotmat(torch.rand(4, 3, generator=generator, dtype=F64) * 180)
    shift = torch.tensor([[2.0, 0.0], [0, 0], [0, -3], [1, 1]], dtype=F64)
    transfer = torch.randn(4, len(half_plane), generator=generator, dtype=F64)
    made = half_plane.to_image(project(volume_ft, transfer, half_plane, Pose(rotation, shift)))
    unmoved = half_plane.to_image(central_slices(volume_ft, half_plane, rotation) * transfer)
    for one, other, t in zip(made, unmoved, shift.int().tolist(), strict=True):
        torch.testing.assert_close(one, other.roll(t, (0, 1)))


def test_gradient_of_an_image_loss_with_respect_to_the_shift() -> None:
    half_plane = half_plane64(16)
    image_ft = half_plane.from_image(image(16))
    target = half_plane.from_image(image(16).roll((1, -2), (0, 1)))

    def loss(shift: Tensor) -> Tensor:
        return (image_ft * shift_phase(half_plane, shift) - target).abs().square().sum()

    for at in ([0.0, 0.0], [0.4, -1.1]):
        shift = torch.tensor(at, dtype=F64, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(shift), shift)
        step = torch.eye(2, dtype=F64) * 1e-5
        numeric = torch.stack([(loss(shift.detach() + s) - loss(shift.detach() - s)) / 2e-5 for s in step])
        torch.testing.assert_close(gradient, numeric, rtol=1e-6, atol=1e-4)
        assert gradient.abs().min() > 1
