"""Alignment of two maps: known rotations and shifts are recovered, also in noise."""

from typing import Any

import pytest
import roma
import torch

from ace_em.maths.rotations import angular_distance_deg
from ace_em.metrics.alignment import Frame, turn_volume
from ace_em.metrics.fsc import fourier_shell_correlation
from ace_em.refinement.map_alignment import align_maps


def moved(volume: torch.Tensor, degrees: float, px: float, seed: int = 0) -> tuple[torch.Tensor, Frame]:
    """The volume, rotated about a random axis and shifted, and the frame that reverses this."""
    generator = torch.Generator().manual_seed(seed)
    axis, direction = (torch.nn.functional.normalize(torch.randn(3, generator=generator), dim=-1) for _ in range(2))
    turn, origin = roma.rotvec_to_rotmat(axis * torch.deg2rad(torch.tensor(degrees))), px * direction
    # V_moved(q) = V(A q) exp(-2 pi i c.(A q) / n): turned back, then moved by -A^T c
    there = Frame(turn.T, False, -(turn.T @ origin))
    return turn_volume(volume, there), Frame(turn, False, origin)


@pytest.mark.parametrize(("degrees", "px", "noise"), [(0.0, 0.0, 0.0), (2.0, 0.5, 0.0), (6.0, 1.0, 0.0), (3.0, 0.5, 0.5)])
def test_rotation_and_shift_are_recovered(particle: Any, degrees: float, px: float, noise: float) -> None:
    p = particle(1, box=32)
    generator = torch.Generator().manual_seed(1)
    one, two = (p.volume * p.mask + noise * p.volume.std() * torch.randn(32, 32, 32, generator=generator) for _ in range(2))
    there, back = moved(two, degrees, px)
    fsc = fourier_shell_correlation(one, two)
    found = align_maps(there, one, fsc, 10.0)
    allowed = 0.1 if noise == 0 else 0.7
    assert angular_distance_deg(found.rotation, back.rotation) < allowed
    assert (found.origin_px - back.origin_px).norm() < allowed / 5
    assert not found.mirrored
    # and the maps agree again
    before, after = (fourier_shell_correlation(one, v)[4:10].mean() for v in (there, turn_volume(there, found)))
    assert after > before - 0.01 and after > fsc[4:10].mean() - 0.03


def test_alignment_is_deterministic(particle: Any) -> None:
    p = particle(1, box=24)
    there, _ = moved(p.volume, 2.0, 0.3)
    fsc = torch.linspace(1, 0.2, 13)
    one, again = align_maps(there, p.volume, fsc, 8.0), align_maps(there, p.volume, fsc, 8.0)
    assert torch.equal(one.rotation, again.rotation) and torch.equal(one.origin_px, again.origin_px)
