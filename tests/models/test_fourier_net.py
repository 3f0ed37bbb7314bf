"""FourierNet against explicit transforms: Hermitian symmetry, grids, projections, blocks, gradients."""

import math

import pytest
import roma
import torch
from torch import Tensor

from ace_em.maths.fourier import centred_fft, frequencies
from ace_em.maths.half_plane import HalfPlane
from ace_em.models import fourier_net
from ace_em.models.fourier_net import FourierNet


def net(box: int, radius_px: float = 5.0, lattice: bool = False) -> FourierNet:
    torch.manual_seed(0)
    return FourierNet(box, radius_px, lattice)


def grid(box: int) -> Tensor:
    """Frequencies (box, box, box, 3) in x, y, z order of the transform of a volume, indexed z, y, x."""
    kz, ky, kx = torch.meshgrid(*[frequencies(box)] * 3, indexing="ij")
    return torch.stack([kx, ky, kz], dim=-1)


def rotations(*shape: int) -> Tensor:
    return roma.random_rotmat(shape, generator=torch.Generator().manual_seed(0))


def test_has_the_published_number_of_parameters() -> None:
    model = net(16)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (model, model.modulant, model.envelope)]
    assert sizes == [332_036, 198_914, 133_122]
    # real and imaginary part each have a modulant and an envelope
    assert model.modulant.layers[-1].out_features == model.envelope.layers[-1].out_features == 2


def test_value_is_modulant_times_the_exponential_of_the_envelope() -> None:
    """Appendix A.2, with frequencies scaled to 1 at half the box."""
    model, k = net(10), torch.tensor([[3.0, -1.0, 2.0], [0.5, 4.0, -4.5]])
    with torch.no_grad():
        wanted = torch.exp(model.envelope(k / 5)) * model.modulant(k / 5)
        torch.testing.assert_close(torch.view_as_real(model.transform(k)), wanted)


@pytest.mark.parametrize("box", [8, 9])
def test_transform_is_exactly_hermitian(box: int) -> None:
    model = net(box)
    k = 4 * torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    k[10:20, 0] = 0
    k[20:30, :2] = 0
    k[30:40, 1] = 0
    k[40:50, 1:] = 0
    with torch.no_grad():
        values, mirrored = model.transform(k), model.transform(-k)
        zero = model.transform(torch.zeros(2, 3))
    assert torch.equal(mirrored, values.conj())
    assert values.imag.abs().min() > 0 and (zero.imag == 0).all() and (zero.real != 0).all()
    # batch axes are kept
    with torch.no_grad():
        torch.testing.assert_close(model.transform(k.view(5, 4, 3, 3)), values.view(5, 4, 3))


@pytest.mark.parametrize("box", [8, 9])
@pytest.mark.parametrize("n", [6, 7, 8, 9, 12, 13])
def test_extract_is_the_inverse_transform_written_out(box: int, n: int) -> None:
    """``1/n^3 sum_k V(k) exp(2 pi i k.r / n)`` over the full ball, not only one half."""
    model = net(box)
    with torch.no_grad():
        volume = model.extract(n)
        k = grid(n).view(-1, 3)
        k = k[k.norm(dim=-1) < min(box, n) / 2]
        values = model.transform(k).to(torch.complex128)
    # centred voxel coordinates are the same integers as the frequencies
    phase = grid(n).view(-1, 3).double() @ k.double().T * (2 * math.pi / n)
    wanted = torch.complex(torch.cos(phase), torch.sin(phase)) @ values / n**3
    scale = wanted.real.abs().max().item()
    assert wanted.imag.abs().max() < 1e-6 * scale
    assert volume.dtype == torch.float32
    torch.testing.assert_close(volume.flatten().double(), wanted.real, atol=1e-5 * scale, rtol=0)


