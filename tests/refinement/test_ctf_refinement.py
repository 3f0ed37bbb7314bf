"""Defocus per particle: back to the truth as near as the noise allows, and no change where an image does not ask for one."""

from dataclasses import dataclass, replace

import pytest
import roma
import torch
from ace_em.data.working_set import WorkingSet
from torch import Tensor

from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.slices import VolumeFT, volume_to_ft
from ace_em.physics.ctf import CTFParameters, ctf
from ace_em.physics.imaging import project
from ace_em.physics.pose import Pose
from ace_em.refinement import defocus
from ace_em.refinement.ctf_refinement import Optics, refine_defocus, shifted, with_defocus_
from ace_em.refinement.noise_scale import Calibration
from ace_em.simulation.density import density_map
from ace_em.simulation.structure import Atoms

BOX, PIXEL = 36, 2.5
RANGE, PRIOR_SD = 1600.0, 400.0
FLAT = 1e5
"""A prior that says nothing."""


@dataclass(frozen=True)
class Stack:
    """Images made with defocus that is ``error`` (N,) larger than what their ``optics``, and transfer, say."""

    volume_ft: VolumeFT
    images: WorkingSet
    clean_ft: Tensor
    optics: Optics
    pose: Pose
    error: Tensor

    def rows(self, rows: Tensor | slice) -> "Stack":
        images, optics = self.images.rows(rows), self.optics.rows(rows)
        return Stack(self.volume_ft, images, self.clean_ft[rows], optics, self.pose[rows], self.error[rows])

    @property
    def empty(self) -> WorkingSet:
        """The same noise without the particles."""
        return replace(self.images, image_ft=self.images.image_ft - self.clean_ft)

    def fit(self, prior_sd: float = PRIOR_SD, limit: float = RANGE) -> defocus.DefocusFit:
        return refine_defocus(self.volume_ft, self.images, self.optics, self.pose, limit, prior_sd)

    def transfer(self, offset: Tensor) -> Tensor:
        """From the CTF, noise and brightness, at the stated defocus plus an offset."""
        o = self.optics
        factor = o.gain[self.images.half_plane.shell] * o.scale[:, None]
        return ctf(shifted(o.parameters, offset), self.images.half_plane, PIXEL) * factor

    def crlb_sd(self) -> Tensor:
        """(N,) least deviation of an unbiased estimate: noise has variance 1/2 in each part of a coefficient."""
        slope = (self.transfer(self.error + 5) - self.transfer(self.error - 5)) / 10
        by_offset = project(self.volume_ft, slope, self.images.half_plane, self.pose)
        return (2 * by_offset.abs().square().sum(1)).rsqrt()


def parameters(n: int, generator: torch.Generator) -> CTFParameters:
    """Astigmatic; every third at 200 kV, every fifth with a phase plate."""
    number = torch.arange(n)
    u = 8000 + 12000 * torch.rand(n, generator=generator)
    return CTFParameters(
        defocus_u_angstrom=u,
        defocus_v_angstrom=u - 1000 * torch.rand(n, generator=generator) + 200,
        defocus_angle_deg=180 * torch.rand(n, generator=generator),
        voltage_kv=torch.where(number % 3 == 0, 200.0, 300.0),
        spherical_aberration_mm=torch.full((n,), 2.7),
        amplitude_contrast=torch.full((n,), 0.1),
        phase_shift_deg=torch.where(number % 5 == 0, 70.0, 0.0),
    )


