"""Per-particle defocus refinement: one offset, added to both U and V, so that the astigmatism is unchanged.

An offset d changes the phase of the CTF by ``pi lambda k^2 d``. With C the CTF and Q its quadrature (C with the phase advanced
by 90 degrees), the CTF at the offset is ``C cos(pi lambda k^2 d) + Q sin(pi lambda k^2 d)``. All images can therefore be
compared with the map at all offsets of a grid by a few matrix products.
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
"""Change of the CTF phase between neighbouring offsets of the grid at the highest frequency, in radians."""
SCALE_SD = 1.0
"""Prior standard deviation of the intensity scale, relative to the current scale. Wide, so that a blank image can scale to 0."""


@dataclass(frozen=True)
class DefocusFit:
    """Fitted defocus offsets.

    Attributes
    ----------
    offset_angstrom : (N,) to add to U and V.
    at_limit : number of images with the best fit at a limit of the range; their offset is set to 0.
    """

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
    """The most probable defocus offset of each image, given the map and the poses.

    Parameters
    ----------
    volume_ft : map of the half-set that these images belong to, on the device to compute on.
    stack : images, cut to the band to use.
    pose : (N,) their poses.
    range_angstrom : offsets from ``-range_angstrom`` to ``+range_angstrom`` are tried.
    prior_sd_angstrom : standard deviation of a Gaussian prior, centred on the defocus of the input file.
    earlier_angstrom : (N,) offsets added in earlier rounds, which keep the prior centred on the input defocus.
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
    """Evenly spaced defocus offsets (g,), and the change ``phase`` (n, g) of the CTF phase at each, in radians."""

    offset_angstrom: Tensor
    phase: Tensor

    def to(self, device: torch.device) -> "OffsetGrid":
        return OffsetGrid(self.offset_angstrom.to(device), self.phase.to(device))

    def lowest(self, misfit: Tensor) -> Tensor:
        """Offset (b,) of the lowest ``misfit`` (b, g), by parabolic interpolation; NaN if it is at an end of the grid."""
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
    """``|y - s p|^2 - |y|^2`` (b, g) of images y and projections p at each offset, with s the most probable scale at that offset.

    With s fixed at 1, a blank image would move to the offset at which the CTF suppresses the map most, regardless of the
    prior on the offset. Fitting s has no measurable cost for the other images.
    """
    slices = central_slices(volume_ft, batch.half_plane, pose.rotation)
    product = (batch.image_ft * (slices * shift_phase(batch.half_plane, pose.shift_px)).conj()).real
    power = slices.abs().square()
    ctf, quadrature = batch.effective_ctf, batch.quadrature()
    cos, sin = torch.cos(grid.phase), torch.sin(grid.phase)
    overlap = (product * ctf) @ cos + (product * quadrature) @ sin
    # (C cos + Q sin)^2 by the double-angle formulas
    constant = (power * (ctf.square() + quadrature.square())).sum(1, keepdim=True)
    in_phase, mixed = power * (ctf.square() - quadrature.square()), power * ctf * quadrature
    strength = in_phase @ (cos.square() - sin.square()) + mixed @ (4 * sin * cos)
    strength = (constant + strength) / 2
    prior = 0.5 / SCALE_SD**2
    return prior - (overlap + prior).clamp(min=0).square() / (strength + prior)
