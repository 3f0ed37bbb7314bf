"""Pose-image-pose: sampled poses, the input of the encoder, and gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ace_em.config import AceConfig, SimulationConfig
from ace_em.data.particles import Particles
from ace_em.data.preprocess import read_stack
from ace_em.data.survey import survey
from ace_em.maths.fourier import radius_grid
from ace_em.maths.half_plane import HalfPlane
from ace_em.models.encoder import Hypotheses
from ace_em.models.fourier_mlp import FourierEncoder
from ace_em.physics.imaging import shift_phase
from ace_em.simulation.write import simulate
from ace_em.tasks.pip import background_noise, draw_poses, pose_image_pose

STRUCTURE = Path(__file__).parents[2] / "examples/data/5nrl_every10th_atom.npz"


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_drawn_rotations_are_uniform() -> None:
    n = 6000
    pose = draw_poses(n, 1.5, seeded())
    rotation = pose.rotation
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(n))
    # entries have mean 0 and variance 1/3: five standard errors
    assert rotation.mean(0).abs().max() < 5 * (1 / 3 / n) ** 0.5
    for axis in range(3):
        column = rotation[:, :, axis]
        second = (column[:, :, None] * column[:, None]).mean(0)
        torch.testing.assert_close(second, torch.eye(3) / 3, atol=0.02, rtol=0)
    # the trace of a uniform rotation has mean 0 and mean square 1
    trace = rotation.diagonal(dim1=1, dim2=2).sum(1)
    assert trace.mean().abs() < 0.07 and trace.square().mean() == pytest.approx(1, abs=0.08)
    assert pose.shift_px.mean(0).abs().max() < 0.1
    torch.testing.assert_close(pose.shift_px.std(0), torch.full((2,), 1.5), rtol=0.05, atol=0)


def test_draws_follow_the_generator() -> None:
    one, same, other = draw_poses(5, 1.0, seeded()), draw_poses(5, 1.0, seeded()), draw_poses(5, 1.0, seeded(4))
    assert torch.equal(one.rotation, same.rotation) and torch.equal(one.shift_px, same.shift_px)
    assert not torch.equal(one.rotation, other.rotation) and not torch.equal(one.shift_px, other.shift_px)
    generator = seeded()
    assert not torch.equal(draw_poses(5, 1.0, generator).rotation, draw_poses(5, 1.0, generator).rotation)


def test_noise_has_the_given_variance() -> None:
    half_plane = HalfPlane.within(16)
    variance = torch.where(half_plane.radius < 3, 0.25, 4.0)
    noise = background_noise(20000, half_plane, variance, seeded())
    torch.testing.assert_close(noise.abs().square().mean(0), variance, rtol=0.06, atol=0)
    assert noise.mean(0).abs().max() < 0.1
    assert torch.equal(noise, background_noise(20000, half_plane, variance, seeded()))
    assert background_noise(10, half_plane, 0 * variance, seeded()).abs().max() == 0


def test_noise_matches_that_of_the_images(tmp_path: Path) -> None:
    """Compared with preprocessed images of pure noise: the same variance in the middle and in the corners."""
    config = SimulationConfig(n=2000, box=32, pixel_size=17.0, resolution=50.0, snr_db=-60.0, shift_sd=0.0)
    simulate(STRUCTURE, tmp_path, config)
    particles = Particles.open(tmp_path / "particles.star")
    images = read_stack(particles, survey(particles, sign=1.0), 32).batch(slice(None))
    drawn = background_noise(2000, images.half_plane, images.noise_variance, seeded())
    real, made = (images.half_plane.to_image(ft).var(0) for ft in (images.image_ft, drawn))
    radius = radius_grid(32, 2)
    for ring in (radius < 5, (radius > 8) & (radius < 12), radius > 18):
        assert made[ring].mean() == pytest.approx(real[ring].mean().item(), rel=0.05, abs=0.01 * real.max().item())
    assert made[radius < 5].mean() > 1.3 * made.mean() and made[radius > 18].mean() < 0.1 * made.mean()


def loss_and_input(planted: Any, noise: float, seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """PIP loss with an encoder that returns the sampled poses, the image it received, and the noise-free image."""
    batch = planted.images
    batch.noise_variance.fill_(noise)
    drawn = draw_poses(len(batch), 1.2, seeded(seed))
    seen = []

    def encoder(image_ft: Tensor) -> Hypotheses:
        seen.append(image_ft)
        return Hypotheses(drawn.rotation[:, None], drawn.shift_px)

    loss = pose_image_pose(encoder, planted.project, batch, 1.2, seeded(seed), AceConfig())["pose"]  # type: ignore[arg-type]
    clean = (
        planted.project(batch.half_plane, drawn.rotation) * batch.effective_ctf * shift_phase(batch.half_plane, drawn.shift_px)
    )
    return loss, seen[0], clean.detach()


def test_the_encoder_sees_the_image_of_the_drawn_pose(planted: Any) -> None:
    loss, shown, clean = loss_and_input(planted, 0.0)
    assert loss == 0
    torch.testing.assert_close(shown, clean)
    assert not shown.requires_grad


def test_the_encoder_sees_background_noise(planted: Any) -> None:
    loss, shown, clean = loss_and_input(planted, 4.0)
    assert loss == 0
    assert (shown - clean).abs().square().mean() == pytest.approx(4, rel=0.1)


def test_loss_is_in_fractions_of_the_box(planted: Any) -> None:
    batch = planted.images
    drawn = draw_poses(len(batch), 1.2, seeded())

    def encoder(image_ft: Tensor) -> Hypotheses:
        return Hypotheses(drawn.rotation[:, None], drawn.shift_px + torch.tensor([0.8, 0.0]))

    loss = pose_image_pose(encoder, planted.project, batch, 1.2, seeded(), AceConfig())["pose"]  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(0.8 / 16 / 2, rel=1e-4)


@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_decoder_does_not_move(planted: Any, freeze: bool) -> None:
    torch.manual_seed(0)
    batch, decoder = planted.images, planted.decoder
    encoder = FourierEncoder(batch.half_plane, 5, 2, 2.0, width=16, depth=1)
    adam = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters()], lr=0.1, weight_decay=0.1)
    density, weight = decoder.density.detach().clone(), encoder.heads.rotation.weight.detach().clone()
    loss = pose_image_pose(encoder, decoder.projector(), batch, 1.0, seeded(), AceConfig(pip_freeze_decoder=freeze))["pose"]
    assert loss > 0.1
    loss.backward()
    assert (decoder.density.grad is None) == freeze
    adam.step()
    assert torch.equal(decoder.density, density) == freeze
    assert not torch.equal(encoder.heads.rotation.weight, weight)
