"""Stage 1 on a few blobs: learning, reproducibility, and all settings."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import roma
import torch
from lightning_fabric import Fabric
from torch import Tensor

from ace_em.config import AceConfig, FourierEncoderConfig, VoxelGridConfig
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.rotations import HALF_TURNS, angular_distance_deg
from ace_em.maths.slices import central_slices, volume_to_ft
from ace_em.models.encoder import Hypotheses
from ace_em.models.resnet import ResNetEncoder
from ace_em.models.voxel_grid import VoxelGrid
from ace_em.physics.imaging import project, shift_phase
from ace_em.physics.pose import Pose
from ace_em.tasks.schedules import StepPlan
from ace_em.training.autoencoder import build_model
from ace_em.training.infer import encode
from ace_em.training.loop import Progress, Training, optimiser
from stacks import FixedStack

DIAMETER = 10.0
SMALL = AceConfig(
    steps=60,
    batch=48,
    warmup_steps=5,
    first_band=2.6,
    last_band=4.0,
    lr_encoder=2e-3,
    fourier=FourierEncoderConfig(band=4.0, width=64, depth=2),
)


def run(stack: FixedStack, seed: int = 0, **settings: Any) -> tuple[Training, list[Progress]]:
    config = dataclasses.replace(SMALL, **settings)
    training = Training(stack, DIAMETER, config, Fabric(accelerator="cpu", devices=1), seed)
    return training, list(training)


def state(trained: Training) -> list[Tensor]:
    return list(trained.model.state_dict().values())


@pytest.mark.parametrize("pip", [True, False])
def test_learns(blobs: FixedStack, pip: bool) -> None:
    trained, log = run(blobs, march=0.0, steps=100, pip=pip)
    assert [p.step for p in log] == list(range(1, 101))
    image = torch.stack([p.losses["image"] for p in log])
    assert image[-10:].mean() < 0.5 * image[:5].mean()
    assert image[0] < 1.5
    assert all(("pose" in p.losses) == pip for p in log)
    if pip:
        pose = torch.stack([p.losses["pose"] for p in log])
        assert (pose > 0).all() and pose[-10:].mean() < pose[:5].mean()
    volume = trained.model.decoder.volume().detach()
    assert volume.shape == (16, 16, 16)
    # the initial blob is a ball; the learnt volume is not
    assert (volume - volume.transpose(0, 2)).norm() > 0.1 * volume.norm()


def test_a_given_model_is_moved_to_the_device_of_the_images(blobs: FixedStack) -> None:
    """The half-plane is not a parameter and does not move with the model."""

    class Moved(FixedStack):
        def to(self, device: torch.device) -> FixedStack:
            return dataclasses.replace(FixedStack(**vars(self)), half_plane=elsewhere)

    elsewhere = HalfPlane(16, blobs.half_plane.k.clone(), blobs.half_plane.radius.clone())
    model = build_model(blobs, DIAMETER, SMALL, torch.Generator().manual_seed(0))
    fabric = Fabric(accelerator="cpu", devices=1)
    trained = Training(Moved(**vars(blobs)), DIAMETER, dataclasses.replace(SMALL, steps=1), fabric, 0, model=model)
    assert len(list(trained)) == 1
    assert trained.model.half_plane is elsewhere


def test_the_decoder_sets_its_learning_rate(blobs: FixedStack) -> None:
    class Slow(VoxelGrid):
        def learning_rate(self, config: AceConfig) -> float:
            return config.voxel.lr / 100

    for name, rate in (("voxel", SMALL.voxel.lr), ("fouriernet", SMALL.fouriernet.lr)):
        model = build_model(blobs, DIAMETER, dataclasses.replace(SMALL, decoder=name), torch.Generator().manual_seed(0))
        assert optimiser(model, SMALL).param_groups[1]["lr"] == rate
    model.decoder = Slow(16, 7.0, 2.0)
    assert optimiser(model, SMALL).param_groups[1]["lr"] == SMALL.voxel.lr / 100


def test_same_seed_gives_identical_results(blobs: FixedStack) -> None:
    (one, log), (same, same_log), (other, _) = run(blobs, 3, steps=6), run(blobs, 3, steps=6), run(blobs, 4, steps=6)
    assert all(torch.equal(a, b) for a, b in zip(state(one), state(same), strict=True))
    assert [p.losses["total"].item() for p in log] == [p.losses["total"].item() for p in same_log]
    assert not torch.equal(one.model.decoder.density, other.model.decoder.density)
    assert not torch.equal(one.model.encoder.heads.rotation.weight, other.model.encoder.heads.rotation.weight)


def test_global_random_state_is_unchanged(blobs: FixedStack) -> None:
    torch.manual_seed(1)
    wanted = torch.randn(3)
    torch.manual_seed(1)
    one = run(blobs, 3, steps=2)[0]
    assert torch.equal(torch.randn(3), wanted)
    torch.manual_seed(2)
    torch.randn(10)
    assert all(torch.equal(a, b) for a, b in zip(state(one), state(run(blobs, 3, steps=2)[0]), strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        {"pip": False},
        {"pip_freeze_decoder": False},
        {"encoder": "resnet", "batch": 16},
        {"symmetric_loss": "half-turn"},
        {"hypotheses": 1, "alternatives": False},
        {"hypotheses": 1, "alternatives": True},
        {"schedule": "constant"},
        {"pip_warmup_steps": 2},
    ],
    ids=str,
)
def test_every_setting_runs_and_has_an_effect(blobs: FixedStack, settings: dict[str, Any]) -> None:
    trained, log = run(blobs, steps=3, **settings)
    assert all(torch.isfinite(torch.stack(list(p.losses.values()))).all() for p in log)
    assert all(torch.isfinite(p).all() for p in trained.model.parameters())
    standard = run(blobs, steps=3)[1]
    assert [p.losses["total"].item() for p in log] != [p.losses["total"].item() for p in standard]
    assert isinstance(trained.model.encoder, ResNetEncoder) == (settings.get("encoder") == "resnet")


def test_the_total_is_eq_14(blobs: FixedStack) -> None:
    settings: dict[str, Any] = {
        "steps": 4,
        "shift_weight": 0.0,
        "alternative_weight": 0.0,
        "pip_weight": 0.4,
        "pip_warmup_steps": 2,
    }
    _, log = run(blobs, **settings)
    for step, p in enumerate(log):
        beta = 0.4 if step >= 2 else 0.0
        assert ("pose" in p.losses) == (step >= 2)
        torch.testing.assert_close(p.losses["total"], p.losses["image"] + beta * p.losses.get("pose", torch.zeros(())))
    # the other two terms are added with their weights
    for weight in ("shift_weight", "alternative_weight"):
        terms = []
        for value in (0.5, 1.0):
            first = run(blobs, **settings | {weight: value})[1][0].losses
            assert first["image"] == log[0].losses["image"]
            terms.append((first["total"] - log[0].losses["total"]).item())
        assert terms[0] > 1e-5
        assert terms[1] == pytest.approx(2 * terms[0], rel=1e-2)


def test_drawn_shifts_follow_the_spread_of_the_predictions(blobs: FixedStack) -> None:
    model, images, pose = model_and_images(blobs)
    first = model.shift_sd_px.item()
    assert first == pytest.approx(SMALL.pip_shift_sd * DIAMETER)
    for factor in (3.0, 0.0):
        model.encoder = Answers(pose.rotation[:, None], factor * pose.shift_px)
        before = model.shift_sd_px.item()
        batch = images.batch(slice(None))
        model(batch.image_ft, batch.effective_ctf, batch.noise_variance, StepPlan(4.0, 0.0, 1), torch.Generator())
        # at least half of the initial value
        spread = max(factor * pose.shift_px.std().item(), first / 2)
        assert model.shift_sd_px.item() == pytest.approx(0.99 * before + 0.01 * spread, rel=1e-4)


def test_the_band_is_given_in_shells(blobs: FixedStack) -> None:
    _, log = run(blobs, steps=4, march=0.5, first_band=2.0, last_band=4.0)
    # 1.6 shells of the box are one cycle per diameter
    torch.testing.assert_close(torch.tensor([p.band for p in log]), torch.tensor([3.2, 4.8, 6.4, 6.4]))


def test_learning_rates_follow_the_schedule(blobs: FixedStack) -> None:
    """With a learning rate of 0, the encoder or decoder does not change."""
    start = build_model(blobs, DIAMETER, SMALL, torch.Generator().manual_seed(1))
    groups = optimiser(start, SMALL).param_groups
    assert [g["lr"] for g in groups] == [SMALL.lr_encoder, SMALL.voxel.lr]
    assert sum(len(g["params"]) for g in groups) == len(list(start.parameters()))
    trained, _ = run(blobs, steps=3, voxel=VoxelGridConfig(lr=0.0))
    assert torch.equal(trained.model.decoder.density, start.decoder.density)
    slow, _ = run(blobs, steps=1, warmup_steps=1000)
    fast, _ = run(blobs, steps=1, warmup_steps=1)
    moved = [(t.model.decoder.density - start.decoder.density).abs().max().item() for t in (slow, fast)]
    # Adam's first step is the learning rate
    assert moved[1] == pytest.approx(SMALL.voxel.lr, rel=0.01) and moved[0] == pytest.approx(SMALL.voxel.lr / 1000, rel=0.01)


def test_the_starting_blob_has_the_amplitude_of_the_images(blobs: FixedStack) -> None:
    generator = torch.Generator().manual_seed(1)
    amplitudes = []
    for factor in (1.0, 7.0):
        images = blobs.with_images(blobs.image_ft * factor)
        model = build_model(images, DIAMETER, SMALL, generator)
        amplitudes.append(model.decoder.volume().max().item())
        with torch.no_grad():
            predicted = model.decoder.projector()(images.half_plane, torch.eye(3)) * images.effective_ctf
        # no other amplitude fits better
        share = (images.image_ft * predicted.conj()).real.sum() / predicted.abs().square().sum()
        assert share == pytest.approx(1, abs=0.1)
    assert amplitudes[1] == pytest.approx(7 * amplitudes[0], rel=1e-3)


TWO_PROCESSES = """
import dataclasses, sys, warnings
import torch
from lightning_fabric import Fabric
from ace_em.training.loop import Training

