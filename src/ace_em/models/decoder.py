"""The decoder D_PI (eq. 2, 19): from a rotation to a clean image."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ace_em.config import AceConfig
from ace_em.maths.half_plane import HalfPlane

Projector = Callable[[HalfPlane, Tensor], Tensor]
"""``project(half_plane, rotation)``: slices (..., n) complex at rotations (..., 3, 3), before CTF and shift."""


class Decoder(nn.Module, ABC):
    """A learnt volume. A new decoder is one file with the abstract methods, and one line in ``models/choice.py``.

    ``amplitude`` is the scale of the volume's grey values, which depend on the data. A decoder that multiplies by it keeps its
    parameters near one, and learning rates mean the same for every data set.
    """

    amplitude: Tensor
    starts_as_blob = True
    """Whether the untrained volume is a blob, whose ``amplitude`` can be fitted to the images. Otherwise the amplitude is set so
    that projections have the power of the images' signal."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("amplitude", torch.ones(()))

    def scale_to(self, amplitude: float) -> None:
        """Multiply the volume by ``amplitude``; the parameters stay."""
        self.amplitude.fill_(amplitude)

    @abstractmethod
    def learning_rate(self, config: AceConfig) -> float:
        """AdamW's rate for parameters near one."""

    @abstractmethod
    def projector(self) -> Projector:
        """A function that projects the present volume; work that all projections of a step share is done once, here."""

    @abstractmethod
    def volume(self) -> Tensor:
        """The present volume (box, box, box), real, z, y, x order."""
