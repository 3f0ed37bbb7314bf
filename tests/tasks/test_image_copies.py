"""Image copies for eq. 5, eq. 6 and eq. 7, and losses that need only one correct copy."""

import dataclasses
from typing import Any

import pytest
import roma
import torch
from torch import Tensor

from ace_em.config import AceConfig
from ace_em.data.particle_stack import Batch, Optics
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.image_rotation import plane_turn
from ace_em.maths.slices import central_slices, volume_to_ft
from ace_em.models.encoder import Hypotheses
from ace_em.physics.ctf import CTFParameters
from ace_em.physics.imaging import shift_phase
from ace_em.physics.pose import Pose
from ace_em.simulation.density import density_map, project_atoms
from ace_em.simulation.structure import Atoms
from ace_em.tasks.ipi import image_copies, image_pose_image
from ace_em.tasks.schedules import StepPlan

N, BOX, PIXEL = 60, 32, 4.0
EQ_7, EQ_6, EQ_5 = (AceConfig(symmetric_loss=loss, alternatives=False) for loss in ("generalised", "half-turn", "none"))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ATOMS = Atoms(torch.randn(8, 3, generator=seeded(0)).clamp(-1.5, 1.5) * torch.tensor([9.0, 7.0, 5.0]) + 3, torch.ones(8))


@dataclasses.dataclass(frozen=True)
class Astigmatic:
    """Images with strong astigmatism at ``pose``, their power, and a projector of their density."""

    images: Batch
    pose: Pose
    power: float

    def project(self, half_plane: HalfPlane, rotation: Tensor) -> Tensor:
        return central_slices(volume_to_ft(density_map(ATOMS, BOX, PIXEL, 22.0), pad=4), half_plane, rotation)


@pytest.fixture(scope="module")
def astigmatic() -> Astigmatic:
    half_plane, generator = HalfPlane.within(BOX), seeded(1)
    pose = Pose(roma.random_rotmat(N, generator=generator), torch.randn(N, 2, generator=generator))
    mean = 9000 + 2000 * torch.rand(N, generator=generator)
    parameters = CTFParameters(
        mean + 4000, mean - 4000, 180 * torch.rand(N, generator=generator), *(torch.full((N,), x) for x in (300.0, 2.7, 0.1, 0.0))
    )
    optics = Optics(parameters, torch.ones(N, len(half_plane)), PIXEL)
    transfer = optics.effective_ctf(half_plane)
    slices = half_plane.gather(project_atoms(ATOMS, pose.rotation, BOX, PIXEL, 22.0))
    image_ft = slices * transfer * shift_phase(half_plane, pose.shift_px)
    images = Batch(half_plane, image_ft, transfer, torch.ones(N, len(half_plane)), optics)
    return Astigmatic(images, pose, image_ft.abs().square().sum(1).mean().item())


def drawn(seed: int) -> list[Tensor]:
    """Transformations (N, 2, 2) of both copies of eq. 7, with angles and mirrors sampled in the same order."""
    generator, turns = seeded(seed), []
    for _ in range(2):
        angle = 360 * torch.rand(N, generator=generator)
        turns.append(plane_turn(angle, torch.rand(N, generator=generator) < 0.5))
    return turns


def test_eq_5_and_6_copies(astigmatic: Astigmatic) -> None:
    """Eq. 5: the images. Eq. 6: the images and their conjugates, with unchanged CTFs."""
    images = astigmatic.images
    assert image_copies(images, EQ_5, seeded(0)) is images
    both = image_copies(images, EQ_6, seeded(0))
    assert torch.equal(both.image_ft, torch.cat([images.image_ft, images.image_ft.conj()]))
    assert torch.equal(both.effective_ctf, torch.cat([images.effective_ctf, images.effective_ctf]))


