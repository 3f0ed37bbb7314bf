"""Stage 1, read top to bottom: build, step, log, hand over."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ace_em.config import AceConfig
from ace_em.data.working_set import Images, WorkingSet
from ace_em.io.plain import Plain
from ace_em.maths.blocks import free_cached, is_out_of_memory
from ace_em.maths.fourier import HalfPlane
from ace_em.maths.image_rotation import half_turn, mirror_half_plane
from ace_em.maths.rotations import mates
from ace_em.models.decoder import Decoder
from ace_em.models.encoder import PoseEncoder
from ace_em.models.fourier_mlp import FourierEncoder
from ace_em.models.fourier_net import FourierNet
from ace_em.models.resnet import ResNetEncoder
from ace_em.models.voxel_grid import VoxelGrid, ball_radius_px
from ace_em.physics.imaging import shift_phase
from ace_em.physics.pose import Pose
from ace_em.tasks.ipi import image_copies
from ace_em.tasks.losses import image_residual
from ace_em.tasks.pip import draw_poses
from ace_em.tasks.schedules import StepPlan, learning_rate_factor, step_plan
from ace_em.training.autoencoder import AutoEncoder, Losses
from ace_em.training.state import TrainingState


@dataclass(frozen=True)
class Progress:
    """What the loop reports after a step."""

    step: int
    losses: Losses
    band: float
    model: AutoEncoder


@dataclass(frozen=True)
class TrainedModel:
    """Stage 1's result; ``model`` is on the CPU or the device it was trained on."""

    model: AutoEncoder

    @torch.no_grad()
    def volume(self) -> Tensor:
        return self.model.decoder.volume()


def build_model(images: Images, diameter_px: float, config: AceConfig, generator: torch.Generator) -> AutoEncoder:
    """Encoder and a blob of the images' brightness, for a working set."""
    box = images.box
    radius_px = ball_radius_px(box, diameter_px)
    decoder: Decoder
    if config.decoder == "voxel":
        decoder = VoxelGrid(box, radius_px, diameter_px / 6, integral=config.voxel_projector == "integral")
    else:
        decoder = FourierNet(box, radius_px, lattice=config.fouriernet_projector == "lattice")
    height = _blob_height if decoder.begins_as_blob else _signal_height
    decoder.scale_to(height(decoder, images, generator))
    encoder = build_encoder(images.half_plane, diameter_px, config)
    power = torch.view_as_real(images.rows(slice(0, 1000)).image_ft).square().sum((-1, -2)).mean().item()
    return AutoEncoder(
        encoder, decoder, images.half_plane, images.noise_variance, power, config.pip_shift_sd * diameter_px, config
    )


def build_encoder(half_plane: HalfPlane, diameter_px: float, config: AceConfig) -> PoseEncoder:
    """An encoder of random weights for the images of a working box."""
    max_shift = config.max_shift * half_plane.box
    if config.encoder == "resnet":
        return ResNetEncoder(half_plane, config.hypotheses, max_shift)
    band = config.encoder_band * half_plane.box / diameter_px
    return FourierEncoder(half_plane, band, config.hypotheses, max_shift, config.width, config.depth)


@torch.no_grad()
def _first_projections(decoder: Decoder, images: Images, generator: torch.Generator) -> tuple[WorkingSet, Tensor]:
    """Some images, and what the untrained decoder says of as many random poses."""
    some = images.rows(slice(0, 200))
    pose = draw_poses(len(some), 0.0, torch.Generator().manual_seed(generator.initial_seed()))
    decoder.to(some.transfer.device)
    return some, decoder.projector()(some.half_plane, pose.rotation.to(some.transfer.device)) * some.transfer


def _signal_height(decoder: Decoder, images: Images, generator: torch.Generator) -> float:
    """What brings the power of a decoder without a shape yet to that of the images' signal."""
    some, predicted = _first_projections(decoder, images, generator)
    power = some.image_ft.abs().square().sum(1).mean()
    signal = (power - some.noise_variance.sum()).clamp(min=1e-3 * power)
    return (signal / predicted.abs().square().sum(1).mean()).sqrt().item()


def _blob_height(decoder: Decoder, images: Images, generator: torch.Generator) -> float:
    """Least-squares brightness of the starting blob against the first images."""
    some, blob = _first_projections(decoder, images, generator)
    height = (some.image_ft * blob.conj()).real.sum() / blob.abs().square().sum()
    return max(height.item(), 1e-3 * (some.image_ft.abs().square().mean() / blob.abs().square().mean()).sqrt().item())


def optimiser(model: AutoEncoder, config: AceConfig) -> torch.optim.AdamW:
    """AdamW with the encoder's and the decoder's settings."""
    return torch.optim.AdamW(
        [
            {"params": list(model.encoder.parameters()), "lr": config.lr_encoder, "weight_decay": 1e-3},
            {
                "params": list(model.decoder.parameters()),
                "lr": model.decoder.learning_rate(config),
                "weight_decay": 0.0,
                "betas": (0.9, 0.95),
            },
        ]
    )


SAFE_EVERY = 25
"""Updates between two states that are kept: a loss that is no number, or a stop, loses fewer than these."""


@dataclass(frozen=True)
class Hooks:
    """Whom the loop tells what.

    Attributes
    ----------
    on_step : after every update.
    on_safe : with a packed state and the networks, every now and then.
    say : what the user should know.
    """

    on_step: Callable[[Progress], None] = lambda progress: None
    on_safe: Callable[[Plain, AutoEncoder], None] = lambda state, model: None
    say: Callable[[str], None] = lambda text: None


