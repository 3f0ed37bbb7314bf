"""The contrast transfer function with RELION's sign: ``sqrt(1 - w^2) sin(g) + w cos(g)``, which is +w at zero frequency."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.maths.half_plane import HalfPlane


@dataclass(frozen=True)
class CTFParameters:
    """CTF parameters of particles, each of shape (...,), in the units of RELION's columns.

    ``defocus_angle_deg`` is the angle from the x axis to the direction of ``defocus_u``.
    """

    defocus_u_angstrom: Tensor
    defocus_v_angstrom: Tensor
    defocus_angle_deg: Tensor
    voltage_kv: Tensor
    spherical_aberration_mm: Tensor
    amplitude_contrast: Tensor
    phase_shift_deg: Tensor

    def __len__(self) -> int:
        return len(self.defocus_u_angstrom)

    def __getitem__(self, rows: Tensor | slice | int) -> "CTFParameters":
        return CTFParameters(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))

    def to(self, device: torch.device) -> "CTFParameters":
        return CTFParameters(*(getattr(self, f.name).to(device) for f in dataclasses.fields(self)))

    def defocused(self, offset_angstrom: Tensor) -> "CTFParameters":
        """The parameters with an offset (...,) added to defocus U and V."""
        u, v = self.defocus_u_angstrom + offset_angstrom, self.defocus_v_angstrom + offset_angstrom
        return dataclasses.replace(self, defocus_u_angstrom=u, defocus_v_angstrom=v)

    def quarter_wave_on(self) -> "CTFParameters":
        """The parameters with 90 degrees added to the phase shift: the CTF in quadrature, the derivative of C in its phase."""
        return dataclasses.replace(self, phase_shift_deg=self.phase_shift_deg + 90)

    def turned(self, angle_deg: Tensor, mirror: Tensor) -> "CTFParameters":
        """The parameters of transformed images: mirrored (``y -> -y``) where ``mirror`` (b,), then rotated by ``angle_deg`` (b,).

        Positive angles rotate from x towards y.
        """
        angle = torch.where(mirror, -self.defocus_angle_deg, self.defocus_angle_deg) + angle_deg
        return dataclasses.replace(self, defocus_angle_deg=angle)


def ctf(parameters: CTFParameters, half_plane: HalfPlane, pixel_size_angstrom: float) -> Tensor:
    """Contrast transfer function (..., n) at the coefficients of ``half_plane``.

    Parameters
    ----------
    parameters : fields of shape (...,).
    half_plane : frequencies in cycles per box.
    pixel_size_angstrom : pixel size of the images that ``half_plane`` belongs to.

    Notes
    -----
    The phase is from torch-ctf's ``calculate_total_phase_shift``, given the defocus in each direction in micrometres. Its
    function for full planes would compute both halves and the corners, which are not needed.
    """
    import torch_ctf

    u, v = parameters.defocus_u_angstrom[..., None], parameters.defocus_v_angstrom[..., None]
    direction = torch.atan2(half_plane.k[:, 1], half_plane.k[:, 0])
    astigmatism = torch.cos(2 * (direction - torch.deg2rad(parameters.defocus_angle_deg)[..., None]))
    phase = torch_ctf.calculate_total_phase_shift(
        defocus_um=((u + v) + (u - v) * astigmatism) / 2e4,
        voltage_kv=parameters.voltage_kv[..., None],
        spherical_aberration_mm=parameters.spherical_aberration_mm[..., None],
        phase_shift_degrees=parameters.phase_shift_deg[..., None],
        amplitude_contrast_fraction=parameters.amplitude_contrast[..., None],
        fftfreq_grid_angstrom_squared=(half_plane.radius / (half_plane.box * pixel_size_angstrom)).square(),
    )
    return -torch.sin(phase)
