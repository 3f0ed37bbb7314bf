"""A pose encoder on low-frequency Fourier coefficients, which is fast on a CPU."""

import torch
from torch import Tensor, nn

from ace_em.config import AceConfig
from ace_em.maths.half_plane import HalfPlane
from ace_em.models.encoder import PoseEncoder


class FourierEncoder(PoseEncoder):
    """A multilayer perceptron on the standardised real and imaginary parts of ``|k| <= max_radius``."""

    def __init__(
        self,
        half_plane: HalfPlane,
        max_radius: float,
        n_hypotheses: int,
        max_shift_px: float,
        width: int = 512,
        depth: int = 4,
    ) -> None:
        super().__init__(width, n_hypotheses, max_shift_px)
        self.n_read = len(half_plane.band(max_radius))
        n_inputs = 2 * self.n_read
        layers: list[nn.Module] = [nn.BatchNorm1d(n_inputs, affine=False)]
        for i in range(depth):
            layers += [nn.Linear(n_inputs if i == 0 else width, width), nn.LayerNorm(width), nn.GELU()]
        self.network = nn.Sequential(*layers)

    @staticmethod
    def build(half_plane: HalfPlane, diameter_px: float, config: AceConfig) -> "FourierEncoder":
        band, max_shift_px = config.fourier.band * half_plane.box / diameter_px, config.max_shift * half_plane.box
        return FourierEncoder(half_plane, band, config.hypotheses, max_shift_px, config.fourier.width, config.fourier.depth)

    def features(self, image_ft: Tensor) -> Tensor:
        return self.network(torch.view_as_real(image_ft[:, : self.n_read].contiguous()).flatten(1))
