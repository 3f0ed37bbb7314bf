"""Image-pose-image: the correct pose, planted among the hypotheses, must be found."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import roma
import torch
from torch import Tensor

from ace_em.config import AceConfig
from ace_em.maths.filters import filter_bank, gaussian_kernels, kernel_transfer
from ace_em.maths.rotations import HALF_TURNS
from ace_em.models.encoder import Hypotheses
from ace_em.physics.imaging import shift_phase
from ace_em.tasks.ipi import ImagePoseImage, choose_rotation, image_copies, image_pose_image, low_passed
from ace_em.tasks.schedules import StepPlan

M = 4


def guesses(planted: Any, rotations: Tensor) -> Hypotheses:
    """Rotations (b, M, 3, 3) with the correct shifts."""
    return Hypotheses(rotations, planted.pose.shift_px)


def heads_with(truth: Tensor, half_turn: int) -> tuple[Tensor, Tensor]:
    """Random rotations (b, M, 3, 3) except for one, ``truth`` or its half turn, and its index (b,)."""
    n = len(truth)
    rotations = roma.random_rotmat((n, M), generator=torch.Generator().manual_seed(7))
    where = torch.arange(n) % M
    rotations[torch.arange(n), where] = truth @ HALF_TURNS[half_turn]
    return rotations, where


def shifted_transfer(planted: Any) -> Tensor:
    return planted.images.effective_ctf * shift_phase(planted.images.half_plane, planted.pose.shift_px)


@pytest.mark.parametrize("scored", [0, 1, 2, 3])
def test_correct_hypothesis_is_chosen(planted: Any, scored: int) -> None:
    rotations, where = heads_with(planted.pose.rotation, 0)
    rotations.requires_grad_()
    rotation, is_turned = choose_rotation(planted.project, planted.images, guesses(planted, rotations), scored)
    torch.testing.assert_close(rotation, planted.pose.rotation)
    assert not is_turned.any()
    rotation.square().sum().backward()
    assert rotations.grad is not None
    touched = rotations.grad.abs().sum((-1, -2)) > 0
    assert torch.equal(touched, torch.nn.functional.one_hot(where, M).bool())


@pytest.mark.parametrize("half_turn", [1, 2, 3])
def test_correct_half_turn_is_chosen(planted: Any, half_turn: int) -> None:
    rotations, where = heads_with(planted.pose.rotation, half_turn)
    rotations.requires_grad_()
    rotation, is_turned = choose_rotation(
        planted.project, planted.images, Hypotheses(rotations, planted.pose.shift_px), half_turn
    )
    torch.testing.assert_close(rotation, planted.pose.rotation)
    assert is_turned.all()
    # the gradient goes to the hypothesis of the half turn
    rotation.square().sum().backward()
    assert rotations.grad is not None
    touched = rotations.grad.abs().sum((-1, -2)) > 0
    assert torch.equal(touched, torch.nn.functional.one_hot(where, M).bool())
    # another half turn, or none, does not reach the planted rotation
    for other in {0, 1, 2, 3} - {half_turn}:
        rotation, _ = choose_rotation(planted.project, planted.images, guesses(planted, rotations), other)
        assert ((rotation - planted.pose.rotation).abs().amax((-1, -2)) > 0.1).all()


def test_one_hypothesis_needs_no_choice(planted: Any) -> None:
    rotations, _ = heads_with(planted.pose.rotation, 0)
    rotation, is_turned = choose_rotation(
        planted.project, planted.images, Hypotheses(rotations[:, 1:2], planted.pose.shift_px), 0
    )
    assert torch.equal(rotation, rotations[:, 1]) and not is_turned.any()


def run(
    planted: Any, encoder: Callable[[Tensor], Hypotheses], band: float = 8, half_turn: int = 1, label: int = 0, **settings: Any
) -> ImagePoseImage:
    config = AceConfig(**settings)
    copies = 1 if config.symmetric_loss == "none" else 2
    batch = image_copies(planted.images, config, torch.Generator().manual_seed(11))
    plan = StepPlan(band, 0.0, half_turn, label=label, copies=copies)
    return image_pose_image(encoder, planted.project, batch, plan, planted.power, config)  # type: ignore[arg-type]


def answering(*hypotheses: Hypotheses) -> Callable[[Tensor], Hypotheses]:
    """An encoder that returns the given poses, one set per copy of the batch."""
    rotation, shift_px = (torch.cat([getattr(h, part) for h in hypotheses]) for part in ("rotation", "shift_px"))

    def encoder(image_ft: Tensor) -> Hypotheses:
        assert len(image_ft) == len(rotation)
        return Hypotheses(rotation, shift_px)

    return encoder


def test_loss_of_the_true_poses_is_the_shift_loss(planted: Any) -> None:
    rotations, _ = heads_with(planted.pose.rotation, 0)
    result = run(planted, answering(Hypotheses(rotations, planted.pose.shift_px)))
    assert result.losses["image"] < 1e-10 and result.losses["alternative"] == 0
    torch.testing.assert_close(result.losses["shift"], planted.pose.shift_px.abs().mean() / 16)
    # a wrong shift raises the image loss
    assert run(planted, answering(Hypotheses(rotations, -planted.pose.shift_px))).losses["image"] > 0.01


def half_noise(planted: Any) -> tuple[Any, Tensor]:
    """The planted images, every second one replaced by noise of equal power, and which are noise."""
    junk = torch.arange(len(planted.images)) % 2 == 1
    parts = torch.randn(*planted.images.image_ft.shape, 2, generator=torch.Generator().manual_seed(5))
    noise = torch.view_as_complex(parts) * planted.images.image_ft.abs().square().mean().sqrt() / 2**0.5
    image_ft = torch.where(junk[:, None], noise, planted.images.image_ft)
    return dataclasses.replace(planted, images=planted.images.with_images(image_ft)), junk


@pytest.mark.parametrize("blank", [True, False])
def test_blank_images_have_no_gradient(planted: Any, blank: bool) -> None:
    """Neither for pose and shift, nor for the volume; without the blank hypothesis all have gradients."""
    mixed, junk = half_noise(planted)
    rotations = planted.pose.rotation[:, None].clone().requires_grad_()
    shift_px = (planted.pose.shift_px + 0.2).requires_grad_()
    result = run(mixed, answering(Hypotheses(rotations, shift_px)), blank=blank, alternatives=False)
    assert torch.equal(result.shown.bool(), ~junk if blank else torch.ones_like(junk))
    (result.losses["image"] + result.losses["shift"]).backward()
    assert rotations.grad is not None and shift_px.grad is not None
    assert (rotations.grad.abs().sum((1, 2, 3)) > 0)[~junk].all() and (shift_px.grad.abs().sum(1) > 0)[~junk].all()
    assert (rotations.grad.abs().sum((1, 2, 3)) == 0)[junk].all() == blank
    assert (shift_px.grad.abs().sum(1) == 0)[junk].all() == blank
    # the gradient of the volume is from the particles only, and blank images contribute their own power to the loss
    found, mixed.decoder.density.grad = mixed.decoder.density.grad, None
    predicted = mixed.decoder.projector()(mixed.images.half_plane, planted.pose.rotation)
    predicted = predicted * mixed.images.effective_ctf * shift_phase(mixed.images.half_plane, planted.pose.shift_px + 0.2)
    residual, power = (mixed.images.image_ft - predicted).abs().square().sum(1), mixed.images.image_ft.abs().square().sum(1)
    (residual[~junk].sum() / len(junk) / mixed.power).backward()
    wanted = mixed.decoder.density.grad
    assert ((found - wanted).norm() < 1e-4 * wanted.norm()).item() == blank
    if blank:
        torch.testing.assert_close(result.losses["image"], (residual[~junk].sum() + power[junk].sum()) / len(junk) / mixed.power)
        torch.testing.assert_close(result.shift_sd_px, planted.pose.shift_px[~junk].std())


def test_no_image_is_blank_while_the_volume_explains_nothing(planted: Any) -> None:
    """An untrained decoder fits every image worse than a blank prediction, and must still learn from them."""
    with torch.no_grad():
        planted.decoder.density.mul_(-1.0)
    rotations, _ = heads_with(planted.pose.rotation, 0)
    assert run(planted, answering(Hypotheses(rotations, planted.pose.shift_px))).shown.all()


def test_wrong_poses_cost_their_squared_error(planted: Any) -> None:
    wrong = planted.pose.rotation.roll(1, 0)
    result = run(planted, answering(Hypotheses(wrong[:, None], planted.pose.shift_px)), alternatives=False)
    predicted = planted.project(planted.images.half_plane, wrong) * shifted_transfer(planted)
    wanted = (predicted - planted.images.image_ft).abs().square().sum(-1).mean() / planted.power
    torch.testing.assert_close(result.losses["image"], wanted)
    assert wanted > 0.1


@pytest.mark.parametrize("half_turn", [1, 2, 3])
def test_a_chosen_half_turn_trains_its_hypothesis(planted: Any, half_turn: int) -> None:
    rotations = (planted.pose.rotation @ HALF_TURNS[half_turn])[:, None].clone().requires_grad_()
    answer = Hypotheses(rotations, planted.pose.shift_px)
    result = run(planted, answering(answer), half_turn=half_turn)
    assert result.losses["image"] < 1e-10
    assert result.losses["alternative"].item() == pytest.approx(8 / 9, abs=1e-5)
    result.losses["alternative"].backward()
    # of 1/9 |hypothesis - chosen|^2, with the chosen rotation held fixed
    wanted = 2 / 9 * (rotations.detach() - planted.pose.rotation[:, None]) / len(rotations)
    torch.testing.assert_close(rotations.grad, wanted, atol=1e-6, rtol=1e-4)
    without = run(planted, answering(answer), half_turn=half_turn, alternatives=False)
    assert without.losses["alternative"] == 0 and without.losses["image"] > 0.01


def test_the_loss_uses_its_band_and_the_encoder_all_frequencies(planted: Any) -> None:
    images = planted.images
    images.image_ft[:, images.half_plane.radius > 4] += 100
    seen = []

    def encoder(image_ft: Tensor) -> Hypotheses:
        seen.append(image_ft)
        return Hypotheses(planted.pose.rotation[:, None], planted.pose.shift_px)

    assert run(planted, encoder, band=4, alternatives=False).losses["image"] < 1e-10
    assert run(planted, encoder, band=5, alternatives=False).losses["image"] > 0.1
    assert torch.equal(seen[0], images.image_ft)


def test_half_turn_loss_includes_the_rotated_image(planted: Any) -> None:
    """Poses that are correct only for the rotated images: rotation times a half turn about z, negative shift."""
    wrong = Hypotheses(planted.pose.rotation.roll(1, 0)[:, None], planted.pose.shift_px)
    right = Hypotheses(planted.pose.rotation[:, None], planted.pose.shift_px)
    right_turned = Hypotheses((planted.pose.rotation @ HALF_TURNS[1])[:, None], -planted.pose.shift_px)
    settings: dict[str, Any] = {"symmetric_loss": "half-turn", "alternatives": False}
    assert run(planted, answering(wrong, right_turned), **settings).losses["image"] < 1e-10
    assert run(planted, answering(right, wrong), **settings).losses["image"] < 1e-10
    # the poses of the images are wrong for the rotated images
    assert run(planted, answering(wrong, right), **settings).losses["image"] > 0.01
    assert run(planted, answering(wrong), alternatives=False).losses["image"] > 0.01


@pytest.mark.parametrize("label", [4, 5])
def test_the_loss_compares_with_the_filtered_image_and_the_encoder_sees_the_image(planted: Any, label: int) -> None:
    """Eq. 9: with a CTF equal to the transfer function of kernel ``label``, the true poses predict the label."""
    images = planted.images
    seen = []

    def encoder(image_ft: Tensor) -> Hypotheses:
        seen.append(image_ft)
        return Hypotheses(planted.pose.rotation[:, None], planted.pose.shift_px)

    def loss(label: int, band: float = 8) -> float:
        return run(planted, encoder, band, label=label, alternatives=False).losses["image"].item()

    assert loss(0) < 1e-10
    images.effective_ctf.mul_(kernel_transfer(gaussian_kernels(), images.half_plane)[label - 1])
    assert loss(label) < 1e-10 and loss(label, band=4) < 1e-10
    assert loss(0) > 0.01 and loss({4: 5, 5: 4}[label]) > 1e-4
    assert all(torch.equal(shown, images.image_ft) for shown in seen)
    # in real space, for an image that is zero near its edge
    disc = torch.zeros(16, 16)
    disc[6:10, 6:10] = torch.rand(4, 4, generator=torch.Generator().manual_seed(2))
    one = dataclasses.replace(images, image_ft=images.half_plane.from_image(disc)[None])
    wanted = images.half_plane.from_image(filter_bank(disc[None], gaussian_kernels())[0, label - 1])
    torch.testing.assert_close(low_passed(one, label)[0], wanted, atol=1e-4, rtol=1e-4)
