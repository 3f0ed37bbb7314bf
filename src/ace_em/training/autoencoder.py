"""The autoencoder: encoder, decoder, and the total loss L_IPI + beta L_PIP (eq. 14)."""

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
    """Encoder and decoder in one module, so that a single ``forward`` runs both tasks and Fabric wraps a single module.

    Parameters
    ----------
    half_plane : half-plane of the images.
    power : mean squared norm of the images, which normalises the image loss.
    shift_sd_px : initial standard deviation per axis of the shifts in PIP. It then follows that of the shifts found by IPI.
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
        self.min_shift_sd_px = shift_sd_px / 2
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
        """Losses of whitened images (copies * b, n), copy after copy, with their effective CTF and noise variance.

        Only the encoder runs in mixed precision; everything else is float32 even inside an autocast context.

        Parameters
        ----------
        parts : number of parts in which images are projected. With more than one, activations are recomputed in the backward
            pass, which saves memory and gives the same losses.
        """
        device = image_ft.device.type
        self.encoder.autocast_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
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
            spread = ipi.shift_sd_px.clamp(min=self.min_shift_sd_px)
        if plan.beta > 0:
            first = batch.rows(slice(0, len(batch) // plan.copies))
            pip = pose_image_pose(self.encoder, project, first, self.shift_sd_px, generator, self.config)
            losses |= pip
            total = total + plan.beta * pip["pose"]
        if plan.ipi:
            self.shift_sd_px.lerp_(spread, 0.01)
        return {"total": total} | {name: loss.detach() for name, loss in losses.items()}


def in_parts(project: Projector, parts: int) -> Projector:
    """A projector that processes its rotations (b, ..., 3, 3) in ``parts`` chunks; see :meth:`AutoEncoder.forward`."""
    if parts == 1:
        return project

    def projected(half_plane: HalfPlane, rotation: Tensor) -> Tensor:
        def project_chunk(chunk: Tensor) -> Tensor:
            return project(half_plane, chunk)

        return torch.cat([checkpoint(project_chunk, chunk, use_reentrant=False) for chunk in rotation.chunk(parts)])

    return projected


def build_model(stack: ParticleStack, diameter_px: float, config: AceConfig, generator: torch.Generator) -> AutoEncoder:
    """The untrained autoencoder for a stack, with the amplitude of the decoder fitted to the first images."""
    decoder = build_decoder(stack.box, diameter_px, config)
    amplitude = _blob_amplitude if decoder.starts_as_blob else _signal_amplitude
    decoder.scale_to(amplitude(decoder, stack, generator))
    encoder = build_encoder(stack.half_plane, diameter_px, config)
    first = stack.images(slice(0, 1000), stack.row.device)
    power = torch.view_as_real(first).square().sum((-1, -2)).mean().item()
    return AutoEncoder(encoder, decoder, stack.half_plane, power, config.pip_shift_sd * diameter_px, config)


@torch.no_grad()
def _first_projections(decoder: Decoder, stack: ParticleStack, generator: torch.Generator) -> tuple[Batch, Tensor]:
    """The first images, and projections of the untrained decoder at random poses with the CTFs of these images."""
    batch = stack.batch(slice(0, 200), stack.row.device)
    pose = draw_poses(len(batch), 0.0, torch.Generator().manual_seed(generator.initial_seed()))
    decoder.to(batch.image_ft.device)
    return batch, decoder.projector()(batch.half_plane, pose.rotation.to(batch.image_ft.device)) * batch.effective_ctf


def _signal_amplitude(decoder: Decoder, stack: ParticleStack, generator: torch.Generator) -> float:
    """Amplitude at which the projections have the signal power of the images."""
    batch, predicted = _first_projections(decoder, stack, generator)
    power = batch.image_ft.abs().square().sum(1).mean()
    signal = (power - batch.noise_variance.sum(1).mean()).clamp(min=1e-3 * power)
    return (signal / predicted.abs().square().sum(1).mean()).sqrt().item()


def _blob_amplitude(decoder: Decoder, stack: ParticleStack, generator: torch.Generator) -> float:
    """Least-squares amplitude of the initial blob, fitted to the first images."""
    batch, blob = _first_projections(decoder, stack, generator)
    fitted = (batch.image_ft * blob.conj()).real.sum() / blob.abs().square().sum()
    return max(fitted.item(), 1e-3 * (batch.image_ft.abs().square().mean() / blob.abs().square().mean()).sqrt().item())