def train(
    images: Images,
    diameter_px: float,
    config: AceConfig,
    fabric: Fabric,
    seed: int,
    hooks: Hooks = Hooks(),
    begun: Plain | None = None,
    model: AutoEncoder | None = None,
) -> TrainedModel:
    """Train from random weights, those of a ``model``, or on from the state ``begun``, on a working set.

    Each process draws its own batches; the wrapper averages the gradients.

    Raises
    ------
    Diverged
        when going back to an earlier state at a lower learning rate has not helped three times.
    """
    torch.manual_seed(seed)
    images = images.to(fabric.device)
    generator = torch.Generator(fabric.device).manual_seed(1 + seed * 1009 + fabric.global_rank)
    model = build_model(images, diameter_px, config, generator) if model is None else model
    # its parts are made on the CPU and where the images are; they have to be in one place before there is an optimiser
    model = model.to(fabric.device)
    # no parameter, so that it does not move with the model
    model.half_plane = images.half_plane
    adam = optimiser(model, config)
    base_rates = [group["lr"] for group in adam.param_groups]
    state = TrainingState(model, adam, generator)
    wrapped, wrapped_adam = fabric.setup(model, adam)
    update = Update(images, config, fabric, wrapped, wrapped_adam, hooks.say)
    if begun is not None:
        state.load(begun)
    safe = begun or state.packed()
    while state.step < config.steps:
        model.train()
        for group, rate in zip(adam.param_groups, base_rates, strict=True):
            group["lr"] = rate * state.rate * learning_rate_factor(state.step, config)
        plan = step_plan(state.step, images.box / diameter_px, config)
        losses = update(state, plan)
        state.step += 1
        due = state.step % SAFE_EVERY == 0 or state.step == config.steps
        if not losses.total.isfinite() or (due and not state.is_finite()):
            state.take_back(safe)
            hooks.say(f"a loss of stage 1 is not a number: back to update {state.step}, at {state.rate:g} of the learning rate")
            continue
        hooks.on_step(Progress(state.step, losses, plan.band, model))
        if due:
            safe = state.packed()
            hooks.on_safe(safe, model)
    return TrainedModel(model)


@dataclass(frozen=True)
class Update:
    """One update of the networks from one random batch; in parts when the device has no memory for the whole."""

    images: Images
    config: AceConfig
    fabric: Fabric
    wrapped: Callable[..., Losses]
    adam: torch.optim.Optimizer
    say: Callable[[str], None]

    def __call__(self, state: TrainingState, plan: StepPlan) -> Losses:
        generator, n = state.generator, self.config.batch
        rows = torch.randint(len(self.images), (n,), generator=generator, device=self.fabric.device)
        while True:
            self.adam.zero_grad()
            try:
                losses = self._gradients(rows.chunk(state.parts), plan, generator)
                self.adam.step()
                return losses
            except (RuntimeError, MemoryError) as error:
                # two images are the least that a batch can be normalised over
                if not is_out_of_memory(error) or n // (2 * state.parts) < 2:
                    raise
            free_cached()
            state.parts *= 2
            self.say(f"out of memory: batches of {n} images in {state.parts} parts from now on")

    def _gradients(self, parts: Sequence[Tensor], plan: StepPlan, generator: torch.Generator) -> Losses:
        n, sums = sum(map(len, parts)), torch.zeros(3, device=self.fabric.device)
        for rows in parts:
            batch = image_copies(self.images.rows(rows), self.config, generator)
            losses = self.wrapped(batch.image_ft, batch.transfer, plan, generator)
            share = len(rows) / n
            self.fabric.backward(losses.total * share)
            sums += share * torch.stack([loss.detach() for loss in losses])
        return Losses(*sums)


@torch.no_grad()
def encode(model: AutoEncoder, images: Images, block: int = 250) -> Pose:
    """The best of every image's candidates (:func:`candidates`), scored on the whole half-plane."""
    model.eval()
    project = model.decoder.projector()
    device = next(model.parameters()).device
    half_plane = images.half_plane.to(device)
    poses = []
    for start in range(0, len(images), block):
        batch = images.rows(slice(start, start + block)).to(device)
        pose = candidates(model, batch)
        if pose.rotation.shape[1] == 1:
            poses.append(pose.column(0))
            continue
        transfer = batch.transfer[:, None] * shift_phase(half_plane, pose.shift_px)
        residual = image_residual(batch.image_ft[:, None], project(half_plane, pose.rotation) * transfer)
        best = torch.arange(len(batch), device=device), residual.argmin(1)
        poses.append(Pose(pose.rotation[best], pose.shift_px[best]))
    return Pose.cat(poses)


def candidates(model: AutoEncoder, batch: WorkingSet) -> Pose:
    """Poses (b, K) that the encoder proposes: its hypotheses, with their mates where those are scored in training.

    A symmetric loss asks the encoder to be right about one copy of the image only, so copies are read too, and their poses
    turned back: the half turn with eq. 6; half turn, mirror and both with eq. 7.
    """
    copies, turns = [batch.image_ft], [torch.eye(2)]
    if model.config.symmetric_loss == "generalised":
        copies.append(mirror_half_plane(batch.half_plane, batch.image_ft))
        turns.append(torch.diag(torch.tensor([1.0, -1.0])))
    if model.config.symmetric_loss != "none":
        copies += [half_turn(copy) for copy in copies]
        turns += [-turn for turn in turns]
    poses = []
    for copy, turn in zip(copies, turns, strict=True):
        found = model.encoder(copy)
        rotation = mates(found.rotation).flatten(1, 2) if model.config.mates else found.rotation
        shift = found.shift_px[:, None].expand(-1, rotation.shape[1], -1)
        poses.append(Pose(rotation, shift).in_turned_image(turn.T.to(rotation)))
    return Pose(torch.cat([p.rotation for p in poses], 1), torch.cat([p.shift_px for p in poses], 1))
