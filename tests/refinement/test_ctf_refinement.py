"""Per-particle defocus refinement: accuracy compared with the noise limit, priors, and unchanged images."""

from dataclasses import dataclass, replace

import pytest
import roma
import torch
from torch import Tensor

from ace_em.data.coefficients import InMemory
from ace_em.data.particle_stack import ParticleStack
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.slices import VolumeFT, volume_to_ft
from ace_em.physics.ctf import CTFParameters, ctf
from ace_em.physics.imaging import project
from ace_em.physics.noise import NoiseModel
from ace_em.physics.pose import Pose
from ace_em.refinement import ctf_refinement
from ace_em.refinement.ctf_refinement import DefocusFit, refine_defocus
from ace_em.simulation.density import density_map
from ace_em.simulation.structure import Atoms
from stacks import stack_of

BOX, PIXEL = 36, 2.5
RANGE, PRIOR_SD = 1600.0, 400.0
FLAT = 1e5
"""A flat prior."""


@dataclass(frozen=True)
class Case:
    """Images simulated with a defocus that is larger by ``error`` (N,) than in their stack."""

    volume_ft: VolumeFT
    stack: ParticleStack
    clean_ft: Tensor
    pose: Pose
    error: Tensor

    def rows(self, rows: Tensor | slice) -> "Case":
        return Case(self.volume_ft, self.stack.subset(rows), self.clean_ft[rows], self.pose[rows], self.error[rows])

    @property
    def without_particles(self) -> "Case":
        """The same noise without particles."""
        noise = self.stack.store.read(self.stack.row, len(self.stack.half_plane)) - self.clean_ft
        return replace(self, stack=replace(self.stack, store=InMemory(noise), row=torch.arange(len(noise))))

    def fit(self, prior_sd: float = PRIOR_SD, limit: float = RANGE) -> DefocusFit:
        return refine_defocus(self.volume_ft, self.stack, self.pose, limit, prior_sd)

    def effective_ctf(self, offset: Tensor) -> Tensor:
        """Effective CTF at the defocus of the stack plus an offset, computed directly."""
        return self.stack.with_ctf(self.stack.ctf.defocused(offset)).batch(slice(None)).effective_ctf

    def crlb_sd(self) -> Tensor:
        """Cramer-Rao bound (N,) on the standard deviation: noise has variance 1/2 in the real and the imaginary part."""
        slope = (self.effective_ctf(self.error + 5) - self.effective_ctf(self.error - 5)) / 10
        by_offset = project(self.volume_ft, slope, self.stack.half_plane, self.pose)
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


