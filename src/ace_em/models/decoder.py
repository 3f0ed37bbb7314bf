"""The decoder D_PI (eq. 2, 19): from a rotation to a clean image."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from ace_em.maths.fourier import HalfPlane

Projector = Callable[[HalfPlane, Tensor], Tensor]
"""``project(half_plane, rotation)``: slices (..., n) complex at rotations (..., 3, 3), before CTF and shift."""


class Decoder(nn.Module, ABC):
    """A learnt volume. A new decoder is one file with these two methods."""

    @abstractmethod
    def projector(self) -> Projector:
        """What projects the present volume; work that all projections of a step share is done once, here."""

    @abstractmethod
    def volume(self) -> Tensor:
        """The present volume (box, box, box), real, z, y, x order."""
