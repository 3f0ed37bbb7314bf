"""Stage 1, read top to bottom: build, step, log, hand over."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ace_em.config import AceConfig
from ace_em.data.preprocess import WorkingSet
from ace_em.maths.rotations import mates
from ace_em.models.fourier_encoder import FourierEncoder
from ace_em.models.pose_encoder import PoseEncoder
from ace_em.models.resnet_encoder import ResNetEncoder
from ace_em.models.voxel_grid import VoxelGrid, ball_radius_px
from ace_em.physics.imaging import shift_phase
from ace_em.physics.pose import Pose
from ace_em.tasks.losses import image_residual
from ace_em.tasks.pip import draw_poses
from ace_em.tasks.schedules import band_per_diameter, learning_rate_factor, pip_weight
from ace_em.training.step import AutoEncoder, Losses, StepPlan


@dataclass(frozen=True)
class Progress:
    """What the loop reports after a step."""

    step: int
    losses: Losses
    band: float


@dataclass(frozen=True)
class TrainedModel:
    """Stage 1's result; ``model`` is on the CPU or the device it was trained on."""

    model: AutoEncoder

    @torch.no_grad()
    def volume(self) -> Tensor:
        return self.model.decoder.volume()


def build_model(images: WorkingSet, diameter_px: float, config: AceConfig, generator: torch.Generator) -> AutoEncoder:
    """Encoder and a blob of the images' brightness, for a working set."""
    box = images.box
    shells_per_band = box / diameter_px
    decoder = VoxelGrid(box, ball_radius_px(box, diameter_px), diameter_px / 6)
    decoder.scale_to(_blob_height(decoder, images, generator))
    encoder: PoseEncoder
    max_shift = config.max_shift * box
    if config.encoder == "fourier":
        band = config.encoder_band * shells_per_band
        encoder = FourierEncoder(images.half_plane, band, config.hypotheses, max_shift, config.width, config.depth)
    else:
        encoder = ResNetEncoder(images.half_plane, config.hypotheses, max_shift)
    power = torch.view_as_real(images.image_ft[:1000]).square().sum((-1, -2)).mean().item()
    return AutoEncoder(
        encoder, decoder, images.half_plane, images.noise_variance, power, config.pip_shift_sd * diameter_px, config
    )


def _blob_height(decoder: VoxelGrid, images: WorkingSet, generator: torch.Generator) -> float:
    """Least-squares brightness of the starting blob against the first images."""
    some = images.rows(slice(0, 200))
    pose = draw_poses(len(some), 0.0, torch.Generator().manual_seed(generator.initial_seed()))
    with torch.no_grad():
        blob = decoder.projector()(some.half_plane, pose.rotation.to(some.transfer.device)) * some.transfer
        height = (some.image_ft * blob.conj()).real.sum() / blob.abs().square().sum()
    return max(height.item(), 1e-3 * (some.image_ft.abs().square().mean() / blob.abs().square().mean()).sqrt().item())


def optimiser(model: AutoEncoder, config: AceConfig) -> torch.optim.AdamW:
    """AdamW with the encoder's and the volume's settings (the volume is stored in units of its height)."""
    return torch.optim.AdamW(
        [
            {"params": list(model.encoder.parameters()), "lr": config.lr_encoder, "weight_decay": 1e-3},
            {
                "params": list(model.decoder.parameters()),
                "lr": config.lr_decoder,
                "weight_decay": 0.0,
                "betas": (0.9, 0.95),
            },
        ]
    )


def train(
    images: WorkingSet,
    diameter_px: float,
    config: AceConfig,
    fabric: Fabric,
    seed: int,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> TrainedModel:
    """Train from random weights on a working set.

    Each process draws its own batches; the wrapper averages the gradients.
    """
    torch.manual_seed(seed)
    images = images.to(fabric.device)
    generator = torch.Generator(fabric.device).manual_seed(1 + seed * 1009 + fabric.global_rank)
    model = build_model(images, diameter_px, config, generator)
    adam = optimiser(model, config)
    base_rates = [group["lr"] for group in adam.param_groups]
    wrapped, wrapped_adam = fabric.setup(model, adam)
    shells_per_band = images.box / diameter_px
    model.train()
    for step in range(config.steps):
        for group, rate in zip(adam.param_groups, base_rates, strict=True):
            group["lr"] = rate * learning_rate_factor(step, config)
        band = band_per_diameter(step, config) * shells_per_band
        plan = StepPlan(band, pip_weight(step, config), 1 + step % 3)
        rows = torch.randint(len(images), (config.batch,), generator=generator, device=fabric.device)
        losses = wrapped(images.image_ft[rows], images.transfer[rows], plan, generator)
        wrapped_adam.zero_grad()
        fabric.backward(losses.total)
        wrapped_adam.step()
        on_step(Progress(step + 1, losses, band))
    return TrainedModel(model)


@torch.no_grad()
def encode(model: AutoEncoder, images: WorkingSet, block: int = 250) -> Pose:
    """The best of every image's hypotheses and their mates, scored on the whole half-plane."""
    model.eval()
    project = model.decoder.projector()
    device = next(model.parameters()).device
    half_plane = images.half_plane.to(device)
    poses = []
    for start in range(0, len(images), block):
        batch = images.rows(slice(start, start + block)).to(device)
        hypotheses = model.encoder(batch.image_ft)
        candidates = mates(hypotheses.rotation).flatten(1, 2)
        transfer = batch.transfer * shift_phase(half_plane, hypotheses.shift_px)
        residual = image_residual(batch.image_ft[:, None], project(half_plane, candidates) * transfer[:, None])
        best = candidates[torch.arange(len(batch), device=device), residual.argmin(1)]
        poses.append(Pose(best, hypotheses.shift_px))
    return Pose.cat(poses)
