"""Pose inference after training with a symmetric loss: an encoder correct for one copy of an image is enough."""

import dataclasses
from typing import Any, Literal

import pytest
import roma
import torch
from torch import Tensor

from ace_em.config import AceConfig, FourierEncoderConfig
from ace_em.data.particle_stack import ParticleStack
from ace_em.maths.rotations import angular_distance_deg
from ace_em.maths.slices import volume_to_ft
from ace_em.models.encoder import Hypotheses
from ace_em.physics.ctf import ctf
from ace_em.physics.imaging import project
from ace_em.physics.pose import Pose
from ace_em.training.autoencoder import build_model
from ace_em.training.infer import candidates, encode
from stacks import stack_of

N = 30
SMALL = AceConfig(fourier=FourierEncoderConfig(band=4.0, width=16, depth=1), hypotheses=3, alternatives=False)
SYMMETRIC: dict[str, dict[str, Tensor]] = {
    "half-turn": {"images": torch.eye(2), "half turn": -torch.eye(2)},
    "generalised": {
        "images": torch.eye(2),
        "mirror": torch.diag(torch.tensor([1.0, -1.0])),
        "half turn": -torch.eye(2),
        "both": torch.diag(torch.tensor([-1.0, 1.0])),
    },
}


class Knows(torch.nn.Module):
    """An encoder that returns correct poses for some images, at a varying index, and random poses otherwise."""

    def __init__(self, image_ft: Tensor, pose: Pose) -> None:
        super().__init__()
        self.image_ft, self.pose, self.generator = image_ft, pose, torch.Generator().manual_seed(8)
        self.recognised = 0

    def forward(self, image_ft: Tensor) -> Hypotheses:
        b = len(image_ft)
        rotation = roma.random_rotmat((b, SMALL.hypotheses), generator=self.generator)
        shift = 3 * torch.randn(b, 2, generator=self.generator)
        distance = (image_ft[:, None] - self.image_ft).abs().square().sum(-1)
        known = distance.amin(1) < 1e-6 * image_ft.abs().square().sum(1)
        which = distance.argmin(1)[known]
        rotation[known, torch.arange(b)[known] % SMALL.hypotheses] = self.pose.rotation[which]
        shift[known] = self.pose.shift_px[which]
        self.recognised += int(known.sum())
        return Hypotheses(rotation, shift)


def model_and_images(astigmatic_blobs: ParticleStack, **settings: Any) -> tuple[Any, ParticleStack, Pose]:
    """A model with a lumpy volume in the decoder, and noise-free images of it with CTFs."""
    generator = torch.Generator().manual_seed(2)
    model = build_model(astigmatic_blobs, 10.0, dataclasses.replace(SMALL, **settings), generator)
    images = astigmatic_blobs.subset(slice(0, N))
    pose = Pose(roma.random_rotmat(N, generator=generator), torch.randn(N, 2, generator=generator))
    with torch.no_grad():
        decoder: Any = model.decoder
        noise = torch.randn(decoder.density.shape, generator=generator)
        decoder.density *= torch.nn.functional.avg_pool3d(noise[None], 3, 1, 1)[0]
        effective_ctf = ctf(images.ctf, images.half_plane, images.pixel_size_angstrom)
        image_ft = project(volume_to_ft(model.decoder.volume()), effective_ctf, images.half_plane, pose)
    return model, stack_of(images.half_plane, image_ft, images.ctf, images.pixel_size_angstrom), pose


def as_copy(images: ParticleStack, turn: Tensor) -> Tensor:
    """The images transformed by a diagonal ``A`` (mirrored in y, rotated by 180 degrees, or both), per coefficient."""
    image_ft = images.images(slice(None))
    if torch.linalg.det(turn) < 0:
        place = {(int(kx), int(ky)): i for i, (kx, ky) in enumerate(images.half_plane.k.tolist())}
        # F'(kx, ky) = F(kx, -ky), which for kx = 0 is the other member of its own Hermitian pair
        partner = [place[int(kx), int(-ky) if kx > 0 else int(ky)] for kx, ky in images.half_plane.k.tolist()]
        image_ft = torch.where(images.half_plane.k[:, 0] == 0, image_ft.conj(), image_ft)[:, partner]
    return image_ft.conj() if turn[0, 0] < 0 else image_ft


CASES = [(loss, copy) for loss, copies in SYMMETRIC.items() for copy in copies]


@pytest.mark.parametrize("block", [11, 250])
@pytest.mark.parametrize("with_alternatives", [False, True])
@pytest.mark.parametrize(("loss", "copy"), CASES)
def test_encode_returns_the_poses_of_the_images(
    astigmatic_blobs: ParticleStack, loss: Literal["half-turn", "generalised"], copy: str, with_alternatives: bool, block: int
) -> None:
    model, images, pose = model_and_images(astigmatic_blobs, symmetric_loss=loss, alternatives=with_alternatives)
    turn = SYMMETRIC[loss][copy]
    model.encoder = Knows(as_copy(images, turn), pose.in_turned_image(turn))
    found = encode(model, images, block)
    assert model.encoder.recognised == N
    assert angular_distance_deg(found.rotation, pose.rotation).max() < 0.1
    torch.testing.assert_close(found.shift_px, pose.shift_px, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("loss", "copy"), [("half-turn", "mirror"), ("none", "half turn"), ("none", "mirror")])
def test_copies_not_used_in_the_loss_are_not_encoded(astigmatic_blobs: ParticleStack, loss: str, copy: str) -> None:
    model, images, pose = model_and_images(astigmatic_blobs, symmetric_loss=loss)
    turn = SYMMETRIC["generalised"][copy]
    model.encoder = Knows(as_copy(images, turn), pose.in_turned_image(turn))
    found = encode(model, images)
    assert model.encoder.recognised == 0
    assert angular_distance_deg(found.rotation, pose.rotation).median() > 20


def test_every_copy_adds_its_candidates(astigmatic_blobs: ParticleStack) -> None:
    """Number of hypotheses, times 4 with half turns, times the copies; each has the shift of its copy."""
    wanted = {
        ("none", False): 3,
        ("none", True): 12,
        ("half-turn", False): 6,
        ("generalised", False): 12,
        ("generalised", True): 48,
    }
    for (loss, with_alternatives), count in wanted.items():
        model, images, _ = model_and_images(astigmatic_blobs, symmetric_loss=loss, alternatives=with_alternatives)
        with torch.no_grad():
            found = candidates(model.eval(), images.batch(slice(None)))
        assert found.rotation.shape == (N, count, 3, 3) and found.shift_px.shape == (N, count, 2)
        torch.testing.assert_close(torch.linalg.det(found.rotation), torch.ones(N, count), atol=1e-5, rtol=0)
