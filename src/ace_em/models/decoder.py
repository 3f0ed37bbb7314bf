"""The decoder D_PI (eq. 2, 19): from a rotation to a clean image."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ace_em.config import AceConfig
from ace_em.maths.fourier import HalfPlane

Projector = Callable[[HalfPlane, Tensor], Tensor]
"""``project(half_plane, rotation)``: slices (..., n) complex at rotations (..., 3, 3), before CTF and shift."""


class Decoder(nn.Module, ABC):
    """A learnt volume. A new decoder is one file with the two abstract methods.

    ``height`` is the scale of the volume's grey values, which hang on the data. A decoder that multiplies by it keeps its
    parameters near one, and learning rates mean the same for every data set.
    """

    height: Tensor
    begins_as_blob = True
    """Whether the untrained volume is bright in the middle, so that its ``height`` can be fitted to the images; that of one
    without a shape gives its projections the power of the images' signal."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("height", torch.ones(()))

    def scale_to(self, height: float) -> None:
        """Multiply the volume by ``height``, leaving the parameters as they are."""
        self.height.fill_(height)

    def learning_rate(self, config: AceConfig) -> float:
        """AdamW's rate for parameters near one."""
        return config.lr_decoder * config.lr_decoder_scale

    @abstractmethod
    def projector(self) -> Projector:
        """What projects the present volume; work that all projections of a step share is done once, here."""

    @abstractmethod
    def volume(self) -> Tensor:
        """The present volume (box, box, box), real, z, y, x order."""
