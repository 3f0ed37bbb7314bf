"""Simulated stacks: reproducibility, SNR, and agreement between atoms and maps."""

import dataclasses

import pytest
import torch
from torch import Tensor

from ace_em.config import SimulationConfig
from ace_em.maths.fourier import radius_grid
from ace_em.maths.half_plane import HalfPlane
from ace_em.physics.ctf import CTFParameters, ctf
from ace_em.physics.pose import Pose
from ace_em.simulation.dataset import (
    Specimen,
    clean_images,
    sample_ctf,
    sample_poses,
    simulate_images,
    specimen_from_atoms,
    specimen_from_map,
)
from ace_em.simulation.structure import Atoms

CONFIG = SimulationConfig(n=230, box=32, pixel_size=4.0, resolution=16.0, shift_sd=6.0, snr_db=-10.0, seed=3)


def some_atoms() -> Atoms:
    position = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).clamp(-2, 2)
    return Atoms(position * torch.tensor([14.0, 10.0, 7.0]), torch.full((60,), 6.0, dtype=torch.float64))


def simulated(config: SimulationConfig) -> tuple[Specimen, Pose, CTFParameters, Tensor]:
    generator = torch.Generator().manual_seed(config.seed)
    specimen = specimen_from_atoms(some_atoms(), config)
    pose, parameters = sample_poses(config, generator), sample_ctf(config, generator)
    return specimen, pose, parameters, torch.cat(list(simulate_images(specimen, pose, parameters, config, generator)))


def test_same_seed_gives_the_same_tensors() -> None:
    _, pose, parameters, images = simulated(CONFIG)
    _, pose2, parameters2, images2 = simulated(CONFIG)
    assert images.shape == (230, 32, 32) and images.dtype == torch.float32
    assert torch.equal(images, images2)
    assert torch.equal(pose.rotation, pose2.rotation) and torch.equal(pose.shift_px, pose2.shift_px)
    for field in dataclasses.fields(parameters):
        assert torch.equal(getattr(parameters, field.name), getattr(parameters2, field.name))


def test_another_seed_changes_everything_random() -> None:
    _, pose, parameters, images = simulated(CONFIG)
    _, pose2, parameters2, images2 = simulated(dataclasses.replace(CONFIG, seed=4))
    for a, b in (
        (pose.rotation, pose2.rotation),
        (pose.shift_px, pose2.shift_px),
        (parameters.defocus_u_angstrom, parameters2.defocus_u_angstrom),
        (parameters.defocus_angle_deg, parameters2.defocus_angle_deg),
        (images, images2),
    ):
        assert (a != b).float().mean() > 0.9


def test_global_random_state_is_not_used() -> None:
    before = torch.random.get_rng_state()
    simulated(CONFIG)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 10.0])
def test_snr_is_the_one_asked_for(snr_db: float) -> None:
    """From the correlation with the noise-free images, which is independent of scale: rho^2 = S / (S + N)."""
    config = dataclasses.replace(CONFIG, snr_db=snr_db)
    specimen, pose, parameters, images = simulated(config)
    clean = clean_images(specimen, pose, parameters, config)
    clean = clean - clean.mean((1, 2), keepdim=True)
    scale = (images * clean).sum() / clean.square().sum()
    noise = images - images.mean((1, 2), keepdim=True) - scale * clean
    measured = 10 * torch.log10((scale * clean).var(dim=(1, 2)).mean() / noise.var(dim=(1, 2)).mean())
    assert measured.item() == pytest.approx(snr_db, abs=0.3)
    # the stack is in units of the noise
    assert noise.std().item() == pytest.approx(1, abs=0.01)


def test_noise_free_images_are_the_clean_ones() -> None:
    config = dataclasses.replace(CONFIG, snr_db=200.0)
    specimen, pose, parameters, images = simulated(config)
    clean = clean_images(specimen, pose, parameters, config)
    scale = (images * clean).sum() / clean.square().sum()
    torch.testing.assert_close(images, scale * clean, atol=1e-4, rtol=0)
    assert images.var(dim=(1, 2)).mean().item() == pytest.approx(1, rel=0.05)


def test_blocks_report_progress_and_leave_nothing_out() -> None:
    generator = torch.Generator().manual_seed(0)
    specimen = specimen_from_atoms(some_atoms(), CONFIG)
    done: list[int] = []
    blocks = list(
        simulate_images(specimen, sample_poses(CONFIG, generator), sample_ctf(CONFIG, generator), CONFIG, generator, done.append)
    )
    assert [len(b) for b in blocks] == [100, 100, 30] and done == [100, 200, 230]


@pytest.mark.parametrize("box", [32, 33])
@pytest.mark.parametrize("with_ctf", [False, True])
def test_atoms_and_map_give_the_same_images(box: int, with_ctf: bool) -> None:
    config = dataclasses.replace(CONFIG, box=box, n=20)
    generator = torch.Generator().manual_seed(1)
    pose, parameters = sample_poses(config, generator), sample_ctf(config, generator)
    from_atoms = specimen_from_atoms(some_atoms(), config)
    from_map = Specimen(None, from_atoms.volume)
    transfer = parameters if with_ctf else None
    a, b = clean_images(from_atoms, pose, transfer, config), clean_images(from_map, pose, transfer, config)
    assert (a - b).norm() / a.norm() < 0.02
    turned = clean_images(from_map, Pose(pose.rotation.mT.contiguous(), pose.shift_px), transfer, config)
    assert (a - turned).norm() / a.norm() > 0.3


