"""The autoencoder: encoder and decoder side by side, and one update's losses, L_IPI + beta L_PIP (eq. 14)."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ace_em.config import AceConfig
from ace_em.data.particle_stack import Batch, ParticleStack
from ace_em.maths.half_plane import HalfPlane
from ace_em.models.choice import build_decoder, build_encoder
from ace_em.models.decoder import Decoder, Projector
from ace_em.models.encoder import PoseEncoder
from ace_em.tasks.ipi import image_pose_image
from ace_em.tasks.pip import draw_poses, pose_image_pose
from ace_em.tasks.schedules import StepPlan

Losses = dict[str, Tensor]
"""Scalars by name; ``total`` is eq. 14."""


class AutoEncoder(nn.Module):
    """Encoder and decoder in one module, so that one ``forward`` runs both tasks (and one wrapper distributes them).

    Parameters
    ----------
    half_plane : of the images.
    power : their mean squared norm, which the image loss is relative to.
    shift_sd_px : first guess of the shifts' spread along an axis; PIP's shifts then follow the spread that IPI finds.
    """

    shift_sd_px: Tensor

    def __init__(
        self,
        encoder: PoseEncoder,
        decoder: Decoder,
        half_plane: HalfPlane,
        power: float,
        shift_sd_px: float,
        config: AceConfig,
    ) -> None:
        super().__init__()
        self.half_plane = half_plane
        self.encoder = encoder
        self.decoder = decoder
        self.power = power
        self.config = config
        self.least_shift_sd = shift_sd_px / 2
        self.register_buffer("shift_sd_px", torch.tensor(shift_sd_px))

    def forward(
        self,
        image_ft: Tensor,
        effective_ctf: Tensor,
        noise_variance: Tensor,
        plan: StepPlan,
        generator: torch.Generator,
        parts: int = 1,
    ) -> Losses:
        """Losses of whitened images (copies * b, n) with their effective CTF and noise variance, copy after copy.

        The encoder alone runs in mixed precision, whatever context this is called in.

        Parameters
        ----------
        parts : images are projected in so many parts, whose intermediate values are computed again in the backward pass: less
            memory for the same losses.
        """
        device = image_ft.device.type
        self.encoder.short_floats = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        with torch.autocast(device, enabled=False):
            project = in_parts(self.decoder.projector(), parts)
            return self._losses(Batch(self.half_plane, image_ft, effective_ctf, noise_variance), project, plan, generator)

    def _losses(self, batch: Batch, project: Projector, plan: StepPlan, generator: torch.Generator) -> Losses:
        losses: Losses = {}
        total = torch.zeros((), device=batch.image_ft.device)
        if plan.ipi:
            ipi = image_pose_image(self.encoder, project, batch, plan, self.power, self.config)
            losses |= ipi.losses
            total = ipi.losses["image"] + self.config.shift_weight * ipi.losses["shift"]
            total = total + self.config.alternative_weight * ipi.losses["alternative"]
            spread = ipi.shift_sd_px.clamp(min=self.least_shift_sd)
        if plan.beta > 0:
            first = batch.rows(slice(0, len(batch) // plan.copies))
            pip = pose_image_pose(self.encoder, project, first, self.shift_sd_px, generator, self.config)
            losses |= pip
            total = total + plan.beta * pip["pose"]
        if plan.ipi:
            self.shift_sd_px.lerp_(spread, 0.01)
        return {"total": total} | {name: loss.detach() for name, loss in losses.items()}


def in_parts(project: Projector, parts: int) -> Projector:
    """A projector that works on its rotations (b, ..., 3, 3) in ``parts``; see :meth:`AutoEncoder.forward`."""
    if parts == 1:
        return project

    def projected(half_plane: HalfPlane, rotation: Tensor) -> Tensor:
        def part(some: Tensor) -> Tensor:
            return project(half_plane, some)

        return torch.cat([checkpoint(part, some, use_reentrant=False) for some in rotation.chunk(parts)])

    return projected


def build_model(stack: ParticleStack, diameter_px: float, config: AceConfig, generator: torch.Generator) -> AutoEncoder:
    """The untrained autoencoder for a stack; the decoder's amplitude is fitted to the first images."""
    decoder = build_decoder(stack.box, diameter_px, config)
    amplitude = _blob_amplitude if decoder.starts_as_blob else _signal_amplitude
    decoder.scale_to(amplitude(decoder, stack, generator))
    encoder = build_encoder(stack.half_plane, diameter_px, config)
    first = stack.images(slice(0, 1000), stack.row.device)
    power = torch.view_as_real(first).square().sum((-1, -2)).mean().item()
    return AutoEncoder(encoder, decoder, stack.half_plane, power, config.pip_shift_sd * diameter_px, config)


@torch.no_grad()
def _first_projections(decoder: Decoder, stack: ParticleStack, generator: torch.Generator) -> tuple[Batch, Tensor]:
    """Some images, and the untrained decoder's projections at as many random poses, through their CTFs."""
    some = stack.batch(slice(0, 200), stack.row.device)
    pose = draw_poses(len(some), 0.0, torch.Generator().manual_seed(generator.initial_seed()))
    decoder.to(some.image_ft.device)
    return some, decoder.projector()(some.half_plane, pose.rotation.to(some.image_ft.device)) * some.effective_ctf


def _signal_amplitude(decoder: Decoder, stack: ParticleStack, generator: torch.Generator) -> float:
    """Gives the projections the power of the images' signal."""
    some, predicted = _first_projections(decoder, stack, generator)
    power = some.image_ft.abs().square().sum(1).mean()
    signal = (power - some.noise_variance.sum(1).mean()).clamp(min=1e-3 * power)
    return (signal / predicted.abs().square().sum(1).mean()).sqrt().item()


def _blob_amplitude(decoder: Decoder, stack: ParticleStack, generator: torch.Generator) -> float:
    """Least-squares amplitude of the starting blob against the first images."""
    some, blob = _first_projections(decoder, stack, generator)
    fitted = (some.image_ft * blob.conj()).real.sum() / blob.abs().square().sum()
    return max(fitted.item(), 1e-3 * (some.image_ft.abs().square().mean() / blob.abs().square().mean()).sqrt().item())
