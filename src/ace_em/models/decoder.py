"""The decoder D_PI (eq. 2, eq. 19): from a rotation to a noise-free projection."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ace_em.config import AceConfig
from ace_em.maths.half_plane import HalfPlane

Projector = Callable[[HalfPlane, Tensor], Tensor]
"""``project(half_plane, rotation)``: central slices (..., n), complex, at rotations (..., 3, 3), without CTF and shift."""


class Decoder(nn.Module, ABC):
    """A learnable volume. A new decoder implements the abstract methods in one file and adds one line to ``models/choice.py``.

    ``amplitude`` is the scale of the density, which depends on the data. A decoder that multiplies by it keeps its parameters
    near one, so that a learning rate suits all data sets.
    """

    amplitude: Tensor
    starts_as_blob = True
    """Whether the untrained volume is a blob, whose ``amplitude`` can be fitted to the images. Otherwise the amplitude is chosen
    so that projections have the signal power of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("amplitude", torch.ones(()))

    def scale_to(self, amplitude: float) -> None:
        """Set the amplitude of the volume; the parameters do not change."""
        self.amplitude.fill_(amplitude)

    @abstractmethod
    def learning_rate(self, config: AceConfig) -> float:
        """Learning rate of AdamW, for parameters near one."""

    @abstractmethod
    def projector(self) -> Projector:
        """A function that projects the current volume. Work shared by all projections of a step is done here, once."""

    @abstractmethod
    def volume(self) -> Tensor:
        """The current volume (box, box, box), real, z, y, x order."""
