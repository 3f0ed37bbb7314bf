"""One update's losses from one batch: L_IPI + beta L_PIP (eq. 14), in one ``forward``."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ace_em.config import AceConfig
from ace_em.data.working_set import WorkingSet
from ace_em.maths.fourier import HalfPlane
from ace_em.models.decoder import Decoder
from ace_em.models.encoder import PoseEncoder
from ace_em.tasks.ipi import image_pose_image
from ace_em.tasks.pip import pose_image_pose
from ace_em.tasks.schedules import StepPlan


class Losses(NamedTuple):
    """Scalars; ``total`` is eq. 14."""

    total: Tensor
    image: Tensor
    pose: Tensor


class AutoEncoder(nn.Module):
    """Encoder and decoder side by side, so that one ``forward`` runs both tasks (and one wrapper distributes them)."""

    noise_variance: Tensor
    shift_sd_px: Tensor

    def __init__(
        self,
        encoder: PoseEncoder,
        decoder: Decoder,
        half_plane: HalfPlane,
        noise_variance: Tensor,
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
        self.register_buffer("noise_variance", noise_variance)
        self.register_buffer("shift_sd_px", torch.tensor(shift_sd_px))

    def forward(self, image_ft: Tensor, transfer: Tensor, plan: StepPlan, generator: torch.Generator) -> Losses:
        """Losses of images (copies * b, n) with their transfer, copy after copy.

        Mixed precision is for the encoder alone, whichever context this is called in.
        """
        device = image_ft.device.type
        self.encoder.short_floats = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        with torch.autocast(device, enabled=False):
            return self._losses(image_ft, transfer, plan, generator)

    def _losses(self, image_ft: Tensor, transfer: Tensor, plan: StepPlan, generator: torch.Generator) -> Losses:
        batch = WorkingSet(self.half_plane, image_ft, transfer, self.noise_variance)
        project = self.decoder.projector()
        total = image = pose = torch.zeros((), device=image_ft.device)
        if plan.ipi:
            ipi = image_pose_image(self.encoder, project, batch, plan, self.power, self.config)
            image = ipi.image
            total = image + self.config.shift_weight * ipi.shift + self.config.mate_weight * ipi.mate
            spread = ipi.shift_sd_px.clamp(min=self.least_shift_sd)
        if plan.beta > 0:
            first = batch.rows(slice(0, len(batch) // plan.copies))
            pose = pose_image_pose(self.encoder, project, first, self.shift_sd_px, generator, self.config)
            total = total + plan.beta * pose
        if plan.ipi:
            # PIP's shifts follow the spread that IPI finds in the data
            self.shift_sd_px.lerp_(spread, 0.01)
        return Losses(total, image.detach(), pose.detach())
