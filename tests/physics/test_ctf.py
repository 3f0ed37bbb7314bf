"""The CTF against its explicit formula, with RELION's sign and angle."""

import math

import pytest
import torch
from torch import Tensor

from ace_em.maths.half_plane import HalfPlane
from ace_em.physics.ctf import CTFParameters, ctf

PIXEL = 1.7


def parameters(**changes: list[float]) -> CTFParameters:
    """Four particles; each keyword replaces a field."""
    fields = {
        "defocus_u_angstrom": [12000.0, 9000.0, 25000.0, 15000.0],
        "defocus_v_angstrom": [10000.0, 9000.0, 21000.0, 17000.0],
        "defocus_angle_deg": [0.0, 40.0, 33.0, -70.0],
        "voltage_kv": [300.0, 200.0, 300.0, 120.0],
        "spherical_aberration_mm": [2.7, 0.01, 2.0, 2.7],
        "amplitude_contrast": [0.1, 0.07, 0.0, 0.2],
        "phase_shift_deg": [0.0, 0.0, 90.0, 20.0],
    } | changes
    return CTFParameters(**{name: torch.tensor(values) for name, values in fields.items()})


def written_out(p: CTFParameters, half_plane: HalfPlane, pixel: float) -> Tensor:
    """The formula of docs/conventions.md in float64, one particle at a time, from physical constants."""
    h, e, c, m = 6.62607015e-34, 1.602176634e-19, 299792458.0, 9.1093837015e-31
    rows = []
    for i in range(len(p)):
        volt = p.voltage_kv[i].item() * 1e3
        wavelength = h / math.sqrt(2 * m * e * volt * (1 + e * volt / (2 * m * c * c))) * 1e10
        kx, ky = half_plane.k.double().T / (half_plane.box * pixel)
        s2 = kx.square() + ky.square()
        # angle from x towards y
        theta = torch.atan2(ky, kx) - math.radians(p.defocus_angle_deg[i].item())
        u, v = p.defocus_u_angstrom[i].item(), p.defocus_v_angstrom[i].item()
        defocus = (u + v) / 2 + (u - v) / 2 * torch.cos(2 * theta)
        gamma = math.pi * wavelength * defocus * s2
        gamma = gamma - math.pi / 2 * p.spherical_aberration_mm[i].item() * 1e7 * wavelength**3 * s2.square()
        gamma = gamma + math.radians(p.phase_shift_deg[i].item())
        w = p.amplitude_contrast[i].item()
        rows.append(math.sqrt(1 - w * w) * torch.sin(gamma) + w * torch.cos(gamma))
    return torch.stack(rows)


@pytest.mark.parametrize("box", [48, 49])
def test_formula(box: int) -> None:
    half_plane, p = HalfPlane.within(box), parameters()
    wanted = written_out(p, half_plane, PIXEL)
    # single precision: gamma reaches 70 radians
    torch.testing.assert_close(ctf(p, half_plane, PIXEL).double(), wanted, atol=3e-4, rtol=0)
    # errors that would show: the sign of w, the sense of the angle, its origin
    for changed in (
        parameters(amplitude_contrast=[-0.1, -0.07, 0.0, -0.2]),
        parameters(defocus_angle_deg=[0.0, -40.0, -33.0, 70.0]),
        parameters(defocus_angle_deg=[90.0, 50.0, 57.0, 160.0]),
        parameters(phase_shift_deg=[0.0, 0.0, -90.0, -20.0]),
    ):
        assert (written_out(changed, half_plane, PIXEL) - wanted).abs().max() > 0.1


def test_sign_at_zero_frequency_is_plus_w() -> None:
    half_plane = HalfPlane.within(16)
    p = parameters(phase_shift_deg=[0.0] * 4, amplitude_contrast=[0.1, 0.07, 0.3, 0.2])
    torch.testing.assert_close(ctf(p, half_plane, PIXEL)[:, 0], p.amplitude_contrast)
    # underfocus is positive: the CTF rises from zero frequency
    assert (ctf(p, half_plane, PIXEL)[:, 1] > p.amplitude_contrast).all()


def test_swapping_u_and_v_is_a_rotation_by_90_degrees() -> None:
    half_plane, p = HalfPlane.within(32), parameters()
    swapped = parameters(
        defocus_u_angstrom=p.defocus_v_angstrom.tolist(),
        defocus_v_angstrom=p.defocus_u_angstrom.tolist(),
        defocus_angle_deg=(p.defocus_angle_deg + 90).tolist(),
    )
    torch.testing.assert_close(ctf(swapped, half_plane, PIXEL), ctf(p, half_plane, PIXEL), atol=1e-3, rtol=0)
    turned = parameters(defocus_angle_deg=(p.defocus_angle_deg + 90).tolist())
    assert (ctf(turned, half_plane, PIXEL) - ctf(p, half_plane, PIXEL)).abs().amax(1)[[0, 2, 3]].min() > 0.1


def test_ctf_without_astigmatism_is_round_and_finite() -> None:
    half_plane = HalfPlane.within(32)
    p = parameters(defocus_v_angstrom=parameters().defocus_u_angstrom.tolist())
    values = ctf(p, half_plane, PIXEL)
    assert values.isfinite().all()
    for radius in half_plane.radius.unique()[1::20]:
        ring = values[:, half_plane.radius == radius]
        torch.testing.assert_close(ring, ring[:, :1].expand_as(ring), atol=1e-3, rtol=0)


def test_pixel_size_scales_the_frequencies() -> None:
    """Fourier cropping keeps the CTF of each coefficient: half the box with twice the pixel size."""
    p = parameters()
    fine, coarse = HalfPlane.within(64), HalfPlane.within(32)
    wanted = ctf(p, fine, PIXEL)[:, : len(fine.band(10))]
    torch.testing.assert_close(ctf(p, coarse, 2 * PIXEL)[:, : len(coarse.band(10))], wanted, atol=1e-4, rtol=0)


def test_batch_axes_and_rows() -> None:
    half_plane, p = HalfPlane.within(16), parameters()
    wanted = ctf(p, half_plane, PIXEL)
    grid = CTFParameters(*(getattr(p, f).view(2, 2) for f in p.__dataclass_fields__))
    torch.testing.assert_close(ctf(grid, half_plane, PIXEL), wanted.view(2, 2, -1), atol=1e-4, rtol=0)
    torch.testing.assert_close(ctf(p[2], half_plane, PIXEL), wanted[2], atol=1e-4, rtol=0)
    torch.testing.assert_close(ctf(p[torch.tensor([3, 1])], half_plane, PIXEL), wanted[[3, 1]], atol=1e-4, rtol=0)
    assert len(p) == 4 and len(p[1:3]) == 2