@pytest.mark.parametrize(("box", "n"), [(8, 12), (8, 13), (9, 16), (9, 15)])
def test_a_finer_grid_is_a_fourier_interpolation(box: int, n: int) -> None:
    model, k = net(box), grid(n)
    with torch.no_grad():
        volume_ft, values = centred_fft(model.extract(n), 3), model.transform(k)
    inside = k.norm(dim=-1) < box / 2
    torch.testing.assert_close(volume_ft[inside], values[inside], atol=1e-4, rtol=1e-4)
    assert volume_ft[~inside].abs().max() < 1e-4 < 1e-2 * values[~inside].abs().max()
    # the centre is a point of every grid, and the sum over voxels is preserved
    with torch.no_grad():
        coarse, fine = model.extract(box), model.extract(n)
    torch.testing.assert_close(fine[n // 2, n // 2, n // 2] * n**3, coarse[box // 2, box // 2, box // 2] * box**3)


POSITION_PX = torch.tensor([[2.5, -1.0, 0.5], [-1.5, 2.0, 3.0], [0.5, 1.0, -3.5]])
WEIGHT, SIGMA_PX = torch.tensor([1.0, 2.0, -0.7]), 1.5


def blobs_ft(k: Tensor, box: int) -> Tensor:
    """Transform of three off-centre Gaussians in closed form, at frequencies (..., 3) in cycles per box."""
    phase = k @ POSITION_PX.T * (-2 * math.pi / box)
    envelope = torch.exp(-2 * (math.pi * SIGMA_PX / box) ** 2 * k.square().sum(-1))
    return (torch.complex(torch.cos(phase), torch.sin(phase)) * WEIGHT).sum(-1) * envelope


def analytic(monkeypatch: pytest.MonkeyPatch, box: int, lattice: bool) -> FourierNet:
    """A decoder whose two networks represent the blobs exactly."""
    monkeypatch.setattr(FourierNet, "_value", lambda self, points: torch.view_as_real(blobs_ft(points * box / 2, box)))
    return net(box, box / 2 - 1.5, lattice)


@pytest.mark.parametrize("box", [20, 21])
@pytest.mark.parametrize("shape", [(5,), (2, 3)])
def test_projects_the_closed_form_slices(monkeypatch: pytest.MonkeyPatch, box: int, shape: tuple[int, ...]) -> None:
    """Eq. 26, ``X(k) = V(R k)``: exact if evaluated directly, and limited by interpolation on the lattice."""
    half_plane, rotation = HalfPlane.within(box), rotations(*shape)
    wanted = blobs_ft((rotation[..., None, :, :] @ half_plane.k3[..., None])[..., 0], box)
    direct = analytic(monkeypatch, box, lattice=False).projector()(half_plane, rotation)
    lattice = analytic(monkeypatch, box, lattice=True).projector()(half_plane, rotation)
    assert direct.shape == lattice.shape == (*shape, len(half_plane))
    torch.testing.assert_close(direct, wanted, atol=1e-5, rtol=1e-4)
    assert (lattice - wanted).norm() / wanted.norm() < 0.025
    backwards = analytic(monkeypatch, box, lattice=False).projector()(half_plane, rotation.mT)
    assert (backwards - wanted).norm() / wanted.norm() > 0.3


@pytest.mark.parametrize("box", [20, 21])
def test_volume_is_the_closed_form_density(monkeypatch: pytest.MonkeyPatch, box: int) -> None:
    axes = [frequencies(box) - POSITION_PX[:, i : i + 1] for i in (2, 1, 0)]
    z, y, x = (torch.exp(-axis.square() / (2 * SIGMA_PX**2)) / (2 * math.pi * SIGMA_PX**2) ** 0.5 for axis in axes)
    wanted = torch.einsum("a,az,ay,ax->zyx", WEIGHT, z, y, x)
    for lattice in (False, True):
        volume = analytic(monkeypatch, box, lattice).volume()
        torch.testing.assert_close(volume, wanted, atol=0.01 * wanted.max().item(), rtol=0)


def test_the_ball_masks_only_the_lattice(monkeypatch: pytest.MonkeyPatch) -> None:
    box = 20
    radius = grid(box).norm(dim=-1)

    def point_at_8(self: FourierNet, points: Tensor) -> Tensor:
        """The transform of a point at x = 8, which extends over the whole box."""
        angle = points[:, 0] * (-2 * math.pi * 8 / 2)
        return torch.stack([torch.cos(angle), torch.sin(angle)], -1)

    monkeypatch.setattr(FourierNet, "_value", point_at_8)
    free, cut = net(box, 5.0).volume(), net(box, 5.0, lattice=True).volume()
    inside, outside = radius < 2.5, radius > 9
    torch.testing.assert_close(cut[inside], free[inside], rtol=0.01, atol=0)
    assert cut[outside].abs().max() < 1e-3 * free[outside].abs().max()


def gradients(model: FourierNet) -> list[Tensor]:
    found = []
    for parameter in model.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
        found.append(parameter.grad.clone())
        parameter.grad = None
    return found


@pytest.mark.parametrize("lattice", [False, True])
def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, lattice: bool) -> None:
    """Values and gradients with activations recomputed per block, against all at once."""
    box, seen = 8, list[int]()
    half_plane, rotation, model = HalfPlane.within(box), rotations(3), net(box, lattice=lattice)
    target = torch.randn(3, len(half_plane), dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    value = FourierNet._value

    def counted(self: FourierNet, points: Tensor) -> Tensor:
        seen.append(len(points))
        return value(self, points)

    monkeypatch.setattr(FourierNet, "_value", counted)

    def loss() -> Tensor:
        return torch.view_as_real(model.projector()(half_plane, rotation) - target).square().sum()

    one = loss()
    assert len(seen) == 1
    one.backward()
    wanted = gradients(model)
    monkeypatch.setattr(fourier_net, "BLOCK", 17)
    seen.clear()
    other = loss()
    assert len(seen) > 4 and max(seen) == 17
    torch.testing.assert_close(other, one)
    other.backward()
    for a, b in zip(gradients(model), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())
    with torch.no_grad():
        torch.testing.assert_close(loss(), one)


@pytest.mark.parametrize("lattice", [False, True])
def test_gradients_reach_every_layer_of_both_networks(lattice: bool) -> None:
    half_plane, model = HalfPlane.within(8), net(8, lattice=lattice)
    model.projector()(half_plane, rotations(2)).abs().square().sum().backward()
    assert all(gradient.abs().max() > 0 for gradient in gradients(model))


@pytest.mark.parametrize("lattice", [False, True])
def test_the_amplitude_scales_the_volume_and_not_the_parameters(lattice: bool) -> None:
    half_plane, model = HalfPlane.within(8), net(8, lattice=lattice)
    before = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        volume, slices = model.volume(), model.projector()(half_plane, rotations(2))
        model.scale_to(250.0)
        torch.testing.assert_close(model.volume(), 250 * volume)
        torch.testing.assert_close(model.projector()(half_plane, rotations(2)), 250 * slices)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert model.state_dict()["amplitude"] == 250
