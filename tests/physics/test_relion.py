"""Comparison with RELION's programs: projections, CTF, and reconstruction from simulated images and poses.

Sign, hand, axis order, shift and CTF are proven here and not by reading.
"""

import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import roma
import torch
from torch import Tensor

from ace_em.data.particles import Particles
from ace_em.io.mrc import StackWriter, read_images, read_volume, stack_shape, write_volume
from ace_em.io.star import ParticleTable, write_star
from ace_em.maths.fourier import centred_fft, radius_grid
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.slices import central_slices, volume_to_ft
from ace_em.metrics.fsc import fourier_shell_correlation
from ace_em.physics.ctf import CTFParameters, ctf
from ace_em.physics.imaging import shift_phase
from ace_em.physics.pose import Pose, relion_angles_to_rotmat, rotmat_to_relion_angles
from ace_em.refinement.backprojection import accumulate, unfiltered_map
from ace_em.simulation.density import density_map, project_atoms
from ace_em.simulation.structure import Atoms
from stacks import stack_of

pytestmark = pytest.mark.relion

PIXEL = 2.5
RESOLUTION = 7.0


def read_stack(path: Path) -> np.ndarray:
    """All images."""
    return read_images(path, np.arange(stack_shape(path)[0]))


@dataclass(frozen=True)
class Case:
    """Atoms, their map, and particles of known pose and CTF, float32."""

    box: int
    atoms: Atoms
    volume: Tensor
    angles_deg: Tensor
    pose: Pose
    parameters: CTFParameters

    def image_ft(self, rotation: Tensor, shift_px: Tensor, transfer: Tensor | float) -> Tensor:
        """Images from rotated atoms, not from slices of the map."""
        half_plane = HalfPlane.within(self.box)
        plane = project_atoms(self.atoms, rotation, self.box, PIXEL, RESOLUTION)
        return half_plane.gather(plane) * shift_phase(half_plane, shift_px) * transfer

    def transfer(self) -> Tensor:
        return ctf(self.parameters, HalfPlane.within(self.box), PIXEL)


def make_case(box: int, n: int, seed: int) -> Case:
    generator = torch.Generator().manual_seed(seed)
    position = torch.randn(150, 3, generator=generator, dtype=torch.float64).clamp(-2, 2)
    position = position * torch.tensor([0.11, 0.085, 0.06]) * box * PIXEL
    atoms = Atoms(position, 1 + 7 * torch.rand(150, generator=generator, dtype=torch.float64))
    angles = rotmat_to_relion_angles(roma.random_rotmat(n, generator=generator, dtype=torch.float64))
    angles[1] = torch.tensor([30.0, 0.0, 25.0])
    angles[2] = torch.tensor([30.0, 180.0, 25.0])
    shift = torch.randn(n, 2, generator=generator) * 1.5
    u = 8000 + 8000 * torch.rand(n, generator=generator)
    parameters = CTFParameters(
        u,
        u - 1000 - 3000 * torch.rand(n, generator=generator),
        180 * torch.rand(n, generator=generator),
        torch.full((n,), 300.0),
        torch.full((n,), 2.7),
        torch.full((n,), 0.1),
        torch.zeros(n),
    )
    volume = density_map(atoms, box, PIXEL, RESOLUTION)
    return Case(box, atoms, volume, angles, Pose(relion_angles_to_rotmat(angles).float(), shift), parameters)


def write_case_star(case: Case, path: Path, stack_name: str) -> None:
    """A RELION 3.1 STAR file; the origin is the shift that recentres the particle, in Angstrom."""
    optics = {
        "rlnOpticsGroupName": "opticsGroup1",
        "rlnOpticsGroup": 1,
        "rlnVoltage": 300.0,
        "rlnSphericalAberration": 2.7,
        "rlnAmplitudeContrast": 0.1,
        "rlnImagePixelSize": PIXEL,
        "rlnImageSize": case.box,
        "rlnImageDimensionality": 2,
    }
    particles = {
        "rlnImageName": [f"{i + 1:06d}@{stack_name}" for i in range(len(case.pose))],
        "rlnAngleRot": case.angles_deg[:, 0],
        "rlnAngleTilt": case.angles_deg[:, 1],
        "rlnAnglePsi": case.angles_deg[:, 2],
        "rlnOriginXAngst": -case.pose.shift_px[:, 1] * PIXEL,
        "rlnOriginYAngst": -case.pose.shift_px[:, 0] * PIXEL,
        "rlnDefocusU": case.parameters.defocus_u_angstrom,
        "rlnDefocusV": case.parameters.defocus_v_angstrom,
        "rlnDefocusAngle": case.parameters.defocus_angle_deg,
        "rlnOpticsGroup": 1,
    }
    tables = pd.DataFrame([optics]).astype(str), pd.DataFrame(particles).astype(str)
    write_star(path, ParticleTable(path, *tables))


