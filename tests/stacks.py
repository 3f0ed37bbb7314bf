"""Particle stacks made from images that are there, with any CTF, also one that no microscope has."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ace_em.data.coefficients import InMemory
from ace_em.data.particle_stack import CPU, Batch, Optics, ParticleStack
from ace_em.maths.half_plane import HalfPlane
from ace_em.physics.ctf import CTFParameters
from ace_em.physics.noise import NoiseModel


def ctf_parameters(n: int, defocus_angstrom: float = 15000.0) -> CTFParameters:
    """Of n particles, the same for all, without astigmatism."""
    values = (defocus_angstrom, defocus_angstrom, 30.0, 300.0, 2.7, 0.1, 0.0)
    return CTFParameters(*(torch.full((n,), value) for value in values))


def flat_noise(box: int, variance: float | Tensor = 1.0, dtype: torch.dtype = torch.float32) -> NoiseModel:
    """Noise by which images are whitened already: a whitening power of 1 in every shell."""
    one = torch.ones(1, box // 2 + 1, dtype=dtype)
    return NoiseModel(one, one * variance)


def stack_of(
    half_plane: HalfPlane,
    image_ft: Tensor,
    parameters: CTFParameters,
    pixel_size_angstrom: float,
    noise: NoiseModel | None = None,
) -> ParticleStack:
    """A stack in memory of images (N, n), not whitened."""
    n = len(image_ft)
    return ParticleStack(
        store=InMemory(image_ft),
        row=torch.arange(n),
        half_plane=half_plane,
        pixel_size_angstrom=pixel_size_angstrom,
        ctf=parameters,
        noise=flat_noise(half_plane.box) if noise is None else noise,
        noise_group=torch.zeros(n, dtype=torch.long),
        intensity_scale=torch.ones(n, dtype=image_ft.real.dtype),
    )


@dataclass(frozen=True)
class FixedStack(ParticleStack):
    """A stack whose CTF is ``fixed_ctf`` (N, n), row by row of the store, in place of one with parameters."""

    fixed_ctf: Tensor = torch.empty(0)

    @staticmethod
    def of(half_plane: HalfPlane, image_ft: Tensor, fixed_ctf: Tensor, variance: float = 1.0) -> "FixedStack":
        noise = flat_noise(half_plane.box, variance, image_ft.real.dtype)
        plain = stack_of(half_plane, image_ft, ctf_parameters(len(image_ft)), 2.0, noise)
        return FixedStack(**vars(plain), fixed_ctf=fixed_ctf)

    def batch(self, rows: Tensor | slice, device: torch.device = CPU) -> Batch:
        batch = super().batch(rows, device)
        assert isinstance(batch.optics, Optics)
        fixed = self.fixed_ctf[self.row[rows]][:, : len(self.half_plane)].to(device)
        return replace(batch, effective_ctf=fixed * batch.optics.gain, optics=None)

    def in_memory(self) -> "FixedStack":
        return self

    def to(self, device: torch.device) -> "FixedStack":
        return replace(super().to(device), fixed_ctf=self.fixed_ctf.to(device))

    @property
    def image_ft(self) -> Tensor:
        """All whitened images (N, n)."""
        return self.images(slice(None))

    @property
    def effective_ctf(self) -> Tensor:
        """(N, n)."""
        return self.batch(slice(None)).effective_ctf

    def with_images(self, image_ft: Tensor) -> "FixedStack":
        """Other images (N, n) in place of these."""
        return replace(self, store=InMemory(image_ft), row=torch.arange(len(image_ft)), fixed_ctf=self.fixed_ctf[self.row])

    def double(self) -> "FixedStack":
        """The same in float64."""
        half_plane = HalfPlane(self.half_plane.box, self.half_plane.k.double(), self.half_plane.radius.double())
        doubled = FixedStack.of(half_plane, self.image_ft.to(torch.complex128), self.fixed_ctf[self.row].double())
        return replace(doubled, noise=NoiseModel(self.noise.whitening_power.double(), self.noise.variance.double()))