def case(n: int, brightness: float = 0.2, error_sd: float = 400.0, seed: int = 0) -> Case:
    """Noise of a gain that falls off; at a brightness of 0.2 a coefficient's signal has a third of its power, most of it at low
    frequencies."""
    generator = torch.Generator().manual_seed(seed)
    position = torch.randn(60, 3, generator=torch.Generator().manual_seed(17)) * torch.tensor([14.0, 12.0, 9.0])
    volume_ft = volume_to_ft(density_map(Atoms(position, torch.full((60,), brightness)), BOX, PIXEL, 6.0))
    half_plane = HalfPlane.within(BOX)
    pose = Pose(roma.random_rotmat(n, generator=generator), torch.randn(n, 2, generator=generator))
    scale = (1 + 0.15 * torch.randn(n, generator=generator)).clamp(0.5, 1.5)
    sd = 1 + torch.exp(-torch.arange(BOX // 2 + 1) / 6)
    noise_model = NoiseModel(sd.square()[None], torch.ones(1, BOX // 2 + 1))
    true = parameters(n, generator)
    error = error_sd * torch.randn(n, generator=generator)
    clean = project(volume_ft, ctf(true, half_plane, PIXEL) * scale[:, None], half_plane, pose)
    noise = torch.view_as_complex(torch.randn(*clean.shape, 2, generator=generator) * 0.5**0.5) * sd[half_plane.shell]
    stack = stack_of(half_plane, clean + noise, true.defocused(-error), PIXEL, noise_model).with_intensity_scale(scale)
    return Case(volume_ft, stack, clean, pose, error)


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


@pytest.mark.parametrize(("brightness", "error_sd", "gained"), [(0.2, 300.0, 3.5), (0.2, 500.0, 5.0), (0.5, 400.0, 10.0)])
def test_defocus_is_recovered_to_the_cramer_rao_bound(brightness: float, error_sd: float, gained: float) -> None:
    s = case(300, brightness, error_sd)
    found = s.fit(FLAT, 2000.0)
    left = found.offset_angstrom - s.error
    assert found.at_limit == 0
    assert rms(left) < rms(s.error) / gained
    # slightly above the bound, because the scale is fitted too and by the parabola; below it would be suspicious
    assert 0.85 < rms(left / s.crlb_sd()) < 1.25
    assert abs(left.mean().item()) < 4 * rms(left) / 300**0.5


def test_prior_helps_faint_images() -> None:
    s = case(300, 0.05)
    bound = s.crlb_sd()
    posterior_sd = (bound**-2 + PRIOR_SD**-2).rsqrt()
    left = s.fit().offset_angstrom - s.error
    assert rms(s.fit(FLAT).offset_angstrom - s.error) > 1.2 * rms(left)
    assert 0.85 < rms(left / posterior_sd) < 1.25


def test_prior_is_weighted_by_its_variance() -> None:
    """For small errors the misfit is a parabola, and the posterior mean shrinks the estimate by a known factor."""
    s = case(300, 0.5, 30.0)
    free, bound, prior_sd = s.fit(FLAT).offset_angstrom, s.crlb_sd(), 25.0
    shrunk = free * bound**-2 / (bound**-2 + prior_sd**-2)
    share = (s.fit(prior_sd).offset_angstrom * shrunk).sum() / shrunk.square().sum()
    assert share.item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("brightness", [0.05, 0.2, 1.0])
def test_noise_alone_stays_near_zero(brightness: float) -> None:
    """Also against a strong map that the images do not show."""
    s = case(300, brightness)
    s = s.without_particles
    assert rms(s.fit().offset_angstrom) < 0.4 * PRIOR_SD
    assert rms(s.fit(FLAT).offset_angstrom) > PRIOR_SD


def test_misfit_matches_the_ctf_computed_directly() -> None:
    s = case(20, 1.0)
    half_plane = s.stack.half_plane
    for kv in (200.0, 300.0):
        mine = s.rows(torch.nonzero(s.stack.ctf.voltage_kv == kv)[:, 0])
        grid, batch = ctf_refinement._grid(half_plane, torch.tensor(kv), PIXEL, RANGE), mine.stack.batch(slice(None))
        misfit = ctf_refinement._misfit(s.volume_ft, batch, mine.pose, grid)
        assert grid.phase[-1].diff().max() <= 0.7
        for column in (0, 3, len(grid.offset_angstrom) // 2, -1):
            offset = grid.offset_angstrom[column].expand(len(mine.pose))
            predicted = project(s.volume_ft, mine.effective_ctf(offset), half_plane, mine.pose)
            scale = torch.linspace(-0.5, 2, 2001)[:, None]
            power = predicted.abs().square().sum(1)
            overlap = (batch.image_ft * predicted.conj()).real.sum(1)
            prior = (scale - 1).square() / (2 * ctf_refinement.SCALE_SD**2)
            wanted = (scale.square() * power - 2 * scale * overlap + prior).amin(0)
            torch.testing.assert_close(misfit[:, column], wanted, rtol=2e-4, atol=0.05)


def test_corrected_images_need_no_further_offset() -> None:
    s = case(100, 0.5)
    found = s.fit(FLAT).offset_angstrom
    corrected = s.stack.with_ctf(s.stack.ctf.defocused(found))
    again = refine_defocus(s.volume_ft, corrected, s.pose, RANGE, FLAT).offset_angstrom
    assert rms(again) < 0.05 * rms(s.error)
    batch = corrected.batch(slice(None))
    gone = (batch.image_ft - project(s.volume_ft, batch.effective_ctf, batch.half_plane, s.pose)).abs().square().mean()
    assert gone < 1.01


def test_an_offset_leaves_the_astigmatism() -> None:
    p = parameters(6, torch.Generator().manual_seed(0))
    offset = torch.arange(6) * 100.0
    moved = p.defocused(offset)
    torch.testing.assert_close(moved.defocus_u_angstrom, p.defocus_u_angstrom + offset)
    torch.testing.assert_close(moved.defocus_v_angstrom, p.defocus_v_angstrom + offset)
    others = [f for f in p.__dataclass_fields__ if f not in ("defocus_u_angstrom", "defocus_v_angstrom")]
    assert all(torch.equal(getattr(moved, f), getattr(p, f)) for f in others)


def test_block_size_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    s = case(50)
    whole = s.fit().offset_angstrom
    monkeypatch.setattr(ctf_refinement, "BLOCK", 7)
    torch.testing.assert_close(s.fit().offset_angstrom, whole, atol=1.0, rtol=0)


def test_images_are_independent() -> None:
    s = case(50)
    whole = s.fit().offset_angstrom
    order = torch.randperm(50, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(s.rows(order).fit().offset_angstrom, whole[order], atol=1.0, rtol=0)
    torch.testing.assert_close(s.rows(slice(20, 33)).fit().offset_angstrom, whole[20:33], atol=1.0, rtol=0)


def test_images_beyond_the_range_are_unchanged_and_counted() -> None:
    s = case(60, 1.0, 300.0)
    inside = s.error.abs() < 450
    far = (s.error.abs() > 550) & (s.error.abs() < 900)
    some = inside | far
    found = s.rows(some).fit(FLAT, 500.0)
    assert 2 <= int(far.sum()) == found.at_limit
    assert (found.offset_angstrom[far[some]] == 0).all()
    assert (found.offset_angstrom - s.error[some])[inside[some]].abs().max() < 60


def test_prior_is_centred_on_the_input_defocus() -> None:
    """With a zero map only the prior remains."""
    s = case(12)
    nothing = volume_to_ft(torch.zeros(BOX, BOX, BOX))
    earlier = torch.linspace(-700, 700, 12)
    for given, wanted in ((None, torch.zeros(12)), (earlier, -earlier)):
        found = refine_defocus(nothing, s.stack, s.pose, RANGE, PRIOR_SD, given)
        torch.testing.assert_close(found.offset_angstrom, wanted, atol=0.5, rtol=0)


def test_vertex_of_the_parabola() -> None:
    grid = ctf_refinement.OffsetGrid(torch.linspace(-200, 200, 9), torch.zeros(1, 9))
    truth = torch.tensor([-149.0, -20.0, 0.0, 33.0, 148.0])
    misfit = 5 + 0.01 * (grid.offset_angstrom - truth[:, None]).square()
    torch.testing.assert_close(grid.lowest(misfit), truth, atol=1e-2, rtol=0)
    assert grid.lowest(0.01 * (grid.offset_angstrom - torch.tensor([[-230.0], [210.0]])).square()).isnan().all()
