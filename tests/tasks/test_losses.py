"""The losses of eq. 5, eq. 6, eq. 8 and eq. 13 in cases with known values."""

import pytest
import roma
import torch
from torch import Tensor

from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.rotations import HALF_TURNS
from ace_em.tasks.losses import image_loss, image_residual, pose_loss, shift_loss


def images(box: int, n: int, seed: int) -> Tensor:
    """Random images without Nyquist coefficients."""
    half_plane = HalfPlane.within(box)
    return half_plane.to_image(half_plane.from_image(torch.randn(n, box, box, generator=torch.Generator().manual_seed(seed))))


def turned(image: Tensor) -> Tensor:
    """Rotate by 180 degrees about pixel n // 2."""
    flipped = image.flip(-1, -2)
    return flipped.roll((1, 1), (-1, -2)) if image.shape[-1] % 2 == 0 else flipped


@pytest.mark.parametrize("box", [16, 17])
def test_residual_is_the_squared_error_in_real_space(box: int) -> None:
    """Parseval: the half-plane has half of L^2 |a - b|^2, plus half of the zero frequency."""
    half_plane = HalfPlane.within(box)
    a, b = images(box, 5, 0), images(box, 5, 1)
    residual = image_residual(half_plane.from_image(a), half_plane.from_image(b))
    squared = (a - b).square().sum((-1, -2)) * box**2
    zero = (a - b).sum((-1, -2)).square()
    torch.testing.assert_close(residual, (squared + zero) / 2)
    # with equal means it is a constant factor
    b = b + (a - b).mean((-1, -2), keepdim=True)
    residual = image_residual(half_plane.from_image(a), half_plane.from_image(b))
    torch.testing.assert_close(residual / (a - b).square().sum((-1, -2)), torch.full((5,), box**2 / 2), rtol=1e-4, atol=0)


def test_image_loss_is_relative_to_the_power() -> None:
    assert image_loss(torch.tensor([[2.0, 4.0]]), 6.0) == pytest.approx(0.5)
    a = torch.randn(7, 30, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    power = image_residual(a, torch.zeros_like(a)).mean()
    assert image_loss(image_residual(a, 0 * a)[None], power) == pytest.approx(1)
    assert image_loss(image_residual(a, 0.5 * a)[None], power) == pytest.approx(0.25)


def test_symmetric_loss_takes_the_smaller_per_image() -> None:
    one, other = torch.tensor([1.0, 5.0, 3.0]), torch.tensor([4.0, 2.0, 3.0])
    # the minimum is per image, not of the two means
    assert image_loss(torch.stack([one, other]), 2.0) == pytest.approx((1 + 2 + 3) / 3 / 2)
    # one copy is eq. 5: the mean over the images, not the minimum
    assert image_loss(one[None], 2.0) == pytest.approx((1 + 5 + 3) / 3 / 2)


def test_only_the_better_copy_has_a_gradient() -> None:
    residual = torch.tensor([[1.0, 5.0, 3.0, 0.5], [4.0, 2.0, 7.0, 9.0]], requires_grad=True)
    image_loss(residual, 2.0).backward()
    torch.testing.assert_close(residual.grad, torch.tensor([[1.0, 0, 1, 1], [0, 1.0, 0, 0]]) / 8)


@pytest.mark.parametrize("box", [16, 17])
def test_half_turn_of_an_image_is_conjugation(box: int) -> None:
    half_plane = HalfPlane.within(box)
    a = images(box, 3, 0)
    centre = box // 2
    assert torch.equal(turned(a)[:, centre + 2, centre - 3], a[:, centre - 2, centre + 3])
    torch.testing.assert_close(half_plane.from_image(turned(a)), half_plane.from_image(a).conj(), atol=1e-4, rtol=1e-4)


def test_shift_loss_is_half_the_mean_l1_norm() -> None:
    assert shift_loss(torch.tensor([[0.1, -0.2], [0.0, 0.4]])) == pytest.approx((0.3 + 0.4) / 2 / 2)


def random_rotations(*shape: int) -> Tensor:
    return roma.random_rotmat(shape, generator=torch.Generator().manual_seed(0))


def test_pose_loss_is_zero_at_the_truth_and_known_at_half_a_turn() -> None:
    rotation, shift = random_rotations(6), torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    assert pose_loss(rotation, shift, rotation[:, None], shift) == 0
    for mate in HALF_TURNS[1:]:
        assert pose_loss(rotation, shift, (rotation @ mate)[:, None], shift) == pytest.approx(8 / 9, abs=1e-5)
    off = torch.tensor([0.02, -0.06])
    assert pose_loss(rotation, shift, rotation[:, None], shift + off) == pytest.approx(0.04, abs=1e-6)


def test_pose_loss_of_a_small_angle() -> None:
    angle = 0.05
    step = roma.rotvec_to_rotmat(torch.tensor([0.0, 0.0, angle]))
    rotation = random_rotations(6)
    assert pose_loss(rotation, torch.zeros(6, 2), (rotation @ step)[:, None], torch.zeros(6, 2)) == pytest.approx(
        2 * angle**2 / 9, rel=1e-3
    )


@pytest.mark.parametrize(("spread", "wanted"), [(0.0, 0.0), (0.1, 0.1 * 6 / 9), (1.0, 6 / 9)])
def test_spread_weights_the_best_and_the_mean_error(spread: float, wanted: float) -> None:
    rotation = random_rotations(5)
    # errors 8, 8, 0, 8 in any order: the mean is 6
    predicted = rotation[:, None] @ HALF_TURNS[torch.tensor([1, 2, 0, 3])]
    zero = torch.zeros(5, 2)
    assert pose_loss(rotation, zero, predicted, zero, spread) == pytest.approx(wanted, abs=1e-5)
    assert pose_loss(rotation, zero, predicted.flip(1), zero, spread) == pytest.approx(wanted, abs=1e-5)


def test_spread_has_no_effect_with_one_hypothesis() -> None:
    rotation, predicted, zero = random_rotations(5), random_rotations(9)[4:, None], torch.zeros(5, 2)
    losses = [pose_loss(rotation, zero, predicted, zero, spread) for spread in (0.0, 0.3, 1.0)]
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])
    assert losses[0] > 0.1


def test_only_the_best_hypothesis_has_a_gradient() -> None:
    rotation = random_rotations(3)
    heads = torch.tensor([2, 0, 1])
    predicted = (rotation[:, None] @ HALF_TURNS[torch.tensor([1, 2, 3])]).clone()
    near = rotation @ roma.rotvec_to_rotmat(torch.tensor([0.1, 0.0, 0.0]))
    predicted[torch.arange(3), heads] = near
    predicted.requires_grad_()
    pose_loss(rotation, torch.zeros(3, 2), predicted, torch.zeros(3, 2)).backward()
    assert predicted.grad is not None
    touched = predicted.grad.abs().sum((-1, -2)) > 0
    assert torch.equal(touched, torch.nn.functional.one_hot(heads, 3).bool())
