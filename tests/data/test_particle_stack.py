"""Stacks and batches: values that stay as they are, and whose images, CTFs and poses turn together (eq. 7)."""

import dataclasses
import math

import pytest
import roma
import torch
from torch import Tensor

from ace_em.data.particle_stack import Batch, Optics, ParticleStack
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.image_rotation import plane_turn
from ace_em.physics.ctf import CTFParameters, ctf
from ace_em.physics.imaging import shift_phase
from ace_em.physics.noise import NoiseModel
from ace_em.physics.pose import Pose
from ace_em.simulation.density import project_atoms
from ace_em.simulation.structure import Atoms
from stacks import stack_of

N, BOX, PIXEL, RESOLUTION = 12, 32, 4.0, 22.0
ANGLE_DEG = torch.linspace(20.0, 340.0, N)
MIRRORS = (torch.zeros(N, dtype=torch.bool), torch.ones(N, dtype=torch.bool), torch.arange(N) % 2 == 0)
NO_TURN, NO_MIRROR = torch.zeros(N), torch.zeros(N, dtype=torch.bool)


def atoms() -> Atoms:
    """Off the centre and without symmetry."""
    generator = torch.Generator().manual_seed(3)
    position = torch.randn(10, 3, generator=generator).clamp(-1.5, 1.5) * torch.tensor([14.0, 9.0, 6.0])
    return Atoms(position + torch.tensor([8.0, -5.0, 3.0]), 1 + 7 * torch.rand(10, generator=generator))


def poses() -> Pose:
    generator = torch.Generator().manual_seed(4)
    return Pose(roma.random_rotmat(N, generator=generator), 2 * torch.randn(N, 2, generator=generator))


def optics(half_plane: HalfPlane) -> Optics:
    """U - V of 9000 Angstrom, which moves the zeros by several shells; a gain that falls off, as a whitening's does."""
    generator = torch.Generator().manual_seed(5)
    mean = 12000 + 3000 * torch.rand(N, generator=generator)
    parameters = CTFParameters(
        mean + 4500,
        mean - 4500,
        180 * torch.rand(N, generator=generator),
        torch.full((N,), 300.0),
        torch.full((N,), 2.7),
        torch.full((N,), 0.1),
        torch.zeros(N),
    )
    return Optics(parameters, (0.5 + torch.exp(-((half_plane.radius / 10) ** 2))).expand(N, -1), PIXEL)


