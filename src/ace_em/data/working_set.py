"""The working array of particle images: whitened half-planes, and what turns, cuts and moves them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from ace_em.maths.fourier import HalfPlane
from ace_em.maths.image_rotation import plane_turn, turn_half_plane
from ace_em.physics.ctf import CTFParameters, ctf


@dataclass(frozen=True)
class TransferOptics:
    """``ctf`` (N,), the pixel size of the working box, and ``gain`` (n,), one over the noise's standard deviation."""

    ctf: CTFParameters
    pixel_size_angstrom: float
    gain: Tensor

    def transfer(self, half_plane: HalfPlane) -> Tensor:
        """(N, n)."""
        return ctf(self.ctf, half_plane, self.pixel_size_angstrom) * self.gain


class Images(Protocol):
    """N whitened particle images, wherever they are: in memory (:class:`WorkingSet`) or in a file (``ScratchSet``).

    What goes through all images goes through :func:`blocks` of them: :meth:`rows` brings those into memory.
    """

    @property
    def half_plane(self) -> HalfPlane: ...

    @property
    def noise_variance(self) -> Tensor: ...

    @property
    def box(self) -> int: ...

    def __len__(self) -> int: ...

    def band(self, max_radius: float) -> Self: ...

    def rows(self, rows: Tensor | slice) -> "WorkingSet": ...

    def without_optics(self) -> Self: ...

    def to(self, device: torch.device) -> Self: ...

    def whiten_(self, noise_sd: Tensor, brightness: Tensor) -> None: ...

    def replace_transfer_(self, parts: Iterator[tuple[slice, Tensor]]) -> None: ...


CPU = torch.device("cpu")
"""Where all images, pose tables and maps are kept, whatever device the work is done on."""
BLOCK_BYTES = 256 * 2**20
"""Images that are in memory at a time, beside those that are there anyhow."""


def blocks(images: Images, rows: Tensor | None = None) -> Sequence[Tensor]:
    """The indices of all images, or of ``rows``, in blocks that memory has room for whatever the box."""
    rows = torch.arange(len(images)) if rows is None else rows
    return rows.split(max(1, BLOCK_BYTES // (12 * len(images.half_plane))))


COEFFICIENTS_AT_A_TIME = 2**20
"""What work on whole images makes many copies of at once, images times coefficients: it grows with no box."""


def at_a_time(images: Images, most: int) -> int:
    """Images to work on at once: ``most``, fewer where they are large."""
    return max(1, min(most, COEFFICIENTS_AT_A_TIME // len(images.half_plane)))


def image_power(images: Images) -> Tensor:
    """Squared norm (N,) of every image."""
    return torch.cat([torch.view_as_real(images.rows(rows).image_ft).square().sum((-1, -2)) for rows in blocks(images)])


@dataclass(frozen=True)
class WorkingSet:
    """Whitened half-planes of particle images, in memory.

    Attributes
    ----------
    half_plane : the n coefficients kept, of images with ``half_plane.box`` pixels an edge.
    image_ft : (N, n) complex, noise of unit variance.
    transfer : (N, n) real, CTF over the noise's standard deviation.
    noise_variance : (n,) what is left of the noise after whitening: 1, or less where the whitening's floor is above it.
    optics : what ``transfer`` was made of; turning images needs it, nothing else does.
    """

    half_plane: HalfPlane
    image_ft: Tensor
    transfer: Tensor
    noise_variance: Tensor
    optics: TransferOptics | None = None

    def __len__(self) -> int:
        return len(self.image_ft)

    @property
    def box(self) -> int:
        return self.half_plane.box

    def band(self, max_radius: float) -> "WorkingSet":
        """The coefficients with ``|k| <= max_radius``, without a copy."""
        inner = self.half_plane.band(max_radius)
        n = len(inner)
        optics = None if self.optics is None else replace(self.optics, gain=self.optics.gain[:n])
        return WorkingSet(inner, self.image_ft[:, :n], self.transfer[:, :n], self.noise_variance[:n], optics)

    def rows(self, rows: Tensor | slice) -> "WorkingSet":
        """Some of the particles."""
        optics = None if self.optics is None else replace(self.optics, ctf=self.optics.ctf[rows])
        return WorkingSet(self.half_plane, self.image_ft[rows], self.transfer[rows], self.noise_variance, optics)

    def without_optics(self) -> "WorkingSet":
        """The same images; they cannot be turned any more."""
        return replace(self, optics=None)

    def to(self, device: torch.device) -> "WorkingSet":
        o = self.optics
        return WorkingSet(
            self.half_plane.to(device),
            self.image_ft.to(device),
            self.transfer.to(device),
            self.noise_variance.to(device),
            None if o is None else replace(o, ctf=o.ctf.to(device), gain=o.gain.to(device)),
        )

    def whiten_(self, noise_sd: Tensor, brightness: Tensor) -> None:
        """Divide by the noise's standard deviation (n,), and scale what is expected by each image's ``brightness`` (N,)."""
        self.image_ft.div_(noise_sd)
        self.transfer.mul_(brightness[:, None] / noise_sd)

    def replace_transfer_(self, parts: Iterator[tuple[slice, Tensor]]) -> None:
        """Another transfer for all images, in order: slices of them and (b, n)."""
        for rows, transfer in parts:
            self.transfer[rows] = transfer

    def with_images(self, image_ft: Tensor) -> "WorkingSet":
        """Other images (N, n) in place of these, everything else the same."""
        return replace(self, image_ft=image_ft)

    @staticmethod
    def cat(parts: Sequence["WorkingSet"]) -> "WorkingSet":
        """The particles of several sets of one half-plane and noise, in order; without their optics."""
        image_ft, transfer = torch.cat([p.image_ft for p in parts]), torch.cat([p.transfer for p in parts])
        return WorkingSet(parts[0].half_plane, image_ft, transfer, parts[0].noise_variance)

    def turned(self, angle_deg: Tensor, mirror: Tensor) -> "WorkingSet":
        """Every image mirrored (``y -> -y``) where ``mirror`` (N,), then turned by ``angle_deg`` (N,), its astigmatism with it.

        The particle's pose in the new image: :meth:`Pose.in_turned_image`.
        """
        if self.optics is None:
            raise ValueError("a working set without its optics cannot be turned: the astigmatism must turn too")
        image_ft = turn_half_plane(self.half_plane, self.image_ft, plane_turn(angle_deg, mirror))
        optics = replace(self.optics, ctf=self.optics.ctf.turned(angle_deg, mirror))
        return replace(self, image_ft=image_ft, transfer=optics.transfer(self.half_plane), optics=optics)
