"""Stage 1 of every preset runs: three small updates on a few blobs."""

import dataclasses

import pytest
import torch
from lightning_fabric import Fabric

from ace_em.config import changed
from ace_em.data.particle_stack import ParticleStack
from ace_em.models.fourier_mlp import FourierEncoder
from ace_em.models.fourier_net import FourierNet
from ace_em.models.resnet import ResNetEncoder
from ace_em.models.voxel_grid import VoxelGrid
from ace_em.presets import PRESETS, preset
from ace_em.training.infer import encode
from ace_em.training.loop import Training


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains(astigmatic_blobs: ParticleStack, name: str) -> None:
    config = dataclasses.replace(preset(name).ace, batch=16, steps=3)
    trained = Training(astigmatic_blobs, 10.0, config, Fabric(accelerator="cpu", devices=1), 0)
    log = list(trained)
    assert len(log) == 3
    for progress in log:
        assert torch.isfinite(torch.stack(list(progress.losses.values()))).all()
        assert progress.losses["image"] > 0 and ("pose" in progress.losses) == config.pip
    assert all(p.isfinite().all() for p in trained.model.parameters())
    assert all(p.grad is not None for p in trained.model.parameters())
    assert isinstance(trained.model.decoder, VoxelGrid if config.decoder == "voxel" else FourierNet)
    assert isinstance(trained.model.encoder, FourierEncoder if config.encoder == "fourier" else ResNetEncoder)
    volume = trained.model.decoder.volume()
    pose = encode(trained.model, astigmatic_blobs.subset(slice(0, 5)))
    assert volume.shape == (16, 16, 16) and volume.isfinite().all()
    torch.testing.assert_close(torch.linalg.det(pose.rotation), torch.ones(5), atol=1e-5, rtol=0)
    assert pose.shift_px.abs().max() <= config.max_shift * 16


@pytest.mark.parametrize("decoder", ["voxel", "fouriernet"])
# not the ResNet: on CPUs oneDNN's bfloat16 convolutions differ from call to call, up to NaN (torch 2.13)
@pytest.mark.parametrize("encoder", ["fourier"])
def test_mixed_precision_changes_little(astigmatic_blobs: ParticleStack, encoder: str, decoder: str) -> None:
    """The encoder runs in bfloat16; transforms, slices, SIRENs and losses stay in float32."""
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        ace = changed(preset("fast"), {"ace.encoder": encoder, "ace.decoder": decoder, "ace.steps": 1, "ace.batch": 16}).ace
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)  # type: ignore[arg-type]
        log = list(Training(astigmatic_blobs, 10.0, ace, fabric, 0))
        losses.append(torch.stack([torch.stack([p.losses[name] for name in ("total", "image", "shift", "pose")]) for p in log]))
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], rtol=0.1, atol=0.03)
    assert not torch.equal(losses[0], losses[1])
