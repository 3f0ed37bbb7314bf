"""Coverage of the view sphere: all of it, a cone, one view."""

import math

import pytest
import roma
import torch
from torch import Tensor

from ace_em.metrics.coverage import coverage, view_counts, view_directions
from ace_em.physics.pose import relion_angles_to_rotmat


def uniform(n: int) -> Tensor:
    return roma.random_rotmat(n, generator=torch.Generator().manual_seed(0))


def test_uniform_views_cover_the_sphere() -> None:
    rotation = uniform(10_000)
    assert coverage(rotation) == 1
    counts = view_counts(rotation)
    assert counts.shape == (192,) and counts.sum() == 10_000
    # Poisson with mean 52
    assert counts.min() > 20 and counts.max() < 100


def test_one_view_is_one_pixel_for_every_psi() -> None:
    psi = torch.linspace(0, 359, 100)
    rotation = relion_angles_to_rotmat(torch.stack([torch.full_like(psi, 40), torch.full_like(psi, 70), psi], -1))
    assert coverage(rotation) == pytest.approx(1 / 192)
    # tilt moves the view from +z towards +x, rot rotates it about z
    rot, tilt = math.radians(40), math.radians(70)
    wanted = torch.tensor([math.sin(tilt) * math.cos(rot), math.sin(tilt) * math.sin(rot), math.cos(tilt)])
    torch.testing.assert_close(view_directions(rotation), wanted.expand(100, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("half_angle_deg", [30.0, 60.0, 90.0])
def test_a_cone_reaches_its_share(half_angle_deg: float) -> None:
    rotation = uniform(60_000)
    axis = torch.nn.functional.normalize(torch.tensor([1.0, -2, 0.5]), dim=0)
    edge = math.cos(math.radians(half_angle_deg))
    inside = rotation[view_directions(rotation) @ axis > edge]
    share = (1 - edge) / 2
    assert len(inside) == pytest.approx(share * 60_000, rel=0.05)
    # pixels on the edge of the cone count in full, which adds half a pixel along a circle of length 2 pi sin
    n_side = 8
    rim = 2 * math.pi * math.sin(math.radians(half_angle_deg)) * math.radians(58.6 / n_side) / (4 * math.pi)
    assert share - 0.1 * rim < coverage(inside, n_side) < share + rim
