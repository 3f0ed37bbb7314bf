"""Defocus of every particle, from how its image fits the map: one offset added to U and V, astigmatism left as it is.

An offset d moves the CTF's argument by ``pi lambda k^2 d``. With Q the CTF a quarter of a wave on, the CTF at the offset is
``C cos(pi lambda k^2 d) + Q sin(pi lambda k^2 d)``: the fit of all images at all offsets of a grid is a few matrix products.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ace_em.data.working_set import Images, WorkingSet
from ace_em.maths.fourier import HalfPlane, shell_sums
from ace_em.maths.slices import VolumeFT, central_slices
from ace_em.physics.ctf import CTFParameters, ctf
from ace_em.physics.imaging import shift_phase
from ace_em.physics.pose import Pose

BLOCK = 128
STEP = 0.35
"""Radians that the CTF's argument moves from one offset of the grid to the next, at the highest frequency."""
BRIGHTNESS_SD = 1.0
"""Prior spread of an image's brightness about its calibrated one: wide, so that an image may turn out to show nothing."""
MISMATCH = 1e-4
"""Share of a transfer's power that may differ from gain * scale * CTF: rounding is far below, a wrong CTF far above."""


@dataclass(frozen=True)
class Optics:
    """What the transfer of a working set is made of: ``gain[shell] * scale * CTF``.

    Attributes
    ----------
    parameters : (N,).
    pixel_size_angstrom : of the working box.
    scale : (N,) brightness, as in ``Calibration``.
    gain : (box // 2 + 1,) per shell, one over the noise's standard deviation; 0 where no image has any CTF.
    """

    parameters: CTFParameters
    pixel_size_angstrom: float
    scale: Tensor
    gain: Tensor

    @staticmethod
    def of(images: Images, parameters: CTFParameters, pixel_size_angstrom: float, scale: Tensor) -> "Optics":
        """Find the gain in the transfer itself, shell by shell over all images: no division by a CTF near zero.

        Raises
        ------
        ValueError
            when these parameters and scales did not make this transfer.
        """
        n_shells = images.box // 2 + 1
        unit = Optics(parameters, pixel_size_angstrom, scale, torch.ones(n_shells))
        power = torch.zeros(3, len(images.half_plane), dtype=torch.float64)
        for rows in _blocks(len(images)):
            made, given = unit.rows(rows).transfer(images.half_plane).double(), images.rows(rows).transfer.double()
            power += torch.stack([(made * given).sum(0), made.square().sum(0), given.square().sum(0)])
        overlap, made_power, given_power = shell_sums(power, images.half_plane.shell, n_shells)
        gain = overlap / made_power.clamp(min=1e-30)
        left = (given_power - gain * overlap).sum() / given_power.sum()
        if left > MISMATCH:
            raise ValueError(f"the transfer is not gain * scale * CTF of these parameters: {left:.2g} of its power differs")
        return replace(unit, gain=gain.float())

    def rows(self, rows: Tensor | slice) -> "Optics":
        """Those of some of the particles."""
        return replace(self, parameters=self.parameters[rows], scale=self.scale[rows])

    def to(self, device: torch.device) -> "Optics":
        return replace(self, parameters=self.parameters.to(device), scale=self.scale.to(device), gain=self.gain.to(device))

    def transfer(self, half_plane: HalfPlane) -> Tensor:
        """(N, n)."""
        return ctf(self.parameters, half_plane, self.pixel_size_angstrom) * self._factor(half_plane)

    def quadrature(self, half_plane: HalfPlane) -> Tensor:
        """(N, n) the transfer a quarter of a wave on: its derivative with respect to the CTF's argument."""
        ahead = replace(self.parameters, phase_shift_deg=self.parameters.phase_shift_deg + 90)
        return ctf(ahead, half_plane, self.pixel_size_angstrom) * self._factor(half_plane)

    def _factor(self, half_plane: HalfPlane) -> Tensor:
        return self.gain[half_plane.shell] * self.scale[:, None]