def stack(n: int, brightness: float = 0.2, error_sd: float = 400.0, seed: int = 0) -> Stack:
    """Unit noise; at a brightness of 0.2 a coefficient's signal has a third of its power, most of it at low frequencies."""
    generator = torch.Generator().manual_seed(seed)
    position = torch.randn(60, 3, generator=torch.Generator().manual_seed(17)) * torch.tensor([14.0, 12.0, 9.0])
    volume_ft = volume_to_ft(density_map(Atoms(position, torch.full((60,), brightness)), BOX, PIXEL, 6.0))
    half_plane = HalfPlane.within(BOX)
    pose = Pose(roma.random_rotmat(n, generator=generator), torch.randn(n, 2, generator=generator))
    scale = (1 + 0.15 * torch.randn(n, generator=generator)).clamp(0.5, 1.5)
    gain = 1 / (1 + torch.exp(-torch.arange(BOX // 2 + 1) / 6))
    true = Optics(parameters(n, generator), PIXEL, scale, gain)
    error = error_sd * torch.randn(n, generator=generator)
    stated = replace(true, parameters=shifted(true.parameters, -error))
    clean = project(volume_ft, true.transfer(half_plane), half_plane, pose)
    noise = torch.view_as_complex(torch.randn(*clean.shape, 2, generator=generator) * 0.5**0.5)
    images = WorkingSet(half_plane, clean + noise, stated.transfer(half_plane), torch.ones(len(half_plane)))
    return Stack(volume_ft, images, clean, stated, pose, error)


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


@pytest.mark.parametrize(("brightness", "error_sd", "gained"), [(0.2, 300.0, 3.5), (0.2, 500.0, 5.0), (0.5, 400.0, 10.0)])
def test_recovers_defocus_as_well_as_the_noise_allows(brightness: float, error_sd: float, gained: float) -> None:
    s = stack(300, brightness, error_sd)
    found = s.fit(FLAT, 2000.0)
    left = found.offset_angstrom - s.error
    assert found.at_limit == 0
    assert rms(left) < rms(s.error) / gained
    # above the bound by the brightness that is fitted along and by the parabola; far below it only by looking at the truth
    assert 0.85 < rms(left / s.crlb_sd()) < 1.25
    assert abs(left.mean().item()) < 4 * rms(left) / 300**0.5


def test_what_is_known_beforehand_helps_faint_images() -> None:
    s = stack(300, 0.05)
    bound = s.crlb_sd()
    posterior_sd = (bound**-2 + PRIOR_SD**-2).rsqrt()
    left = s.fit().offset_angstrom - s.error
    assert rms(s.fit(FLAT).offset_angstrom - s.error) > 1.2 * rms(left)
    assert 0.85 < rms(left / posterior_sd) < 1.25


def test_prior_weighs_as_its_spread_against_the_noise() -> None:
    """Errors small enough for the misfit to be a parabola: the posterior mean shrinks the estimate by a known share."""
    s = stack(300, 0.5, 30.0)
    free, bound, prior_sd = s.fit(FLAT).offset_angstrom, s.crlb_sd(), 25.0
    shrunk = free * bound**-2 / (bound**-2 + prior_sd**-2)
    share = (s.fit(prior_sd).offset_angstrom * shrunk).sum() / shrunk.square().sum()
    assert share.item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("brightness", [0.05, 0.2, 1.0])
def test_noise_alone_stays_near_zero(brightness: float) -> None:
    """Also against a map that stands far above the noise, where the images were thought to show it."""
    s = stack(300, brightness)
    s = replace(s, images=s.empty)
    assert rms(s.fit().offset_angstrom) < 0.4 * PRIOR_SD
    assert rms(s.fit(FLAT).offset_angstrom) > PRIOR_SD


def test_misfit_is_that_of_the_ctf_written_out() -> None:
    s = stack(20, 1.0)
    half_plane = s.images.half_plane
    for kv in (200.0, 300.0):
        mine = s.rows(torch.nonzero(s.optics.parameters.voltage_kv == kv)[:, 0])
        grid = defocus._grid(half_plane, torch.tensor(kv), PIXEL, RANGE)
        misfit = defocus._misfit(s.volume_ft, mine.images, mine.optics, mine.pose, grid)
        assert grid.phase[-1].diff().max() <= 0.7
        for column in (0, 3, len(grid.offset_angstrom) // 2, -1):
            offset = grid.offset_angstrom[column].expand(len(mine.pose))
            predicted = project(s.volume_ft, mine.transfer(offset), half_plane, mine.pose)
            brightness = torch.linspace(-0.5, 2, 2001)[:, None]
            power = predicted.abs().square().sum(1)
            overlap = (mine.images.image_ft * predicted.conj()).real.sum(1)
            prior = (brightness - 1).square() / (2 * defocus.BRIGHTNESS_SD**2)
            wanted = (brightness.square() * power - 2 * brightness * overlap + prior).amin(0)
            torch.testing.assert_close(misfit[:, column], wanted, rtol=2e-4, atol=0.05)


def test_gain_is_found_in_the_transfer() -> None:
    s = stack(40)
    o = s.optics
    found = Optics.of(s.images, o.parameters, PIXEL, o.scale)
    torch.testing.assert_close(found.gain, o.gain, rtol=1e-5, atol=0)
    # shells beyond a band are not there to be seen
    inner = Optics.of(s.images.band(10), o.parameters, PIXEL, o.scale)
    torch.testing.assert_close(inner.gain[:11], o.gain[:11], rtol=1e-5, atol=0)
    assert (inner.gain[11:] == 0).all()


def test_a_shell_without_ctf_stays_without() -> None:
    s = stack(10)
    p = replace(s.optics.parameters, amplitude_contrast=torch.zeros(10), phase_shift_deg=torch.zeros(10))
    images = replace(s.images, transfer=replace(s.optics, parameters=p).transfer(s.images.half_plane))
    optics = Optics.of(images, p, PIXEL, s.optics.scale)
    assert optics.gain[0] == 0 and optics.gain.isfinite().all()
    with_defocus_(images, optics, torch.full((10,), 300.0))
    assert (images.transfer[:, 0] == 0).all() and images.transfer.isfinite().all()


def test_another_transfer_is_refused() -> None:
    """As when the images have been brought up to a new defocus or brightness, and the caller kept the old."""
    s = stack(40)
    o = s.optics
    for parameters_, scale in ((shifted(o.parameters, torch.full((40,), 150.0)), o.scale), (o.parameters, o.scale.flip(0))):
        with pytest.raises(ValueError, match="of its power differs"):
            Optics.of(s.images, parameters_, PIXEL, scale)


def test_transfer_in_place_is_a_fresh_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defocus, "BLOCK", 7)
    generator = torch.Generator().manual_seed(2)
    half_plane, p = HalfPlane.within(BOX), parameters(30, generator)
    noise_sd = 1 + torch.rand(BOX // 2 + 1, generator=generator)
    noise, scale = 0.5 + torch.rand(BOX // 2 + 1, generator=generator), 0.7 + 0.6 * torch.rand(30, generator=generator)
    calibration = Calibration(noise, scale)

    def made(p: CTFParameters) -> WorkingSet:
        transfer = ctf(p, half_plane, PIXEL) / noise_sd[half_plane.shell]
        images = WorkingSet(half_plane, torch.ones(30, len(half_plane)) + 0j, transfer, torch.ones(len(half_plane)))
        calibration.apply_(images)
        return images

    images, before = made(p), made(p)
    optics = Optics.of(images, p, PIXEL, calibration.scale)
    first, second = 500 * torch.randn(2, 30, generator=generator)
    pointer = images.transfer.data_ptr()
    optics = with_defocus_(images, optics, first)
    torch.testing.assert_close(images.transfer, made(shifted(p, first)).transfer, rtol=1e-5, atol=1e-5)
    optics = with_defocus_(images, optics, second - first)
    # single precision in a defocus that was added to twice
    torch.testing.assert_close(images.transfer, made(shifted(p, second)).transfer, rtol=0, atol=2e-4)
    torch.testing.assert_close(optics.parameters.defocus_u_angstrom, p.defocus_u_angstrom + second, rtol=0, atol=0.01)
    assert images.transfer.data_ptr() == pointer and torch.equal(images.image_ft, before.image_ft)
    assert (images.transfer - before.transfer).abs().max() > 0.1


def test_corrected_images_ask_for_no_more() -> None:
    s = stack(100, 0.5)
    found = s.fit(FLAT).offset_angstrom
    transfer = s.images.transfer.clone()
    images = replace(s.images, transfer=transfer)
    optics = with_defocus_(images, s.optics, found)
    again = refine_defocus(s.volume_ft, images, optics, s.pose, RANGE, FLAT).offset_angstrom
    assert rms(again) < 0.05 * rms(s.error)
    gone = (s.images.image_ft - project(s.volume_ft, transfer, images.half_plane, s.pose)).abs().square().mean()
    assert gone < 1.01


def test_shifted_leaves_astigmatism() -> None:
    p = parameters(6, torch.Generator().manual_seed(0))
    offset = torch.arange(6) * 100.0
    moved = shifted(p, offset)
    torch.testing.assert_close(moved.defocus_u_angstrom, p.defocus_u_angstrom + offset)
    torch.testing.assert_close(moved.defocus_v_angstrom, p.defocus_v_angstrom + offset)
    others = [f for f in p.__dataclass_fields__ if f not in ("defocus_u_angstrom", "defocus_v_angstrom")]
    assert all(torch.equal(getattr(moved, f), getattr(p, f)) for f in others)


def test_block_size_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    s = stack(50)
    whole = s.fit().offset_angstrom
    monkeypatch.setattr(defocus, "BLOCK", 7)
    torch.testing.assert_close(s.fit().offset_angstrom, whole, atol=1.0, rtol=0)


def test_images_do_not_see_each_other() -> None:
    s = stack(50)
    whole = s.fit().offset_angstrom
    order = torch.randperm(50, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(s.rows(order).fit().offset_angstrom, whole[order], atol=1.0, rtol=0)
    torch.testing.assert_close(s.rows(slice(20, 33)).fit().offset_angstrom, whole[20:33], atol=1.0, rtol=0)


def test_images_beyond_the_range_are_left_alone_and_counted() -> None:
    s = stack(60, 1.0, 300.0)
    inside = s.error.abs() < 450
    far = (s.error.abs() > 550) & (s.error.abs() < 900)
    some = inside | far
    found = s.rows(some).fit(FLAT, 500.0)
    assert 2 <= int(far.sum()) == found.at_limit
    assert (found.offset_angstrom[far[some]] == 0).all()
    assert (found.offset_angstrom - s.error[some])[inside[some]].abs().max() < 60


def test_prior_is_about_what_the_images_came_with() -> None:
    """Without a map there is nothing but the prior."""
    s = stack(12)
    nothing = volume_to_ft(torch.zeros(BOX, BOX, BOX))
    earlier = torch.linspace(-700, 700, 12)
    for given, wanted in ((None, torch.zeros(12)), (earlier, -earlier)):
        found = refine_defocus(nothing, s.images, s.optics, s.pose, RANGE, PRIOR_SD, given)
        torch.testing.assert_close(found.offset_angstrom, wanted, atol=0.5, rtol=0)


def test_vertex_of_the_parabola() -> None:
    grid = defocus.OffsetGrid(torch.linspace(-200, 200, 9), torch.zeros(1, 9))
    truth = torch.tensor([-149.0, -20.0, 0.0, 33.0, 148.0])
    misfit = 5 + 0.01 * (grid.offset_angstrom - truth[:, None]).square()
    torch.testing.assert_close(grid.lowest(misfit), truth, atol=1e-2, rtol=0)
    assert grid.lowest(0.01 * (grid.offset_angstrom - torch.tensor([[-230.0], [210.0]])).square()).isnan().all()