def two_groups(box: int) -> tuple[ParticleStack, Tensor]:
    """Images of two groups of noise, and the whitening power of these (2, n_shells)."""
    generator, half_plane = torch.Generator().manual_seed(7), HalfPlane.within(box)
    power = 0.5 + torch.rand(2, box // 2 + 1, generator=generator)
    noise = NoiseModel(power, torch.tensor([[1.0], [0.5]]).expand(2, box // 2 + 1))
    image_ft = torch.randn(N, len(half_plane), dtype=torch.complex64, generator=generator)
    stack = stack_of(half_plane, image_ft, optics(half_plane).ctf, PIXEL, noise)
    stack = dataclasses.replace(stack, noise_group=torch.arange(N) % 2)
    return stack.with_intensity_scale(0.5 + torch.rand(N, generator=generator)), power


def clean(half_plane: HalfPlane, pose: Pose) -> Tensor:
    """Slices (N, n) moved by the shift, from turned atoms: nothing of this is interpolated."""
    slices = half_plane.gather(project_atoms(atoms(), pose.rotation, half_plane.box, PIXEL, RESOLUTION))
    return slices * shift_phase(half_plane, pose.shift_px)


def images(box: int) -> Batch:
    half_plane = HalfPlane.within(box)
    effective_ctf = optics(half_plane).effective_ctf(half_plane)
    variance = torch.linspace(0.5, 1, len(half_plane)).expand(N, -1)
    return Batch(half_plane, clean(half_plane, poses()) * effective_ctf, effective_ctf, variance, optics(half_plane))


def residual(batch: Batch, pose: Pose, effective_ctf: Tensor | None = None) -> Tensor:
    """``|Y - prediction|^2`` (N,) of the power."""
    predicted = clean(batch.half_plane, pose) * (batch.effective_ctf if effective_ctf is None else effective_ctf)
    return (batch.image_ft - predicted).abs().square().sum(1) / batch.image_ft.abs().square().sum(1)


@pytest.mark.parametrize("box", [64, 65])
@pytest.mark.parametrize("mirror", MIRRORS, ids=["turned", "mirrored", "some"])
def test_image_ctf_and_pose_turn_together(box: int, mirror: Tensor) -> None:
    batch, pose, turn = images(box), poses(), plane_turn(ANGLE_DEG, mirror)
    assert residual(batch, pose).max() < 1e-10
    turned, turned_pose = batch.turned(ANGLE_DEG, mirror), pose.in_turned_image(turn)
    assert residual(turned, turned_pose).max() < 2e-3
    torch.testing.assert_close(torch.linalg.det(turned_pose.rotation), torch.ones(N))
    # any of the three left behind raises it
    assert residual(turned, turned_pose, batch.effective_ctf).mean() > 0.03
    assert residual(turned, pose).median() > 0.1
    assert residual(turned, Pose(turned_pose.rotation, pose.shift_px)).median() > 0.1
    assert residual(turned, Pose(pose.rotation, turned_pose.shift_px)).median() > 0.1
    assert residual(batch, turned_pose).median() > 0.1
    # so do the wrong way round, and a mirror forgotten in the pose or in the CTF
    if not mirror.any():
        assert residual(turned, pose.in_turned_image(turn.mT)).median() > 0.1
    if mirror.any():
        unmirrored = pose.in_turned_image(plane_turn(ANGLE_DEG, NO_MIRROR))
        assert residual(turned, unmirrored)[mirror].median() > 0.1
        assert batch.optics is not None
        astray = dataclasses.replace(batch.optics, ctf=batch.optics.ctf.turned(ANGLE_DEG, NO_MIRROR))
        assert residual(turned, turned_pose, astray.effective_ctf(batch.half_plane))[mirror].mean() > 0.03


@pytest.mark.parametrize("box", [64, 65])
def test_half_a_turn_is_the_conjugate(box: int) -> None:
    """What eq. 6 does: no interpolation, and the CTF is even."""
    batch = images(box)
    turned = batch.turned(torch.full((N,), 180.0), NO_MIRROR)
    torch.testing.assert_close(turned.effective_ctf, batch.effective_ctf, atol=1e-4, rtol=1e-4)
    exact = batch.with_images(batch.image_ft.conj())
    assert residual(exact, poses().in_turned_image(-torch.eye(2))).max() < 1e-6
    assert exact.optics is batch.optics and torch.equal(exact.effective_ctf, batch.effective_ctf)


def test_ctf_turned_by_hand() -> None:
    """Mirrored and then turned by 90 degrees, an astigmatism at 30 stands at 60 degrees."""
    half_plane = HalfPlane.within(32)
    parameters = optics(half_plane).ctf
    turned = parameters.turned(torch.full((N,), 90.0), torch.ones(N, dtype=torch.bool))
    torch.testing.assert_close(turned.defocus_angle_deg, 90 - parameters.defocus_angle_deg)
    kept = [f.name for f in dataclasses.fields(CTFParameters) if f.name != "defocus_angle_deg"]
    assert all(torch.equal(getattr(turned, name), getattr(parameters, name)) for name in kept)
    # read at a lattice point: the turn by 90 degrees alone takes (kx, ky) to (-ky, kx)
    values = ctf(parameters, half_plane, PIXEL)
    moved = ctf(parameters.turned(torch.full((N,), 90.0), NO_MIRROR), half_plane, PIXEL)
    index = {(int(x), int(y)): i for i, (x, y) in enumerate(half_plane.k.tolist())}
    for x, y in ((9, -5), (3, -8), (12, -1)):
        torch.testing.assert_close(moved[:, index[-y, x]], values[:, index[x, y]], atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(), (N,), (N, 1)])
def test_pose_of_a_turned_image_by_hand(shape: tuple[int, ...]) -> None:
    """A turn takes the shift with it, and ``R`` is followed by the inverse; there and back is where it was."""
    angle, mirror = torch.full(shape or (1,), 90.0), torch.zeros(shape or (1,), dtype=torch.bool)
    turn = plane_turn(angle.flatten(), mirror.flatten()).view(*shape, 2, 2) if shape else plane_turn(angle, mirror)[0]
    generator = torch.Generator().manual_seed(6)
    pose = Pose(roma.random_rotmat((N, 3), generator=generator), torch.randn(N, 3, 2, generator=generator))
    pose = pose.column(0) if shape == (N,) else pose
    found = pose.in_turned_image(turn)
    # from x towards y: (x, y) -> (-y, x), and shifts are stored as (y, x)
    y, x = pose.shift_px.unbind(-1)
    torch.testing.assert_close(found.shift_px, torch.stack([x, -y], -1))
    quarter = roma.rotvec_to_rotmat(torch.tensor([0.0, 0.0, math.pi / 2]))
    torch.testing.assert_close(found.rotation, pose.rotation @ quarter.T, atol=1e-6, rtol=0)
    back = found.in_turned_image(turn.mT)
    torch.testing.assert_close(back.rotation, pose.rotation, atol=1e-6, rtol=0)
    torch.testing.assert_close(back.shift_px, pose.shift_px, atol=1e-6, rtol=0)


def assert_in_step(batch: Batch) -> None:
    """The effective CTF is still what the optics say, and every field has the half-plane's length."""
    n = len(batch.half_plane)
    assert batch.image_ft.shape == batch.effective_ctf.shape == (len(batch), n) == batch.noise_variance.shape
    assert batch.optics is not None and batch.optics.gain.shape == (len(batch), n) and len(batch.optics.ctf) == len(batch)
    torch.testing.assert_close(batch.optics.effective_ctf(batch.half_plane), batch.effective_ctf, atol=1e-5, rtol=0)


def test_rows_and_band_keep_the_fields_in_step() -> None:
    batch = images(32)
    rows = torch.tensor([7, 0, 7, 3])
    assert_in_step(batch)
    for part, wanted in ((batch.rows(rows), batch.image_ft[rows]), (batch.rows(slice(2, 5)), batch.image_ft[2:5])):
        assert_in_step(part)
        assert torch.equal(part.image_ft, wanted)
    inner = batch.band(6.5)
    assert_in_step(inner)
    assert inner.half_plane.radius.max() <= 6.5 < batch.half_plane.radius[len(inner.half_plane)]
    assert torch.equal(inner.image_ft, batch.image_ft[:, : len(inner.half_plane)]) and inner.box == 32
    assert_in_step(batch.rows(rows).band(9).rows(slice(1, 3)).turned(ANGLE_DEG[:2], MIRRORS[2][:2]))


def test_cat_stacks_images_with_their_effective_ctf() -> None:
    batch = images(32)
    turned = batch.turned(ANGLE_DEG, MIRRORS[2])
    both = Batch.cat([batch, turned])
    assert len(both) == 2 * N and both.half_plane is batch.half_plane
    for part, rows in ((batch, slice(0, N)), (turned, slice(N, 2 * N))):
        assert torch.equal(both.image_ft[rows], part.image_ft) and torch.equal(both.effective_ctf[rows], part.effective_ctf)
    assert torch.equal(both.noise_variance[N:], batch.noise_variance)


def test_no_turn_without_optics() -> None:
    batch = dataclasses.replace(images(32), optics=None)
    with pytest.raises(ValueError, match="optics"):
        batch.turned(NO_TURN, NO_MIRROR)
    with pytest.raises(ValueError, match="optics"):
        batch.quadrature()
    # everything else needs none
    assert batch.rows(slice(0, 3)).band(5).optics is None


def test_a_stack_gives_whitened_images_and_their_effective_ctf() -> None:
    """Two groups of noise, intensity scales, rows out of order, bands: all written out by hand."""
    stack, power = two_groups(BOX)
    rows = torch.tensor([5, 0, 11, 3])
    sd = power[stack.noise_group[rows]][:, stack.half_plane.shell].sqrt()
    batch = stack.batch(rows)
    torch.testing.assert_close(batch.image_ft, stack.store.read(rows, len(sd[0])) / sd)
    expected = ctf(stack.ctf[rows], stack.half_plane, PIXEL) * stack.intensity_scale[rows, None] / sd
    torch.testing.assert_close(batch.effective_ctf, expected)
    torch.testing.assert_close(batch.noise_variance, stack.noise.variance[stack.noise_group[rows]][:, stack.half_plane.shell])
    assert_in_step(batch)
    torch.testing.assert_close(stack.images(rows), batch.image_ft)
    inner = stack.subset(rows).band(6.5)
    again = inner.batch(slice(1, 3))
    n = len(inner.half_plane)
    assert torch.equal(again.image_ft, batch.image_ft[1:3, :n]) and torch.equal(again.effective_ctf, batch.effective_ctf[1:3, :n])
    torch.testing.assert_close(stack.power()[rows], batch.image_ft.abs().square().sum(1))
    torch.testing.assert_close(stack.noise_power()[rows], batch.noise_variance.sum(1))
    torch.testing.assert_close(stack.noise_power_sd(0.5)[rows], (batch.noise_variance.square().sum(1) / 0.5).sqrt())


def test_a_stack_is_a_value() -> None:
    """Other noise, scales or defocus give another stack over the same coefficients; the first stays as it is."""
    stack, power = two_groups(BOX)
    before = stack.batch(slice(None))
    other = stack.with_noise(stack.noise.scaled(torch.full((2, 5), 4.0))).with_intensity_scale(2 * stack.intensity_scale)
    other = other.with_ctf(stack.ctf.defocused(torch.full((N,), 900.0)))
    after, now = other.batch(slice(None)), stack.batch(slice(None))
    assert torch.equal(now.image_ft, before.image_ft) and torch.equal(now.effective_ctf, before.effective_ctf)
    low = stack.half_plane.shell < 5
    torch.testing.assert_close(after.image_ft[:, low], before.image_ft[:, low] / 2)
    assert torch.equal(after.image_ft[:, ~low], before.image_ft[:, ~low])
    assert not torch.allclose(after.effective_ctf, before.effective_ctf, rtol=0.1)
    assert other.store is stack.store and not [name for name in dir(stack) if name.endswith("_") and not name.startswith("_")]


def test_noise_models() -> None:
    model = NoiseModel.of(torch.tensor([[4.0, 1.0, 0.1], [2.0, 2.0, 2.0]]), 0.5, 0.8)
    torch.testing.assert_close(model.whitening_power, 0.8 * torch.tensor([[4.0, 1.0, 0.5], [2.0, 2.0, 2.0]]))
    torch.testing.assert_close(model.variance, torch.tensor([[1.0, 1.0, 0.2], [1.0, 1.0, 1.0]]))
    assert model.floored.tolist() == [[False, False, True], [False] * 3]
    one = model.pooled(torch.tensor([300.0, 100.0]))
    torch.testing.assert_close(one.whitening_power, 0.8 * torch.tensor([[3.5, 1.25, 0.875]]))
    torch.testing.assert_close(one.whitening_power * one.variance, 0.8 * torch.tensor([[3.5, 1.25, 0.575]]))
