"""Defocus of every particle, from how its image fits the map: one offset added to U and V; astigmatism stays as it is.

An offset d moves the CTF's argument by ``pi lambda k^2 d``. With Q the CTF a quarter of a wave on, the CTF at the offset is
``C cos(pi lambda k^2 d) + Q sin(pi lambda k^2 d)``: the fit of all images at all offsets of a grid is a few matrix products.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.data.particle_stack import Batch, ParticleStack
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.slices import VolumeFT, central_slices
from ace_em.physics.imaging import shift_phase
from ace_em.physics.pose import Pose

BLOCK = 128
STEP = 0.35
"""Radians that the CTF's argument moves from one offset of the grid to the next, at the highest frequency."""
SCALE_SD = 1.0
"""Prior spread of an image's intensity scale about its own: wide, so that an image may turn out to show nothing."""


@dataclass(frozen=True)
class DefocusFit:
    """``offset_angstrom`` (N,) to add to U and V; ``at_limit`` images, best at the end of the range, have offset 0."""

    offset_angstrom: Tensor
    at_limit: int


@torch.no_grad()
def refine_defocus(
    volume_ft: VolumeFT,
    stack: ParticleStack,
    pose: Pose,
    range_angstrom: float,
    prior_sd_angstrom: float,
    earlier_angstrom: Tensor | None = None,
) -> DefocusFit:
    """The most probable defocus of every image (N,), the map and its pose given.

    Parameters
    ----------
    volume_ft : the map, of these images' own half-set, on the device that does the work.
    stack : images, cut to the band that counts.
    range_angstrom : offsets from minus to plus this are tried.
    prior_sd_angstrom : expected spread of the defocus about that of the file.
    earlier_angstrom : (N,) offsets that earlier rounds added, so that the prior stays about the file's defocus.
    """
    earlier, device = torch.zeros(len(stack)) if earlier_angstrom is None else earlier_angstrom, volume_ft.device
    voltage, best = stack.ctf.voltage_kv, torch.zeros(len(stack))
    for one in voltage.unique():
        grid = _grid(stack.half_plane, one, stack.pixel_size_angstrom, range_angstrom).to(device)
        for rows in torch.nonzero(voltage == one)[:, 0].split(BLOCK):
            misfit = _misfit(volume_ft, stack.batch(rows, device), pose[rows].to(device), grid)
            misfit += (grid.offset_angstrom + earlier[rows, None].to(device)).square() / (2 * prior_sd_angstrom**2)
            best[rows] = grid.lowest(misfit).to(best.device)
    at_limit = best.isnan()
    return DefocusFit(best.masked_fill(at_limit, 0.0), int(at_limit.sum()))


@dataclass(frozen=True)
class OffsetGrid:
    """Offsets (g,) in even steps, and ``phase`` (n, g), what each adds to the CTF's argument."""

    offset_angstrom: Tensor
    phase: Tensor

    def to(self, device: torch.device) -> "OffsetGrid":
        return OffsetGrid(self.offset_angstrom.to(device), self.phase.to(device))

    def lowest(self, misfit: Tensor) -> Tensor:
        """Offset (b,) at the vertex of the parabola about the least ``misfit`` (b, g); NaN where that is at an end."""
        index = misfit.argmin(1)
        inside = index.clamp(1, misfit.shape[1] - 2)
        left, middle, right = (misfit.gather(1, inside[:, None] + i)[:, 0] for i in (-1, 0, 1))
        fraction = 0.5 * (left - right) / (left - 2 * middle + right).clamp(min=1e-12)
        offset = self.offset_angstrom[inside] + fraction * (self.offset_angstrom[1] - self.offset_angstrom[0])
        return offset.masked_fill(index != inside, torch.nan)


def _grid(half_plane: HalfPlane, voltage_kv: Tensor, pixel_size_angstrom: float, range_angstrom: float) -> OffsetGrid:
    import torch_ctf

    wavelength = float(torch_ctf.calculate_relativistic_electron_wavelength(voltage_kv * 1e3)) * 1e10
    radian_per_angstrom = math.pi * wavelength * (half_plane.radius / (half_plane.box * pixel_size_angstrom)).square()
    steps = max(2, math.ceil(range_angstrom * float(radian_per_angstrom[-1]) / STEP))
    offset = torch.linspace(-1, 1, 2 * steps + 1) * range_angstrom
    return OffsetGrid(offset, radian_per_angstrom[:, None] * offset)


def _misfit(volume_ft: VolumeFT, batch: Batch, pose: Pose, grid: OffsetGrid) -> Tensor:
    """``|y - s p|^2 - |y|^2`` (b, g) of images y and predictions p at every offset, s the most probable scale for each.

    With s held at 1, an image without a particle would go to the offset whose CTF hides the map best, whatever the prior of the
    offset. Freeing it costs the others nothing that could be measured.
    """
    slices = central_slices(volume_ft, batch.half_plane, pose.rotation)
    product = (batch.image_ft * (slices * shift_phase(batch.half_plane, pose.shift_px)).conj()).real
    power = slices.abs().square()
    now, ahead = batch.effective_ctf, batch.quadrature()
    cos, sin = torch.cos(grid.phase), torch.sin(grid.phase)
    overlap = (product * now) @ cos + (product * ahead) @ sin
    # (C cos + Q sin)^2 by the double angle
    constant = (power * (now.square() + ahead.square())).sum(1, keepdim=True)
    strength = (power * (now.square() - ahead.square())) @ (cos.square() - sin.square()) + (power * now * ahead) @ (4 * sin * cos)
    strength = (constant + strength) / 2
    prior = 0.5 / SCALE_SD**2
    return prior - (overlap + prior).clamp(min=0).square() / (strength + prior)
