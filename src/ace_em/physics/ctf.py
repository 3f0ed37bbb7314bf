"""The contrast transfer function, with RELION's sign: ``sqrt(1-w^2) sin(g) + w cos(g)``, +w at zero frequency."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from ace_em.maths.fourier import HalfPlane


@dataclass(frozen=True)
class CTFParameters:
    """CTF parameters of particles, each field of shape (...,), in the units of RELION's columns.

    ``defocus_angle_deg`` is the angle between the x axis and the direction of ``defocus_u``.
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

    def turned(self, angle_deg: Tensor, mirror: Tensor) -> "CTFParameters":
        """Those of images mirrored (``y -> -y``) where ``mirror`` (b,), then turned from x towards y by ``angle_deg`` (b,)."""
        angle = torch.where(mirror, -self.defocus_angle_deg, self.defocus_angle_deg) + angle_deg
        return dataclasses.replace(self, defocus_angle_deg=angle)


def ctf(parameters: CTFParameters, half_plane: HalfPlane, pixel_size_angstrom: float) -> Tensor:
    """Contrast transfer function (..., n) at the coefficients of ``half_plane``.

    Parameters
    ----------
    parameters : fields of shape (...,).
    half_plane : frequencies in cycles per box.
    pixel_size_angstrom : pixel of the array that ``half_plane`` belongs to.

    Notes
    -----
    ``calculate_ctf_2d`` of torch-ctf does the arithmetic. It takes defocus in micrometre, and its astigmatism, half of
    U - V, must not be negative (NaN), so U and V are swapped and the angle turned by 90 degrees where V is the larger.
    """
    import torch_ctf

    u, v = parameters.defocus_u_angstrom, parameters.defocus_v_angstrom
    angle = torch.where(u >= v, parameters.defocus_angle_deg, parameters.defocus_angle_deg + 90.0)
    shape = u.shape
    plane = torch_ctf.calculate_ctf_2d(
        defocus=(u + v).flatten() / 2e4,
        astigmatism=(u - v).abs().flatten() / 2e4,
        astigmatism_angle=angle.flatten(),
        voltage=parameters.voltage_kv.flatten(),
        spherical_aberration=parameters.spherical_aberration_mm.flatten(),
        amplitude_contrast=parameters.amplitude_contrast.flatten(),
        phase_shift=parameters.phase_shift_deg.flatten(),
        pixel_size=pixel_size_angstrom,
        image_shape=(half_plane.box, half_plane.box),
        rfft=False,
        fftshift=True,
    )
    return half_plane.gather(plane).reshape(*shape, len(half_plane))
