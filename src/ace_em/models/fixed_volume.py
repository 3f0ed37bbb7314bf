"""A decoder without parameters, for a finished map."""

from torch import Tensor

from ace_em.config import AceConfig
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.slices import central_slices, volume_to_ft
from ace_em.models.decoder import Decoder, Projector


class FixedVolume(Decoder):
    """A fixed map (box, box, box), z, y, x order, projected by central slices."""

    density: Tensor

    def __init__(self, volume: Tensor) -> None:
        super().__init__()
        self.register_buffer("density", volume.clone())

    def learning_rate(self, config: AceConfig) -> float:
        return 0.0

    def projector(self) -> Projector:
        volume_ft = volume_to_ft(self.density)

        def project(half_plane: HalfPlane, rotation: Tensor) -> Tensor:
            return central_slices(volume_ft, half_plane, rotation)

        return project

    def volume(self) -> Tensor:
        return self.density
