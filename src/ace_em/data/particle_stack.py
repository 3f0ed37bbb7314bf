"""Particle images as an immutable value: Fourier coefficients, CTF parameters, noise and intensity scale.

An update of the noise model, intensity scale or defocus gives a new stack that shares the coefficients.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ace_em.data.coefficients import CoefficientStore, InMemory
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.image_rotation import plane_turn, turn_half_plane
from ace_em.physics.ctf import CTFParameters, ctf
from ace_em.physics.noise import NoiseModel

CPU = torch.device("cpu")
"""Device of pose tables and maps, also while other work runs on a GPU."""
BLOCK_BYTES = 256 * 2**20
"""Images in memory at a time."""
COEFFICIENTS_AT_A_TIME = 2**20
"""Images times coefficients at a time, for work that makes many copies of whole images."""


@dataclass(frozen=True)
class Optics:
    """Factors of the effective CTF: ``ctf`` (b,) parameters, ``gain`` (b, n), and the pixel size of the working box."""

    ctf: CTFParameters
    gain: Tensor
    pixel_size_angstrom: float

    def effective_ctf(self, half_plane: HalfPlane) -> Tensor:
        """Effective CTF (b, n)."""
        return ctf(self.ctf, half_plane, self.pixel_size_angstrom) * self.gain

    def __getitem__(self, rows: Tensor | slice) -> "Optics":
        return replace(self, ctf=self.ctf[rows], gain=self.gain[rows])


@dataclass(frozen=True)
class Batch:
    """Some whitened images, in memory on one device: ``image = effective CTF x slice x shift phase + noise``.

    Attributes
    ----------
    half_plane : the n coefficients.
    image_ft : (b, n) complex, noise of unit variance.
    effective_ctf : (b, n) real: CTF times intensity scale, divided by the standard deviation of the noise.
    noise_variance : (b, n) after whitening: 1, or less where the whitening floor exceeds the noise power.
    optics : factors of the effective CTF; needed only to rotate images and to fit the defocus.
    """

    half_plane: HalfPlane
    image_ft: Tensor
    effective_ctf: Tensor
    noise_variance: Tensor
    optics: Optics | None = None

    def __len__(self) -> int:
        return len(self.image_ft)

    @property
    def box(self) -> int:
        return self.half_plane.box

    def rows(self, rows: Tensor | slice) -> "Batch":
        """Some of the images."""
        optics = None if self.optics is None else self.optics[rows]
        return Batch(self.half_plane, self.image_ft[rows], self.effective_ctf[rows], self.noise_variance[rows], optics)

    def band(self, max_radius: float) -> "Batch":
        """The coefficients with ``|k| <= max_radius``, without a copy."""
        inner = self.half_plane.band(max_radius)
        n = len(inner)
        optics = None if self.optics is None else replace(self.optics, gain=self.optics.gain[:, :n])
        return Batch(inner, self.image_ft[:, :n], self.effective_ctf[:, :n], self.noise_variance[:, :n], optics)

    def with_images(self, image_ft: Tensor) -> "Batch":
        """The batch with other images (b, n)."""
        return replace(self, image_ft=image_ft)

    def quadrature(self) -> Tensor:
        """(b, n) derivative of the effective CTF with respect to its phase: the CTF with its phase shifted by a quarter wave."""
        optics = self._optics()
        return replace(optics, ctf=optics.ctf.quarter_wave_on()).effective_ctf(self.half_plane)

    def turned(self, angle_deg: Tensor, mirror: Tensor) -> "Batch":
        """Images mirrored (``y -> -y``) where ``mirror`` (b,), then rotated by ``angle_deg`` (b,), with their astigmatism.

        The particle's pose in the new image: :meth:`ace_em.physics.pose.Pose.in_turned_image`.
        """
        image_ft = turn_half_plane(self.half_plane, self.image_ft, plane_turn(angle_deg, mirror))
        optics = self._optics()
        optics = replace(optics, ctf=optics.ctf.turned(angle_deg, mirror))
        return replace(self, image_ft=image_ft, effective_ctf=optics.effective_ctf(self.half_plane), optics=optics)

    def _optics(self) -> Optics:
        if self.optics is None:
            raise ValueError("this batch has no optics: the astigmatism is unknown")
        return self.optics

    @staticmethod
    def cat(parts: "Sequence[Batch]") -> "Batch":
        """The images of several batches on one half-plane, in order, without their optics."""
        image_ft = torch.cat([p.image_ft for p in parts])
        effective_ctf, noise = torch.cat([p.effective_ctf for p in parts]), torch.cat([p.noise_variance for p in parts])
        return Batch(parts[0].half_plane, image_ft, effective_ctf, noise)


@dataclass(frozen=True)
class ParticleStack:
    """N normalised particle images at a working box, with CTF, noise and intensity scale.

    Coefficients keep the scale of the full box (sum over its pixels), so that a volume's transform means the same at every
    working box.

    Attributes
    ----------
    store : coefficients of normalised images inside the particle disc, not whitened.
    row : (N,) row of each image in the store.
    half_plane : the coefficients in use: the first n of those stored.
    pixel_size_angstrom : of the working box.
    ctf : (N,) parameters.
    noise : noise power of each group of images.
    noise_group : (N,) the group of each image.
    intensity_scale : (N,) factor from projections of the map to the signal of the image; 1 on average.
    """

    store: CoefficientStore
    row: Tensor
    half_plane: HalfPlane
    pixel_size_angstrom: float
    ctf: CTFParameters
    noise: NoiseModel
    noise_group: Tensor
    intensity_scale: Tensor

    def __len__(self) -> int:
        return len(self.row)

    @property
    def box(self) -> int:
        return self.half_plane.box

    def band(self, max_radius: float) -> "ParticleStack":
        """The coefficients with ``|k| <= max_radius``."""
        return replace(self, half_plane=self.half_plane.band(max_radius))

    def subset(self, rows: Tensor | slice) -> "ParticleStack":
        """Some of the particles: (n,) indices, an (N,) mask or a slice."""
        names = ("row", "ctf", "noise_group", "intensity_scale")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def with_noise(self, noise: NoiseModel) -> "ParticleStack":
        return replace(self, noise=noise)

    def with_intensity_scale(self, intensity_scale: Tensor) -> "ParticleStack":
        return replace(self, intensity_scale=intensity_scale)

    def with_ctf(self, parameters: CTFParameters) -> "ParticleStack":
        return replace(self, ctf=parameters)

    def to(self, device: torch.device) -> "ParticleStack":
        """The stack with everything in memory moved to a device."""
        names = ("store", "row", "half_plane", "ctf", "noise", "noise_group", "intensity_scale")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def in_memory(self) -> "ParticleStack":
        """The same particles, read into memory if they are in a file."""
        if isinstance(self.store, InMemory):
            return self
        rows = torch.arange(len(self), device=self.row.device)
        return replace(self, store=InMemory(self.store.read(self.row, len(self.half_plane))), row=rows)

    def images(self, rows: Tensor | slice, device: torch.device = CPU) -> Tensor:
        """Whitened coefficients (b, n) of some particles."""
        found = self.store.read(self.row[rows], len(self.half_plane)).to(device)
        return found / self._noise_sd(rows).to(device)

    def batch(self, rows: Tensor | slice, device: torch.device = CPU) -> Batch:
        """Whitened images of some particles and their effective CTF, on a device."""
        half_plane, noise_sd = self.half_plane.to(device), self._noise_sd(rows).to(device)
        image_ft = self.store.read(self.row[rows], len(half_plane)).to(device) / noise_sd
        gain = self.intensity_scale[rows].to(device)[:, None] / noise_sd
        optics = Optics(self.ctf[rows].to(device), gain, self.pixel_size_angstrom)
        variance = self._per_image(self.noise.variance, rows).to(device).expand(len(image_ft), -1)
        return Batch(half_plane, image_ft, optics.effective_ctf(half_plane), variance, optics)

    def power(self) -> Tensor:
        """Squared norm (N,) of every whitened image."""
        parts = [torch.view_as_real(self.images(rows)).square().sum((-1, -2)) for rows in self.blocks()]
        return torch.cat(parts).to(self.row.device)

    def noise_power(self) -> Tensor:
        """Expected squared norm (N,) of the noise in every whitened image."""
        return self.noise.variance[:, self.half_plane.shell].sum(1)[self.noise_group]

    def noise_power_sd(self, independent: float = 1.0) -> Tensor:
        """Standard deviation (N,) of that squared norm, if a share ``independent`` of the coefficients is independent."""
        square = self.noise.variance[:, self.half_plane.shell].square().sum(1)
        return (square / independent).sqrt()[self.noise_group]

    def blocks(self, rows: Tensor | None = None) -> Sequence[Tensor]:
        """The indices of all images, or ``rows``, in blocks of at most ``BLOCK_BYTES``."""
        rows = torch.arange(len(self)) if rows is None else rows
        return rows.split(max(1, BLOCK_BYTES // (12 * len(self.half_plane))))

    def at_a_time(self, most: int) -> int:
        """Images to process at once: ``most``, fewer if they are large."""
        return max(1, min(most, COEFFICIENTS_AT_A_TIME // len(self.half_plane)))

    def _noise_sd(self, rows: Tensor | slice) -> Tensor:
        return self._per_image(self.noise.whitening_power, rows).sqrt()

    def _per_image(self, per_group: Tensor, rows: Tensor | slice) -> Tensor:
        """(b, n) values per coefficient of each image from values per shell of each noise group; (1, n) with one group."""
        of_coefficients = per_group[:, self.half_plane.shell]
        return of_coefficients if len(of_coefficients) == 1 else of_coefficients[self.noise_group[rows]]