def run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def correlation(a_ft: Tensor, b_ft: Tensor) -> Tensor:
    """Correlation (b,) of images on the half-plane, without the mean."""
    a_ft, b_ft = a_ft[:, 1:], b_ft[:, 1:]
    return (a_ft * b_ft.conj()).real.sum(1) / (a_ft.norm(dim=1) * b_ft.norm(dim=1))


@pytest.fixture(scope="module", params=[False, True], ids=["no-ctf", "ctf"])
def projected(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Tensor, Tensor, Particles]:
    """A case, the images that relion_project made from its map, the CTF, and the particles read from the STAR file."""
    folder = tmp_path_factory.mktemp("project")
    case = make_case(32, 24, 0)
    write_volume(folder / "map.mrc", case.volume.numpy(), PIXEL)
    write_case_star(case, folder / "poses.star", "projections.mrcs")
    flags = ["--ctf"] if request.param else []
    run(folder, "relion_project", "--i", "map.mrc", "--ang", "poses.star", "--o", "projections", "--angpix", str(PIXEL), *flags)
    stack = torch.tensor(read_stack(folder / "projections.mrcs"))
    transfer = case.transfer() if request.param else torch.ones(1)
    return case, HalfPlane.within(case.box).from_image(stack), transfer, Particles.open(folder / "poses.star")


def test_relion_projections_match(projected: tuple[Case, Tensor, Tensor, Particles]) -> None:
    case, theirs, transfer, particles = projected
    pose = particles.poses()
    assert pose is not None
    ours = case.image_ft(pose.rotation, pose.shift_px, transfer)
    assert correlation(theirs, ours).min() > 0.998
    # absolute scale: the same normalisation
    assert (theirs[:, 1:].norm(dim=1) / ours[:, 1:].norm(dim=1) - 1).abs().max() < 0.02
    # and from slices of the map
    slices = central_slices(volume_to_ft(case.volume), HalfPlane.within(case.box), pose.rotation)
    slices = slices * shift_phase(HalfPlane.within(case.box), pose.shift_px) * transfer
    assert correlation(theirs, slices).min() > 0.998


def test_other_conventions_do_not_match(projected: tuple[Case, Tensor, Tensor, Particles]) -> None:
    case, theirs, transfer, particles = projected
    pose = particles.poses()
    assert pose is not None
    right = correlation(theirs, case.image_ft(pose.rotation, pose.shift_px, transfer))
    for what, rotation, shift in (
        ("transposed", pose.rotation.mT.contiguous(), pose.shift_px),
        ("other hand", pose.mirrored().rotation, pose.shift_px),
        ("shift reversed", pose.rotation, -pose.shift_px),
        ("shift in x, y order", pose.rotation, pose.shift_px.flip(-1)),
    ):
        other = correlation(theirs, case.image_ft(rotation, shift, transfer))
        # some views are similar; the median distance from 1 is hundreds of times larger
        assert other.median() < 0.95 and (1 - other).median() > 100 * (1 - right).median(), what


@pytest.mark.parametrize("projected", [True], indirect=True, ids=["ctf"])
def test_ctf_sign_and_angle(projected: tuple[Case, Tensor, Tensor, Particles]) -> None:
    case, theirs, transfer, particles = projected
    right = correlation(theirs, case.image_ft(case.pose.rotation, case.pose.shift_px, transfer))
    p, half_plane = particles.ctf, HalfPlane.within(case.box)
    u, v, angle = p.defocus_u_angstrom, p.defocus_v_angstrom, p.defocus_angle_deg
    rest = (p.voltage_kv, p.spherical_aberration_mm)
    for what, wrong in (
        ("angle reversed", CTFParameters(u, v, -angle, *rest, p.amplitude_contrast, p.phase_shift_deg)),
        ("angle from y", CTFParameters(u, v, 90 - angle, *rest, p.amplitude_contrast, p.phase_shift_deg)),
        ("U and V", CTFParameters(v, u, angle, *rest, p.amplitude_contrast, p.phase_shift_deg)),
        ("sign of w", CTFParameters(u, v, angle, *rest, -p.amplitude_contrast, p.phase_shift_deg)),
    ):
        other = correlation(theirs, case.image_ft(case.pose.rotation, case.pose.shift_px, ctf(wrong, half_plane, PIXEL)))
        # ten times farther from 1
        assert (1 - other).median() > 10 * (1 - right).median(), what
    # positive correlation: the global sign is that of RELION, not cryoDRGN
    assert right.min() > 0.998


