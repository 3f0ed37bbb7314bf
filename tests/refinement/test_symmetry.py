"""Symmetric maps: sums over the group computed in two ways, recovery of axes, and comparison with RELION."""

import functools
import math
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import roma
import torch
from torch import Tensor

from ace_em.io.mrc import StackWriter, read_volume
from ace_em.io.star import ParticleTable, write_star
from ace_em.maths.fourier import radius_grid
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.masks import soft_ball
from ace_em.maths.point_group import point_group
from ace_em.maths.slices import central_slices, volume_to_ft
from ace_em.metrics.alignment import Frame, apply_frame, turn_volume
from ace_em.metrics.fsc import fourier_shell_correlation
from ace_em.physics.imaging import shift_phase
from ace_em.physics.pose import Pose, rotmat_to_relion_angles
from ace_em.refinement import symmetry
from ace_em.refinement.backprojection import Accumulator, accumulate, wiener
from ace_em.refinement.symmetry import SymmetryAxes, find_axes, symmetrise
from ace_em.simulation.density import density_map, project_atoms
from ace_em.simulation.structure import Atoms
from stacks import FixedStack
from volumes import symmetrise_volume

GROUPS = ["C2", "C7", "D2", "D7", "T", "O", pytest.param("I", marks=pytest.mark.slow)]
MOVED_PX = torch.tensor([1.7, -2.2, 0.9], dtype=torch.float64)


@dataclass(frozen=True)
class Symmetric:
    """A map with the group in RELION's convention, and the same map rotated by ``rotation`` and shifted by MOVED_PX."""

    atoms: Atoms
    group: Tensor
    volume: Tensor
    rotation: Tensor
    hidden: Tensor