@pytest.mark.parametrize("from_map", [False, True])
def test_clean_image_is_moved_by_its_shift(from_map: bool) -> None:
    specimen = specimen_from_atoms(some_atoms(), CONFIG)
    specimen = Specimen(None, specimen.volume) if from_map else specimen
    rotation = sample_poses(CONFIG, torch.Generator().manual_seed(1)).rotation[:1].expand(2, 3, 3)
    at_centre, moved = clean_images(specimen, Pose(rotation, torch.tensor([[0.0, 0.0], [2.0, -3.0]])), None, CONFIG)
    torch.testing.assert_close(moved, at_centre.roll((2, -3), (0, 1)), atol=1e-4 * at_centre.max().item(), rtol=0)


def test_clean_image_has_its_ctf() -> None:
    config = dataclasses.replace(CONFIG, n=5)
    generator = torch.Generator().manual_seed(1)
    pose, parameters = sample_poses(config, generator), sample_ctf(config, generator)
    specimen, half_plane = specimen_from_atoms(some_atoms(), config), HalfPlane.within(32)
    plain = half_plane.from_image(clean_images(specimen, pose, None, config))
    wanted = plain * ctf(parameters, half_plane, config.pixel_size)
    made = half_plane.from_image(clean_images(specimen, pose, parameters, config))
    torch.testing.assert_close(made, wanted, atol=1e-4 * wanted.abs().max().item(), rtol=0)


def test_map_is_resampled_to_the_images_box_and_pixel() -> None:
    """The same atoms as a map with finer voxels in another box."""
    coarse = specimen_from_atoms(some_atoms(), CONFIG)
    fine_config = dataclasses.replace(CONFIG, box=72, pixel_size=2.0)
    fine = specimen_from_atoms(some_atoms(), fine_config)
    for volume, pixel in ((fine.volume, 2.0), (coarse.volume, 4.0)):
        resampled = specimen_from_map(volume, pixel, CONFIG)
        assert resampled.atoms is None and resampled.volume.shape == (32, 32, 32)
        # resampling keeps values per voxel, not sums, so density per voxel changes with the voxel volume
        scale = (4.0 / pixel) ** 3
        torch.testing.assert_close(resampled.volume * scale, coarse.volume, atol=0.02 * coarse.volume.max().item(), rtol=0)


@pytest.mark.parametrize(("n", "pixel", "wanted"), [(100, 1.0, 4.25), (64, 1.77, 8.5), (33, 3.1, 4.0)])
def test_a_resampled_map_has_the_pixel_size_asked_for(n: int, pixel: float, wanted: float) -> None:
    """The radius of gyration of a ball in Angstrom is unchanged."""

    def gyration(volume: torch.Tensor, pixel: float) -> float:
        square = radius_grid(volume.shape[-1], 3).square()
        return pixel * ((volume * square).sum() / volume.sum()).sqrt().item()

    ball = torch.exp(-(radius_grid(n, 3) * pixel / 16).square() / 2)
    resampled = specimen_from_map(ball, pixel, dataclasses.replace(CONFIG, box=32, pixel_size=wanted)).volume
    assert gyration(resampled, wanted) == pytest.approx(gyration(ball, pixel), rel=5e-3)


def test_distributions() -> None:
    config = dataclasses.replace(CONFIG, n=20_000)
    generator = torch.Generator().manual_seed(2)
    pose, parameters = sample_poses(config, generator), sample_ctf(config, generator)
    torch.testing.assert_close(pose.shift_px.std(0), torch.full((2,), 1.5), atol=0.03, rtol=0)
    assert pose.shift_px.mean(0).abs().max() < 0.05
    torch.testing.assert_close(pose.rotation.mean(0), torch.zeros(3, 3), atol=0.02, rtol=0)
    torch.testing.assert_close(pose.rotation.square().mean(0), torch.full((3, 3), 1 / 3), atol=0.01, rtol=0)
    u, v = parameters.defocus_u_angstrom, parameters.defocus_v_angstrom
    assert (u >= v).all() and ((u + v) / 2).median().item() == pytest.approx(config.defocus, rel=0.01)
    assert ((u + v) / 2).log().std().item() == pytest.approx(config.defocus_spread, rel=0.03)
    # U - V is the absolute value of a normal deviate with that standard deviation
    assert (u - v).square().mean().sqrt().item() == pytest.approx(config.astigmatism, rel=0.03)
    assert 0 <= parameters.defocus_angle_deg.min() < 1 and 179 < parameters.defocus_angle_deg.max() <= 180
    for field, value in (
        ("voltage_kv", config.voltage),
        ("amplitude_contrast", config.amplitude_contrast),
        ("phase_shift_deg", 0.0),
    ):
        assert (getattr(parameters, field) == value).all()