@dataclass(frozen=True)
class DefocusFit:
    """``offset_angstrom`` (N,) to add to U and V; ``at_limit`` images, best at the end of the range, have offset 0."""

    offset_angstrom: Tensor
    at_limit: int


def shifted(parameters: CTFParameters, offset_angstrom: Tensor) -> CTFParameters:
    """The parameters with the offset (...,) added to the defocus U and V."""
    return replace(
        parameters,
        defocus_u_angstrom=parameters.defocus_u_angstrom + offset_angstrom,
        defocus_v_angstrom=parameters.defocus_v_angstrom + offset_angstrom,
    )


def with_defocus_(images: Images, optics: Optics, offset_angstrom: Tensor) -> Optics:
    """Bring the transfer of a working set up to the new defocus, in place; the optics with the new parameters."""
    new = replace(optics, parameters=shifted(optics.parameters, offset_angstrom))
    images.replace_transfer_((rows, new.rows(rows).transfer(images.half_plane)) for rows in _blocks(len(images)))
    return new


@torch.no_grad()
def refine_defocus(
    volume_ft: VolumeFT,
    images: WorkingSet,
    optics: Optics,
    pose: Pose,
    range_angstrom: float,
    prior_sd_angstrom: float,
    earlier_angstrom: Tensor | None = None,
) -> DefocusFit:
    """The most probable defocus of every image (N,), the map and its pose given.

    Parameters
    ----------
    volume_ft : the map, of these images' own half-set, on the device that does the work.
    images : working set, cut to the band that should count.
    optics : of these images; the gain may come from a larger set or band.
    range_angstrom : offsets from minus to plus this are tried.
    prior_sd_angstrom : spread expected of the defocus about what the images came with.
    earlier_angstrom : (N,) offsets that the parameters have been given since then, so that rounds do not wear the prior out.
    """
    earlier, device = torch.zeros(len(images)) if earlier_angstrom is None else earlier_angstrom, volume_ft.device
    voltage, best = optics.parameters.voltage_kv, torch.zeros(len(images))
    for one in voltage.unique():
        grid = _grid(images.half_plane, one, optics.pixel_size_angstrom, range_angstrom).to(device)
        for rows in torch.nonzero(voltage == one)[:, 0].split(BLOCK):
            batch, its_optics = images.rows(rows).to(device), optics.rows(rows).to(device)
            misfit = _misfit(volume_ft, batch, its_optics, pose[rows].to(device), grid)
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


def _misfit(volume_ft: VolumeFT, images: WorkingSet, optics: Optics, pose: Pose, grid: OffsetGrid) -> Tensor:
    """``|y - s p|^2 - |y|^2`` (b, g) of images y and predictions p at every offset, s the most probable brightness for each.

    Were s held at 1, an image with no particle in it would go to the offset whose CTF hides the map best, whatever the
    prior of the offset says. Freeing it costs the others nothing that could be measured.
    """
    slices = central_slices(volume_ft, images.half_plane, pose.rotation)
    product = (images.image_ft * (slices * shift_phase(images.half_plane, pose.shift_px)).conj()).real
    power = slices.abs().square()
    now, ahead = images.transfer, optics.quadrature(images.half_plane)
    cos, sin = torch.cos(grid.phase), torch.sin(grid.phase)
    overlap = (product * now) @ cos + (product * ahead) @ sin
    # (C cos + Q sin)^2 by the double angle
    constant = (power * (now.square() + ahead.square())).sum(1, keepdim=True)
    strength = (power * (now.square() - ahead.square())) @ (cos.square() - sin.square()) + (power * now * ahead) @ (4 * sin * cos)
    strength = (constant + strength) / 2
    prior = 0.5 / BRIGHTNESS_SD**2
    return prior - (overlap + prior).clamp(min=0).square() / (strength + prior)


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, n, BLOCK))