def make_symmetric(name: str, box: int = 32, seed: int = 0, n_atoms: int = 120) -> Symmetric:
    generator = torch.Generator().manual_seed(seed)
    group = point_group(name)
    n_unit = max(3, n_atoms // len(group))
    unit = torch.randn(n_unit, 3, generator=generator, dtype=torch.float64).clamp(-1.6, 1.6)
    unit = unit * torch.tensor([0.13, 0.12, 0.10]) * box
    position = torch.einsum("gij,nj->gni", group, unit).reshape(-1, 3)
    weight = (0.5 + torch.rand(n_unit, generator=generator, dtype=torch.float64)).repeat(len(group))
    rotation = roma.random_rotmat(generator=generator, dtype=torch.float64)
    atoms, hidden = Atoms(position, weight), Atoms(position @ rotation.T + MOVED_PX, weight)
    return Symmetric(atoms, group, density_map(atoms, box, 1.0, 4.0), rotation, density_map(hidden, box, 1.0, 4.0))


@functools.cache
def found_axes(name: str) -> tuple[Symmetric, SymmetryAxes]:
    case = make_symmetric(name)
    return case, find_axes(case.hidden, case.group, 9, random_generator())


def random_generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    return ((a * b).sum() / (a.norm() * b.norm())).item()


def operator_error_deg(case: Symmetric, frame: Frame) -> float:
    """Largest distance of the operators of the turned map, known from its atoms, from the group (modulo the normaliser)."""
    turn = frame.rotation.double() @ case.rotation
    apart = roma.rotmat_geodesic_distance((turn @ case.group @ turn.mT)[:, None], case.group)
    return torch.rad2deg(apart.amin(1).max()).item()


def origin_error_px(case: Symmetric, frame: Frame) -> float:
    """Distance of the centre from the true one, ignoring the undetermined coordinate (along z for Cn)."""
    difference = frame.rotation.double() @ MOVED_PX - frame.origin_px.double()
    return (difference - case.group.mean(0) @ difference).norm().item()


@pytest.mark.parametrize("name", GROUPS)
def test_axes_and_centre_are_found(name: str) -> None:
    case, found = found_axes(name)
    assert operator_error_deg(case, found.frame) < 0.2
    assert origin_error_px(case, found.frame) < 0.1
    assert found.correlation > 0.99
    # the map itself is symmetric about RELION's axes and origin
    turned = turn_volume(case.hidden, found.frame)
    assert correlation(turned, symmetrise_volume(turned, case.group)) > 0.99
    assert correlation(case.hidden, symmetrise_volume(case.hidden, case.group)) < 0.97


def test_the_axes_of_a_hollow_particle_are_found_in_noise() -> None:
    """A spherical shell with six times the amplitude of the features on it, and noise: the shell fits any axes."""
    box, generator, group = 32, random_generator(0), point_group("O")
    direction = torch.nn.functional.normalize(torch.randn(6, 3, generator=generator, dtype=torch.float64), dim=-1)
    unit = direction * (0.28 + 0.06 * torch.rand(6, 1, generator=generator, dtype=torch.float64)) * box
    position = torch.einsum("gij,nj->gni", group, unit).reshape(-1, 3)
    rotation = roma.random_rotmat(generator=generator, dtype=torch.float64)
    atoms = Atoms(position @ rotation.T, torch.ones(len(position), dtype=torch.float64))
    volume = density_map(atoms, box, 1.0, 4.0)
    shell = torch.exp(-(radius_grid(box, 3) - 0.3 * box).square() / 4)
    lumps = soft_ball(box, 0.42 * box) * torch.randn(box, box, box, generator=generator)
    noisy = volume + volume.norm() * (6 * shell / shell.norm() + 5 * lumps / lumps.norm())
    found = find_axes(noisy, group, 8, random_generator(0))
    assert operator_error_deg(Symmetric(atoms, group, volume, rotation, noisy), found.frame) < 8


def test_frame_scores_match_direct_correlation() -> None:
    """The tabulated scores, for both signs of an axis, against direct correlation with the rotated copies."""
    case = make_symmetric("D3")
    probe = symmetry._Probe.draw(volume_to_ft(case.hidden), 6, 1000, random_generator())
    operators, centre_px = case.group[1:].float(), MOVED_PX.float()
    frames, score = symmetry._ranked_frames(probe, case.group.float(), operators, centre_px, random_generator())
    rows = torch.randperm(len(frames), generator=random_generator())[:200]
    copies = probe.read(frames[rows].mT[:, None] @ operators @ frames[rows][:, None], centre_px)
    read = (copies * probe.read(torch.eye(3), centre_px).conj()).real.sum(-1).mean(-1)
    assert torch.corrcoef(torch.stack([score[rows], read]))[0, 1] > 0.9
    # one frame per orbit, and the best is near the truth
    assert len(frames) * 6 == pytest.approx(8 * math.pi**2 / math.radians(symmetry.FRAME_SPACING_DEG) ** 3, rel=0.1)
    assert operator_error_deg(case, Frame(frames[score.argmax()], False, torch.zeros(3))) < 8


def test_frame_applies_to_poses() -> None:
    """Images of the rotated map at its poses equal images of the aligned map at the transformed poses."""
    case, found = found_axes("D2")
    frame = found.frame
    half_plane = HalfPlane.within(32, 10)
    pose = Pose(roma.random_rotmat(6, generator=random_generator()), torch.randn(6, 2, generator=random_generator()))

    def images(volume: Tensor, pose: Pose) -> Tensor:
        return central_slices(volume_to_ft(volume), half_plane, pose.rotation) * shift_phase(half_plane, pose.shift_px)

    carried, turned = apply_frame(pose, frame), turn_volume(case.hidden, frame)
    one, other = images(case.hidden, pose), images(symmetrise_volume(turned, case.group), carried)
    assert (one - other).norm() < 0.03 * one.norm()
    # any copy will do
    copied = Pose(case.group[3].float() @ carried.rotation, carried.shift_px)
    assert (images(turned, copied) - one).norm() < 0.03 * one.norm()
    # but not with the inverse rotation or the negative origin
    for wrong in (Frame(frame.rotation.T, False, frame.origin_px), Frame(frame.rotation, False, -frame.origin_px)):
        assert (images(turned, apply_frame(pose, wrong)) - one).norm() > 0.2 * one.norm()


@pytest.mark.parametrize("name", ["C7", "O"])
def test_axes_are_found_in_noise(name: str) -> None:
    """Equal noise and signal variance per voxel."""
    case = make_symmetric(name, seed=4)
    noise = torch.randn(case.hidden.shape, generator=random_generator(5)) * case.hidden.std()
    found = find_axes(case.hidden + noise, case.group, 8, random_generator())
    assert operator_error_deg(case, found.frame) < 1.5 and origin_error_px(case, found.frame) < 0.2
    # the correlation is that of two maps with independent noise: signal power over total power per shell
    assert 0.8 < found.correlation < 0.98


def test_correlation_is_low_for_a_wrong_group() -> None:
    asymmetric = make_symmetric("C1").hidden
    assert find_axes(asymmetric, point_group("D2"), 9, random_generator()).correlation < 0.5
    # a subgroup has lower correlation, although its own operators are perfect
    c2, _ = found_axes("C2")
    assert find_axes(c2.hidden, point_group("D2"), 9, random_generator()).correlation < 0.75


def test_only_the_given_generator_is_used() -> None:
    case, found = found_axes("C7")
    again, other = (find_axes(case.hidden, case.group, 9, random_generator(seed)) for seed in (1, 2))
    assert torch.equal(found.frame.rotation, again.frame.rotation) and found.correlation == again.correlation
    assert not torch.equal(found.frame.rotation, other.frame.rotation)


def test_c1_needs_no_search() -> None:
    found = find_axes(make_symmetric("C1").hidden, point_group("C1"), 10, random_generator())
    assert torch.equal(found.frame.rotation, torch.eye(3)) and not found.frame.origin_px.any() and not found.frame.mirrored


@pytest.mark.parametrize("box", [24, 25])
@pytest.mark.parametrize("name", ["C7", "T"])
def test_symmetrised_map_is_the_mean_over_the_group(name: str, box: int) -> None:
    """For the atoms of one asymmetric unit it is the full map divided by the number of units."""
    case = make_symmetric(name, box)
    n_unit = len(case.atoms) // len(case.group)
    unit = Atoms(case.atoms.position_angstrom[:n_unit], case.atoms.weight[:n_unit] * len(case.group))
    mean = symmetrise_volume(density_map(unit, box, 1.0, 4.0), case.group)
    inside = radius_grid(box, 3) < 0.45 * box
    assert ((mean - case.volume)[inside].norm() / case.volume[inside].norm()) < 0.05
    assert correlation(density_map(unit, box, 1.0, 4.0), case.volume) < 0.8


def test_blocks_do_not_change_the_sums(particle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    p, group = particle(20), point_group("D3")
    inserted = accumulate(p.images, p.pose)
    whole, mean = symmetrise(inserted, group), symmetrise_volume(p.volume, group)
    monkeypatch.setattr(symmetry, "BLOCK", 200)
    torch.testing.assert_close(symmetrise(inserted, group).grid, whole.grid)
    torch.testing.assert_close(symmetrise_volume(p.volume, group), mean)


@pytest.mark.parametrize("box", [20, 21])
@pytest.mark.parametrize("name", ["C7", "D2", "T"])
def test_sum_is_that_of_inserting_all_copies(particle: Any, name: str, box: int) -> None:
    p, group = particle(150, box=box, noise=1.0), point_group(name)
    one = symmetrise(accumulate(p.images, p.pose), group)
    copies = [Pose(g.float() @ p.pose.rotation, p.pose.shift_px) for g in group]
    other = sum((accumulate(p.images, pose) for pose in copies[1:]), accumulate(p.images, copies[0]))
    assert one.box == box and one.grid.shape == other.grid.shape
    # the same squared CTF per shell, summed and not averaged
    inside = radius_grid(one.grid.shape[1], 3)[..., one.grid.shape[1] // 2 :] < one.grid.shape[1] * 0.45
    assert (one.grid[2][inside].sum() / other.grid[2][inside].sum()).item() == pytest.approx(1, abs=0.01)
    ssnr = torch.full((box // 2 + 1,), 20.0)
    maps = [wiener(a, ssnr) * p.mask for a in (one, other)]
    assert fourier_shell_correlation(*maps)[1 : int(0.8 * box / 2)].min() > 0.98
    assert (maps[0] * maps[1]).sum() / maps[1].square().sum() == pytest.approx(1, abs=0.07)
    # but not with the inverse operators, nor without symmetry
    plain = wiener(accumulate(p.images, p.pose), ssnr) * p.mask
    assert fourier_shell_correlation(plain, maps[1])[4 : box // 3].mean() < 0.8


def test_group_of_one_changes_nothing(particle: Any) -> None:
    p = particle(20)
    inserted = accumulate(p.images, p.pose)
    assert symmetrise(inserted, point_group("C1")) is inserted


def test_the_identity_term_is_exact() -> None:
    """Interpolation changes random numbers; subtracting the terms of the other operators leaves the old grid exactly."""
    box, size = 12, 24
    grid = torch.randn(3, size + 1, size + 1, size // 2 + 1, generator=random_generator())
    group = point_group("C3")
    both, other = symmetrise(Accumulator(grid, box), group), symmetrise(Accumulator(grid, box), torch.cat([group, group[1:]]))
    radius = radius_grid(size + 1, 3)[..., size // 2 :]
    inside = radius <= size / 2
    torch.testing.assert_close((2 * both.grid - other.grid)[:, inside], grid[:, inside], atol=1e-5, rtol=0)
    assert not both.grid[:, ~inside].any()


@pytest.mark.parametrize("name", ["C2", "D2", "O"])
def test_symmetric_images_are_only_weighted_more(particle: Callable[..., Any], name: str) -> None:
    case = make_symmetric(name, box=20)
    half_plane = HalfPlane.within(20)
    pose = Pose(roma.random_rotmat(700, generator=random_generator()), torch.zeros(700, 2))
    image_ft = central_slices(volume_to_ft(case.volume), half_plane, pose.rotation)
    images = FixedStack.of(half_plane, image_ft, torch.ones_like(image_ft.real), 0.0)
    inserted = accumulate(images, pose)
    added = symmetrise(inserted, case.group)
    band = radius_grid(41, 3)[..., 20:] < 16
    for channel in (0, 1, 2):
        one, other = inserted.grid[channel][band] * len(case.group), added.grid[channel][band]
        assert (one * other).sum() / one.square().sum() == pytest.approx(1, abs=0.1)
    ssnr = torch.full((11,), 100.0)
    assert fourier_shell_correlation(wiener(inserted, ssnr), wiener(added, ssnr))[1:9].min() > 0.99


@pytest.mark.relion
@pytest.mark.parametrize("name", ["D2", "C7", "T"])
def test_relion_reconstructs_the_same_symmetric_map(name: str, tmp_path: Path) -> None:
    """Few images, each inserted at one of its poses: without symmetry neither map would be complete."""
    box, n = 32, 24
    case = make_symmetric(name, box)
    pose = Pose(roma.random_rotmat(n, generator=random_generator()), torch.zeros(n, 2))
    half_plane = HalfPlane.within(box)
    image_ft = half_plane.gather(project_atoms(case.atoms, pose.rotation, box, 1.0, 4.0))
    with StackWriter(tmp_path / "stack.mrcs", (n, box, box), 1.0) as writer:
        writer.write(half_plane.to_image(image_ft).numpy())
    angles = rotmat_to_relion_angles(pose.rotation.double())
    optics = {"rlnOpticsGroup": 1, "rlnImagePixelSize": 1.0, "rlnImageSize": box, "rlnImageDimensionality": 2}
    optics |= {"rlnVoltage": 300.0, "rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1}
    particles = {"rlnImageName": [f"{i + 1:06d}@stack.mrcs" for i in range(n)], "rlnOpticsGroup": 1}
    particles |= {f"rlnAngle{a}": angles[:, i].numpy() for i, a in enumerate(("Rot", "Tilt", "Psi"))}
    star = tmp_path / "particles.star"
    write_star(star, ParticleTable(star, pd.DataFrame([optics]).astype(str), pd.DataFrame(particles).astype(str)))
    command = ["relion_reconstruct", "--i", "particles.star", "--o", "map.mrc", "--sym", name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = torch.tensor(read_volume(tmp_path / "map.mrc")[0])
    images = FixedStack.of(half_plane, image_ft, torch.ones_like(image_ft.real), 0.0)
    inserted = accumulate(images, pose)
    ssnr = torch.full((box // 2 + 1,), 1000.0)
    ball = (radius_grid(box, 3) < 0.45 * box).float()
    last = math.floor(0.7 * box / 2)
    fsc = fourier_shell_correlation(wiener(symmetrise(inserted, case.group), ssnr) * ball, theirs * ball)
    assert fsc[1 : last + 1].min() > 0.95, fsc
    # without symmetry they differ
    plain = fourier_shell_correlation(wiener(inserted, ssnr) * ball, theirs * ball)
    assert plain[1 : last + 1].min() < fsc[1 : last + 1].min() - 0.05
