"""What is done to the maps and poses at the end: the other hand, grey values, the mask."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import roma
import torch
from torch import Tensor

from ace_em.maths.fourier import radius_grid
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.point_group import mirrored_axes, point_group
from ace_em.maths.slices import volume_to_ft
from ace_em.physics.image_content import Content
from ace_em.physics.imaging import project
from ace_em.physics.pose import Pose
from ace_em.refinement.half_sets import change_box
from ace_em.run.folder import RunFolder
from ace_em.run.plan import Plan
from ace_em.run.reporter import RecordFile, Reporter
from ace_em.run.results import MAPS, Maps, mask_of, reflect, report_content
from ace_em.simulation.density import density_map
from ace_em.simulation.structure import Atoms
from volumes import symmetrise_volume


def lumps(box: int, seed: int) -> Tensor:
    """A particle of no symmetry, all of it well inside the box."""
    generator = torch.Generator().manual_seed(seed)
    position = torch.randn(20, 3, generator=generator).clamp(-1.5, 1.5) * torch.tensor([0.17, 0.15, 0.13]) * box
    return density_map(Atoms(position, torch.rand(20, generator=generator) - 0.5), box, 1.0, 4.0)


def test_images_without_the_particle_are_reported(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    reporter = Reporter()
    reporter.records = RecordFile(tmp_path / "metrics.jsonl")
    report_content(Content(*torch.tensor([[1.0, 0, 0]] * 7 + [[0, 1.0, 0]] * 2 + [[0, 0, 1.0]]).T), reporter)
    report_content(Content.of_particles(10, torch.ones(1)), reporter)
    said = [line for text in capsys.readouterr() for line in text.splitlines() if "particle" in line]
    assert len(said) == 1 and said[0].endswith("30% of the images show no particle: 20% noise alone, 10% something else")
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["particle"], r["noise"], r["other"]) for r in records] == [(0.7, 0.2, 0.1), (1.0, 0.0, 0.0)]


NO_POSE = Pose(torch.eye(3)[None], torch.zeros(1, 2))


def maps_of(box: int, group: Tensor | None = None, pose: Pose = NO_POSE) -> Maps:
    maps = [lumps(box, seed) for seed in range(len(MAPS))]
    maps = maps if group is None else [symmetrise_volume(volume, group) for volume in maps]
    return Maps(*maps, pose)


def likeness(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


@pytest.mark.parametrize("n", [6, 7])
def test_reflect_moves_a_voxel_to_the_other_side_of_the_centre(n: int) -> None:
    volume = torch.arange(float(n**3)).view(n, n, n)
    found, centre = reflect(volume), n // 2
    for offset in range(-((n - 1) // 2), (n - 1) // 2 + 1):
        assert torch.equal(found[centre + offset], volume[centre - offset])
    if n % 2 == 0:  # the plane at -n / 2 has no partner
        assert torch.equal(found[0], volume[0])
    assert torch.equal(reflect(found), volume)


@pytest.mark.parametrize(("symmetry", "box"), [("C1", 20), ("C1", 21), ("D2", 20), ("T", 20), ("T", 21)])
def test_mirrored_maps_at_mirrored_poses_give_the_same_images(symmetry: str, box: int) -> None:
    group = point_group(symmetry).float()
    generator = torch.Generator().manual_seed(0)
    pose = Pose(roma.random_rotmat(10, generator=generator), torch.randn(10, 2, generator=generator))
    halves = maps_of(box, group if len(group) > 1 else None, pose)
    found = halves.mirrored(symmetry)
    found_pose = found.pose
    half_plane, band = HalfPlane.within(box, box / 2 - 2), torch.ones(10, 1)
    for name in MAPS:
        one, other = getattr(halves, name), getattr(found, name)
        images, again = (project(volume_to_ft(v, pad=3), band, half_plane, q) for v, q in ((one, pose), (other, found_pose)))
        assert (again - images).norm() < 0.03 * images.norm(), name
        # another hand, and not the same map again
        assert likeness(one, other) < 0.97 and other.std() == pytest.approx(one.std().item(), rel=0.05)
    torch.testing.assert_close(torch.linalg.det(found_pose.rotation), torch.ones(10))


def test_a_mirrored_map_has_its_axes_where_relion_has_them() -> None:
    """T, mirrored alone, has them somewhere else."""
    group = point_group("T").float()
    halves = maps_of(24, group)
    found = halves.mirrored("T")
    assert likeness(found.combined, symmetrise_volume(found.combined, group)) > 0.99
    alone = reflect(halves.combined)
    assert likeness(alone, symmetrise_volume(alone, group)) < 0.95
    assert not torch.equal(mirrored_axes("T"), torch.eye(3, dtype=torch.float64))


def test_mirroring_twice_is_nothing() -> None:
    pose = Pose(roma.random_rotmat(4, generator=torch.Generator().manual_seed(0)), torch.ones(4, 2))
    halves = maps_of(16, pose=pose)
    twice = halves.mirrored("C1").mirrored("C1")
    twice_pose = twice.pose
    for name in MAPS:
        assert torch.equal(getattr(twice, name), getattr(halves, name))
    torch.testing.assert_close(twice_pose.rotation, pose.rotation)
    assert torch.equal(twice_pose.shift_px, pose.shift_px)


@pytest.mark.parametrize("box", [16, 20])
def test_grey_values_do_not_depend_on_the_box(box: int) -> None:
    """A density sampled more coarsely has the values that it has there, not those of a bigger voxel."""
    full = 24
    position = torch.tensor([[0.0, 0, 0], [3, -2, 1]])
    volume = density_map(Atoms(position, torch.tensor([1.0, 2.0])), full, 1.0, 6.0)
    halves = dataclasses.replace(maps_of(box), **{name: change_box(volume, box) for name in MAPS})
    found = halves.scaled((box / full) ** 3)
    wanted = density_map(Atoms(position * box / full, torch.tensor([1.0, 2.0])), box, 1.0, 6.0 * box / full)
    wanted = wanted * (box / full) ** 3  # the same charge in fewer voxels, and its density
    for name in MAPS:
        at_centre = getattr(found, name)[box // 2, box // 2, box // 2]
        assert at_centre == pytest.approx(volume[full // 2, full // 2, full // 2].item(), rel=0.02)
        torch.testing.assert_close(getattr(found, name), wanted, atol=0.02 * float(wanted.max()), rtol=0)


@pytest.mark.parametrize("box", [32, 33])
def test_resolutions_of_the_table_are_those_of_the_box(tmp_path: Path, box: int) -> None:
    RunFolder(tmp_path).write_fsc({"fsc": torch.linspace(1, 0, box // 2 + 1)}, box * 17.0)
    with open(tmp_path / "fsc.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == box // 2 + 1 and rows[0]["resolution_angstrom"] == "inf"
    for shell, row in enumerate(rows[1:], start=1):
        assert float(row["resolution_angstrom"]) == pytest.approx(box * 17 / shell, rel=1e-4)
        assert float(row["frequency_per_angstrom"]) == pytest.approx(shell / (box * 17), abs=1e-6)


def test_mask_holds_the_particle_and_stays_in_the_ball() -> None:
    box, pixel_size = 32, 5.0
    images: Any = dataclasses.make_dataclass("Images", ["box", "pixel_size_angstrom"])(box, pixel_size)
    look: Any = None
    plan = Plan(images, look, 70.0, box, [box], "cpu", 1, torch.eye(3)[None])
    noise = 0.02 * torch.randn(box, box, box, generator=torch.Generator().manual_seed(0))
    position = torch.tensor([[0.0, 0, 0], [4, 1, 0], [-2, 3, 3]])
    particle = density_map(Atoms(position, torch.ones(3)), box, 1.0, 8.0)
    volume = (particle / particle.max() + noise) * plan.mask(box)
    found = mask_of(volume, plan, pixel_size)
    assert found.min() >= 0 and found.max() <= 1 and (found <= plan.mask(box) + 1e-6).all()
    assert found[particle > 0.3 * particle.max()].min() > 0.9
    # tighter than the ball, with solvent outside
    assert 0.02 < found.mean() < 0.7 * plan.mask(box).mean()
    assert found[radius_grid(box, 3) > box / 2 - 1].max() < 0.01
