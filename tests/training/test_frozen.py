"""Updates with PIP alone: a frozen decoder is unchanged bit for bit, and one that is not frozen learns."""

import dataclasses
from typing import Any, Literal, get_args

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from ace_em.config import AceConfig, FourierEncoderConfig, FourierNetConfig, VoxelGridConfig
from ace_em.tasks.schedules import step_plan
from ace_em.training.autoencoder import build_model
from ace_em.training.loop import Training
from stacks import FixedStack

DIAMETER, STEPS, WARM_UP = 10.0, 6, 2
BASE = AceConfig(
    steps=STEPS,
    batch=8,
    warmup_steps=0,
    last_band=4.0,
    march=0.0,
    pip_warmup_steps=WARM_UP,
    fourier=FourierEncoderConfig(band=4.0, width=16, depth=1),
)
DECODERS: dict[str, dict[str, Any]] = {
    "voxel slice": {"decoder": "voxel"},
    "voxel integral": {"decoder": "voxel", "voxel": VoxelGridConfig(projector="integral")},
    "fouriernet direct": {"decoder": "fouriernet", "fouriernet": FourierNetConfig("direct")},
    "fouriernet lattice": {"decoder": "fouriernet", "fouriernet": FourierNetConfig("lattice")},
}
Schedule = Literal["together", "succession", "alternating"]
IPI: dict[Schedule, list[bool]] = {
    "together": [True] * STEPS,
    "succession": [True, True, False, False, False, False],
    "alternating": [True, True, True, False, True, False],
}


def parameters(module: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def moved(before: list[Tensor], after: list[Tensor]) -> list[bool]:
    return [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize("freeze", [True, False])
def test_only_ipi_moves_a_frozen_decoder(blobs: FixedStack, decoder: str, schedule: Schedule, freeze: bool) -> None:
    """Neither Adam's momentum nor weight decay may change it."""
    config = dataclasses.replace(BASE, pip_schedule=schedule, pip_freeze_decoder=freeze, **DECODERS[decoder])
    decoders, encoders, gradients = [], [], []

    training = Training(blobs, DIAMETER, config, Fabric(accelerator="cpu", devices=1), 0)
    for _ in training:
        decoders.append(parameters(training.model.decoder))
        encoders.append(parameters(training.model.encoder))
        gradients.append([p.grad for p in training.model.decoder.parameters()])
    assert len(decoders) == STEPS
    for step in range(1, STEPS):
        moves = IPI[schedule][step] or not freeze
        assert set(moved(decoders[step - 1], decoders[step])) == {moves}, step
        assert all((g is not None and g.abs().max() > 0) == moves for g in gradients[step]), step
        assert any(moved(encoders[step - 1], encoders[step]))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("freeze", [True, False])
def test_losses_of_a_pip_only_update(blobs: FixedStack, decoder: str, freeze: bool) -> None:
    """The total is beta L_PIP; the image loss is not computed, and the spread of the shifts is not updated."""
    config = dataclasses.replace(BASE, pip_schedule="succession", pip_freeze_decoder=freeze, pip_weight=0.4, **DECODERS[decoder])
    torch.manual_seed(0)
    model = build_model(blobs, DIAMETER, config, torch.Generator().manual_seed(1))
    plan, spread = step_plan(WARM_UP, 1.6, config), model.shift_sd_px.item()
    assert not plan.ipi
    batch = blobs.batch(slice(0, 8))
    losses = model(batch.image_ft, batch.effective_ctf, batch.noise_variance, plan, torch.Generator().manual_seed(3))
    assert set(losses) == {"total", "pose"} and losses["pose"] > 0.1
    torch.testing.assert_close(losses["total"].detach(), 0.4 * losses["pose"])
    assert model.shift_sd_px.item() == spread
    losses["total"].backward()
    assert all((p.grad is None) == freeze for p in model.decoder.parameters())
    assert all(p.grad is not None for p in model.encoder.parameters())