def test_eq_7_copies_are_random_turns_and_mirrors(astigmatic: Astigmatic) -> None:
    images = astigmatic.images
    one, same, other = (image_copies(images, EQ_7, seeded(seed)) for seed in (0, 0, 1))
    assert len(one) == 2 * N
    assert torch.equal(one.image_ft, same.image_ft) and torch.equal(one.effective_ctf, same.effective_ctf)

    def differ(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().square().sum(1) > 0.02 * a.abs().square().sum(1)

    # the two copies differ from each other and from the image
    assert differ(one.image_ft, other.image_ft).float().mean() > 0.9
    assert differ(one.image_ft[:N], one.image_ft[N:]).float().mean() > 0.9
    assert differ(one.image_ft, torch.cat([images.image_ft] * 2)).float().mean() > 0.9
    assert differ(one.effective_ctf, torch.cat([images.effective_ctf] * 2)).float().mean() > 0.8
    generator = seeded(2)
    image_copies(images, EQ_7, generator)
    assert not torch.equal(image_copies(images, EQ_7, generator).image_ft, image_copies(images, EQ_7, seeded(2)).image_ft)


def test_eq_7_angles_are_uniform_and_half_of_the_images_mirrored(astigmatic: Astigmatic, monkeypatch: pytest.MonkeyPatch) -> None:
    draws: list[tuple[Tensor, Tensor]] = []

    def spy(self: Batch, angle_deg: Tensor, mirror: Tensor) -> Batch:
        draws.append((angle_deg, mirror))
        return self

    monkeypatch.setattr(Batch, "turned", spy)
    many = astigmatic.images.rows(torch.zeros(1000, dtype=torch.long))
    assert len(image_copies(many, EQ_7, seeded(0))) == 2000 and len(draws) == 2
    for angle, mirror in draws:
        # four standard errors
        assert mirror.float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / 1000**0.5)
        assert 0 <= angle.min() < 5 and 355 < angle.max() <= 360
        assert angle.mean().item() == pytest.approx(180, abs=4 * 104 / 1000**0.5)
        # angle and mirror are independent
        assert (angle[mirror].mean() - angle[~mirror].mean()).abs() < 4 * 2 * 104 / 1000**0.5
    assert not torch.equal(draws[0][0], draws[1][0]) and not torch.equal(draws[0][1], draws[1][1])


def loss(case: Astigmatic, config: AceConfig, poses: list[Pose], seed: int = 0) -> float:
    """Image loss of an encoder that returns ``poses[i]`` for copy i."""
    answer = Pose.cat(poses)

    def encoder(image_ft: Tensor) -> Hypotheses:
        assert len(image_ft) == len(answer)
        return Hypotheses(answer.rotation[:, None], answer.shift_px)

    batch = image_copies(case.images, config, seeded(seed))
    plan: Any = StepPlan(100.0, 0.0, 1, copies=len(poses))
    return image_pose_image(encoder, case.project, batch, plan, case.power, config).losses["image"].item()  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, 1])
def test_one_correct_copy_is_enough(astigmatic: Astigmatic, seed: int) -> None:
    """The correct copy may be the first for some images and the second for others."""
    pose = astigmatic.pose
    wrong = Pose(pose.rotation.roll(1, 0), pose.shift_px)
    alternate = torch.arange(N) % 2 == 0

    def either(a: Pose, b: Pose) -> Pose:
        rotation = torch.where(alternate[:, None, None], a.rotation, b.rotation)
        return Pose(rotation, torch.where(alternate[:, None], a.shift_px, b.shift_px))

    right_6 = [pose, pose.in_turned_image(-torch.eye(2))]
    right_7 = [pose.in_turned_image(turn) for turn in drawn(seed)]
    for config, right in ((EQ_6, right_6), (EQ_7, right_7)):
        least = loss(astigmatic, config, right, seed)
        assert least < 0.01
        for answers in (
            [right[0], wrong],
            [wrong, right[1]],
            [either(right[0], wrong), either(wrong, right[1])],
        ):
            assert loss(astigmatic, config, answers, seed) < 0.012
        # no copy correct, the other copy correct, and half of the images correct
        assert loss(astigmatic, config, [wrong, wrong], seed) > 0.1
        assert loss(astigmatic, config, right[::-1], seed) > 0.1
        assert loss(astigmatic, config, [either(right[0], wrong), wrong], seed) > 0.05
    assert loss(astigmatic, EQ_5, [pose]) < 0.01
    assert loss(astigmatic, EQ_5, [wrong]) > 0.1
    # poses of the original images are wrong for the randomly rotated copies
    assert loss(astigmatic, EQ_7, [pose, pose], seed) > 0.1


def test_eq_7_needs_optics(astigmatic: Astigmatic) -> None:
    with pytest.raises(ValueError, match="optics"):
        image_copies(dataclasses.replace(astigmatic.images, optics=None), EQ_7, seeded(0))
