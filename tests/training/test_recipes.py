"""Every preset's stage 1 runs: three small updates on a handful of blobs."""

import dataclasses

import pytest
import torch
from lightning_fabric import Fabric

from ace_em.config import PRESETS, changed, preset
from ace_em.data.working_set import WorkingSet
from ace_em.models.fourier_mlp import FourierEncoder
from ace_em.models.fourier_net import FourierNet
from ace_em.models.resnet import ResNetEncoder
from ace_em.models.voxel_grid import VoxelGrid
from ace_em.training.loop import Hooks, Progress, encode, train


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains(astigmatic_blobs: WorkingSet, name: str) -> None:
    config = dataclasses.replace(preset(name).ace, batch=16, steps=3)
    log: list[Progress] = []
    trained = train(astigmatic_blobs, 10.0, config, Fabric(accelerator="cpu", devices=1), 0, Hooks(log.append))
    assert len(log) == 3
    for progress in log:
        assert torch.isfinite(torch.stack(progress.losses)).all()
        assert progress.losses.image > 0 and (progress.losses.pose > 0) == config.pip
    assert all(p.isfinite().all() for p in trained.model.parameters())
    assert all(p.grad is not None for p in trained.model.parameters())
    assert isinstance(trained.model.decoder, VoxelGrid if config.decoder == "voxel" else FourierNet)
    assert isinstance(trained.model.encoder, FourierEncoder if config.encoder == "fourier" else ResNetEncoder)
    volume, pose = trained.volume(), encode(trained.model, astigmatic_blobs.rows(slice(0, 5)))
    assert volume.shape == (16, 16, 16) and volume.isfinite().all()
    torch.testing.assert_close(torch.linalg.det(pose.rotation), torch.ones(5), atol=1e-5, rtol=0)
    assert pose.shift_px.abs().max() <= config.max_shift * 16


def test_the_generalised_loss_asks_for_optics(blobs: WorkingSet) -> None:
    config = dataclasses.replace(preset("paper-voxel").ace, batch=16, steps=3)
    with pytest.raises(ValueError, match="optics"):
        train(blobs, 10.0, config, Fabric(accelerator="cpu", devices=1), 0)


@pytest.mark.parametrize("decoder", ["voxel", "fouriernet"])
# not the ResNet: on CPUs oneDNN's bfloat16 convolutions differ from call to call, up to NaN (torch 2.13)
@pytest.mark.parametrize("encoder", ["fourier"])
def test_short_floats_change_little(astigmatic_blobs: WorkingSet, encoder: str, decoder: str) -> None:
    """bfloat16 for the encoder's products; transforms, slices, SIRENs and losses stay in float32."""
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        log: list[Progress] = []
        ace = changed(preset("fast"), {"ace.encoder": encoder, "ace.decoder": decoder, "ace.steps": 1, "ace.batch": 16}).ace
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)  # type: ignore[arg-type]
        train(astigmatic_blobs, 10.0, ace, fabric, 0, Hooks(log.append))
        losses.append(torch.stack([torch.stack(p.losses).detach() for p in log]))
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], rtol=0.1, atol=0.03)
    assert not torch.equal(losses[0], losses[1])