def work(fabric, folder, devices):
    torch.set_num_threads(1)
    images, diameter, config = torch.load(f"{folder}/input.pt", weights_only=False)
    training = Training(images, diameter, config, fabric, 5)
    list(training)
    model = training.model
    parameters = [p.detach() for p in model.parameters()]
    torch.save((fabric.world_size, parameters), f"{folder}/{devices}-{fabric.global_rank}.pt")

if __name__ == "__main__":
    work(Fabric(accelerator="cpu", devices=1), sys.argv[1], 1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp_fork")
    fabric.launch(work, sys.argv[1], 2)
"""


def test_two_processes_share_one_model(blobs: FixedStack, tmp_path: Path) -> None:
    """Gradients are averaged, so both processes end with the same weights. Batches differ, so a single process does not."""
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    torch.save((blobs, DIAMETER, dataclasses.replace(SMALL, steps=3)), tmp_path / "input.pt")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    loaded = [torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1")]
    assert [world for world, _ in loaded] == [1, 2, 2]
    alone, first, second = (parameters for _, parameters in loaded)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(alone) == len(first) and not any(torch.equal(a, b) for a, b in zip(alone, first, strict=True) if a.dim() > 1)


class Answers(torch.nn.Module):
    """An encoder that returns given poses."""

    def __init__(self, rotation: Tensor, shift_px: Tensor) -> None:
        super().__init__()
        self.rotation, self.shift_px, self.done = rotation, shift_px, 0

    def forward(self, image_ft: Tensor) -> Hypotheses:
        rows = slice(self.done, self.done + len(image_ft))
        self.done += len(image_ft)
        return Hypotheses(self.rotation[rows], self.shift_px[rows])


def model_and_images(blobs: FixedStack) -> tuple[Any, FixedStack, Pose]:
    """A model with a lumpy volume in the decoder, and noise-free images of it."""
    generator = torch.Generator().manual_seed(2)
    model = build_model(blobs, DIAMETER, SMALL, generator)
    with torch.no_grad():
        model.decoder.density *= torch.randn(model.decoder.density.shape, generator=generator)
    n = 50
    pose = Pose(roma.random_rotmat(n, generator=generator), torch.randn(n, 2, generator=generator))
    with torch.no_grad():
        image_ft = project(volume_to_ft(model.decoder.volume()), blobs.effective_ctf[:n], blobs.half_plane, pose)
    return model, FixedStack.of(blobs.half_plane, image_ft, blobs.effective_ctf[:n], 0.1), pose


@pytest.mark.parametrize("block", [7, 250])
def test_encode_finds_a_planted_candidate(blobs: FixedStack, block: int) -> None:
    """The true rotation, or one of its half turns, is at a different index of the hypotheses for every image."""
    model, images, pose = model_and_images(blobs)
    n = len(images)
    hypotheses = roma.random_rotmat((n, 4), generator=torch.Generator().manual_seed(5))
    hypotheses[torch.arange(n), torch.arange(n) % 4] = pose.rotation @ HALF_TURNS[torch.arange(n) % 3 + torch.arange(n) % 2]
    model.encoder = Answers(hypotheses, pose.shift_px)
    found = encode(model, images, block)
    assert angular_distance_deg(found.rotation, pose.rotation).max() < 0.1
    assert torch.equal(found.shift_px, pose.shift_px)


def test_encode_takes_the_lowest_residual(blobs: FixedStack) -> None:
    """Of the 16 candidates of an untrained encoder, compared one by one."""
    model, images, _ = model_and_images(blobs)
    found = encode(model, images)
    assert not model.training
    with torch.no_grad():
        hypotheses = model.encoder(images.image_ft)
    torch.testing.assert_close(found.shift_px, hypotheses.shift_px)
    volume_ft = volume_to_ft(model.decoder.volume().detach())
    factor = images.effective_ctf * shift_phase(images.half_plane, hypotheses.shift_px)

    def residual(rotation: Tensor) -> Tensor:
        return (central_slices(volume_ft, images.half_plane, rotation) * factor - images.image_ft).abs().square().sum(-1)

    candidates = [hypotheses.rotation[:, m] @ turn for m in range(4) for turn in HALF_TURNS]
    least = torch.stack([residual(c) for c in candidates]).amin(0)
    torch.testing.assert_close(residual(found.rotation), least, rtol=1e-4, atol=0)
    assert len({int(i) for i in torch.stack([residual(c) for c in candidates]).argmin(0)}) > 4
