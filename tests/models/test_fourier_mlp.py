"""The Fourier encoder uses exactly the coefficients of its band."""

import pytest
import torch

from ace_em.maths.half_plane import HalfPlane
from ace_em.models.fourier_mlp import FourierEncoder

BOX = 16
HALF_PLANE = HalfPlane.within(BOX)


def images_ft(n: int) -> torch.Tensor:
    return HALF_PLANE.from_image(torch.randn(n, BOX, BOX, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("band", [3, 4.5, 7])
@pytest.mark.parametrize("training", [True, False])
def test_reads_only_its_band(band: float, training: bool) -> None:
    torch.manual_seed(0)
    encoder = FourierEncoder(HALF_PLANE, band, 2, 2.0, width=32, depth=2).train(training)
    # half of the lattice points in the circle, and the centre
    square = torch.arange(-8, 9).square()
    n_disc = int((square[:, None] + square <= band**2).sum())
    assert encoder.n_read == (n_disc + 1) // 2
    image_ft = images_ft(10)
    inside = HALF_PLANE.radius <= band
    beyond, rim = image_ft.clone(), image_ft.clone()
    beyond[:, ~inside] = 100
    rim[0, int(inside.nonzero()[-1])] += 3j
    with torch.no_grad():
        one = encoder(image_ft)
        assert torch.equal(encoder(beyond).rotation, one.rotation) and torch.equal(encoder(beyond).shift_px, one.shift_px)
        # the last coefficient of the band is used, including its imaginary part
        assert (encoder(rim).rotation[0] - one.rotation[0]).abs().max() > 1e-5


def test_inputs_are_standardised() -> None:
    """In training, the scale of the images or of a single frequency has no effect."""
    torch.manual_seed(0)
    encoder = FourierEncoder(HALF_PLANE, 6, 1, 2.0, width=32, depth=2)
    scale = torch.rand(len(HALF_PLANE), generator=torch.Generator().manual_seed(3)) + 20
    with torch.no_grad():
        one = encoder(images_ft(30)).rotation
        torch.testing.assert_close(encoder(images_ft(30) * scale).rotation, one, atol=2e-3, rtol=0)
        assert (one[1:] - one[:-1]).abs().max() > 0.05


def test_settings_reach_the_network() -> None:
    encoder = FourierEncoder(HALF_PLANE, 6, 3, 2.0, width=24, depth=5)
    linear = [m for m in encoder.network if isinstance(m, torch.nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(2 * encoder.n_read, 24)] + [(24, 24)] * 4
    assert encoder.heads.rotation.out_features == 18