@pytest.mark.parametrize("box", [32, 48])
def test_relion_reconstruction_matches_the_map(box: int, tmp_path: Path) -> None:
    case = make_case(box, 1500, 1)
    half_plane = HalfPlane.within(box)
    images = half_plane.to_image(case.image_ft(case.pose.rotation, case.pose.shift_px, case.transfer()))
    with StackWriter(tmp_path / "stack.mrcs", (len(images), box, box), PIXEL) as writer:
        for block in images.split(400):
            writer.write(block.numpy())
    write_case_star(case, tmp_path / "particles.star", "stack.mrcs")
    run(tmp_path, "relion_reconstruct", "--i", "particles.star", "--o", "map.mrc", "--ctf")
    array, pixel = read_volume(tmp_path / "map.mrc")
    assert pixel == pytest.approx(PIXEL) and array.shape == (box,) * 3
    volume = torch.tensor(array)
    fsc = fourier_shell_correlation(volume, case.volume)
    last = int(0.9 * box / 2)
    assert fsc[1 : last + 1].min() > 0.95, fsc
    # a wrong sign of w would lose the lowest shells
    assert fsc[1:6].min() > 0.99, fsc
    # absolute scale: the same map, not only a correlated one
    inside = radius_grid(box, 3) < 0.4 * box
    scale = (volume * case.volume)[inside].sum() / case.volume[inside].square().sum()
    assert 0.9 < scale < 1.1
    mirror = fourier_shell_correlation(volume, case.volume.flip(0).roll(1, 0))
    assert mirror[box // 4 : last].max() < 0.6


@pytest.mark.parametrize("tilt_sd_deg", [90.0, 12.0], ids=["all views", "mostly top views"])
def test_the_unfiltered_map_matches_relion_reconstruct(tilt_sd_deg: float, tmp_path: Path) -> None:
    """From noisy images, compared per shell on the absolute scale, so that a filter in either program would show."""
    case, half_plane = make_case(32, 300, 2), HalfPlane.within(32)
    generator = torch.Generator().manual_seed(2)
    angles = case.angles_deg.clone()
    angles[:, 1] = (tilt_sd_deg * torch.randn(300, generator=generator, dtype=torch.float64)).abs() % 180
    case = replace(case, angles_deg=angles, pose=Pose(relion_angles_to_rotmat(angles).float(), case.pose.shift_px))
    clean = half_plane.to_image(case.image_ft(case.pose.rotation, case.pose.shift_px, case.transfer()))
    images = clean + 3 * clean.std() * torch.randn(clean.shape, generator=generator)
    with StackWriter(tmp_path / "stack.mrcs", (300, 32, 32), PIXEL) as writer:
        writer.write(images.numpy())
    write_case_star(case, tmp_path / "particles.star", "stack.mrcs")
    run(tmp_path, "relion_reconstruct", "--i", "particles.star", "--o", "map.mrc", "--ctf", "--skip_gridding")
    theirs = torch.tensor(read_volume(tmp_path / "map.mrc")[0])
    stack = stack_of(half_plane, half_plane.from_image(images), case.parameters, PIXEL)
    ours = unfiltered_map(accumulate(stack, case.pose))
    ball = (radius_grid(32, 3) < 13).float()
    fsc = fourier_shell_correlation(ours * ball, theirs * ball)
    assert fsc[1:14].min() > 0.98, fsc
    shells = radius_grid(32, 3).round().long()
    power = [centred_fft(v * ball, 3).abs().square() for v in (ours, theirs)]
    ratio = torch.tensor([(power[0][shells == s].sum() / power[1][shells == s].sum()).sqrt() for s in range(1, 14)])
    assert ratio.min() > 0.96 and ratio.max() < 1.04, ratio
