"""Laws of every pose encoder: proper rotations, bounded shifts, finite gradients where the 6-D representation breaks."""

from collections.abc import Callable

import pytest
import torch

from ace_em.maths.half_plane import HalfPlane
from ace_em.models.encoder import PoseEncoder, PoseHeads
from ace_em.models.fourier_mlp import FourierEncoder
from ace_em.models.resnet import ResNetEncoder

BOX, MAX_SHIFT = 16, 2.0
HALF_PLANE = HalfPlane.within(BOX)


def fourier(m: int) -> PoseEncoder:
    return FourierEncoder(HALF_PLANE, 6, m, MAX_SHIFT, width=32, depth=2)


def resnet(m: int) -> PoseEncoder:
    return ResNetEncoder(HALF_PLANE, m, MAX_SHIFT, hidden=32)


def last_layer(head: torch.nn.Module) -> torch.nn.Linear:
    layers = [layer for layer in head.modules() if isinstance(layer, torch.nn.Linear)]
    return layers[-1]


@pytest.mark.parametrize("m", [1, 4])
@pytest.mark.parametrize("build", [fourier, resnet])
@pytest.mark.parametrize("loud", [1.0, 1e4])
def test_rotations_are_proper_and_shifts_bounded(build: Callable[[int], PoseEncoder], m: int, loud: float) -> None:
    torch.manual_seed(1)
    encoder = build(m)
    with torch.no_grad():
        for head in (encoder.heads.shift, encoder.heads.rotation):
            last_layer(head).weight *= loud
    image_ft = HALF_PLANE.from_image(torch.randn(12, BOX, BOX, generator=torch.Generator().manual_seed(1)))
    hypotheses = encoder(image_ft)
    rotation = hypotheses.rotation
    assert rotation.shape == (12, m, 3, 3) and hypotheses.shift_px.shape == (12, 2)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(12, m, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(12, m), atol=1e-5, rtol=0)
    shift = hypotheses.shift_px
    assert shift.abs().max() <= MAX_SHIFT
    assert shift.min() < 0 < shift.max()
    if loud > 1:
        assert shift.abs().max() > 0.99 * MAX_SHIFT
    # hypotheses differ between images and within an image
    assert (rotation[0] - rotation[1]).abs().max() > 1e-3
    assert m == 1 or (rotation[:, 0] - rotation[:, 1]).abs().max() > 1e-2
    (rotation.square().sum() + rotation[..., 0, 1].sum() + shift.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def heads_of(columns: list[list[float]]) -> PoseHeads:
    """Heads whose two 3-vectors are always ``columns``."""
    heads = PoseHeads(2, 1, MAX_SHIFT)
    with torch.no_grad():
        heads.rotation.weight.zero_()
        heads.rotation.bias.copy_(torch.tensor(columns).T.flatten())
    return heads


def test_gram_schmidt_of_known_vectors() -> None:
    heads = heads_of([[0, 2, 0], [0, 5, 3]])
    wanted = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    torch.testing.assert_close(heads(torch.randn(1, 2)).rotation[0, 0], wanted)


@pytest.mark.parametrize(
    "columns",
    [[[1, 2, 3], [2, 4, 6]], [[1, 0, 0], [1, 0, 0]], [[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [1, 0, 0]], [[3, 0, 0], [0, 0, 0]]],
)
def test_degenerate_vectors_stay_finite(columns: list[list[float]]) -> None:
    heads = heads_of([[float(c) for c in column] for column in columns])
    rotation = heads(torch.ones(3, 2)).rotation
    assert rotation.isfinite().all() and rotation.abs().max() <= 1 + 1e-5
    (rotation * torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).sum().backward()
    for p in (heads.rotation.weight, heads.rotation.bias):
        assert p.grad is not None and p.grad.isfinite().all()


def test_small_shifts_pass_unchanged() -> None:
    heads = heads_of([[1, 0, 0], [0, 1, 0]])
    with torch.no_grad():
        heads.shift.weight.zero_()
        heads.shift.bias.copy_(torch.tensor([0.01, -0.02]))
    torch.testing.assert_close(heads(torch.ones(1, 2)).shift_px[0], torch.tensor([0.01, -0.02]), atol=1e-6, rtol=1e-3)


def test_hidden_units_make_each_head_a_perceptron_of_its_own() -> None:
    """Appendix A.1: separate MLPs for rotation and shift, with nothing shared after the features."""
    heads = PoseHeads(7, 3, MAX_SHIFT, hidden=5)
    for head, n_out in ((heads.rotation, 18), (heads.shift, 2)):
        assert [tuple(p.shape) for p in head.parameters()] == [(5, 7), (5,), (n_out, 5), (n_out,)]
    features = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    heads(features).shift_px.sum().backward()
    assert all(p.grad is None for p in heads.rotation.parameters())
    # the heads are not linear: minus the features does not give minus the output
    shift = heads.shift(features) - heads.shift(features * 0)
    assert (heads.shift(-features) - heads.shift(features * 0) + shift).abs().max() > 1e-3


def test_half_an_edge_is_the_papers_sigmoid_centred() -> None:
    """Equal to the sigmoid of appendix A.1 minus 1/2, in fractions of the edge, of four times the raw prediction."""
    box, raw_px = 32, torch.tensor([5.0, -9.0])
    heads = heads_of([[1, 0, 0], [0, 1, 0]])
    heads.max_shift_px = box / 2
    with torch.no_grad():
        heads.shift.weight.zero_()
        heads.shift.bias.copy_(raw_px)
    torch.testing.assert_close(heads(torch.ones(1, 2)).shift_px[0] / box, torch.sigmoid(4 * raw_px / box) - 0.5)
