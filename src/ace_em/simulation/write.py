"""``ace-em simulate``: structure to particles.mrcs, particles.star, truth.star and volume.mrc, in bounded memory."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ace_em.config import SimulationConfig
from ace_em.data.particles import ctf_parameters, pixel_size_of, star_poses
from ace_em.errors import InputError, option
from ace_em.io.mrc import StackWriter, read_volume, write_volume
from ace_em.io.star import ParticleTable, read_particle_star, with_poses, write_star
from ace_em.physics.ctf import CTFParameters
from ace_em.physics.pose import Pose, rotmat_to_relion_angles
from ace_em.simulation.dataset import (
    Specimen,
    sample_ctf,
    sample_poses,
    simulate_images,
    specimen_from_atoms,
    specimen_from_map,
)
from ace_em.simulation.structure import is_structure, read_structure


def read_specimen(path: Path, config: SimulationConfig) -> Specimen:
    """Read atoms or a map, by the suffix of the file."""
    if is_structure(path):
        return specimen_from_atoms(read_structure(path), config)
    volume, pixel_size = read_volume(path)
    if len(set(volume.shape)) != 1:
        raise InputError(f"{path}: {' x '.join(map(str, volume.shape))} voxels; expected a cubic map")
    return specimen_from_map(torch.from_numpy(volume), pixel_size, config)


def check(config: SimulationConfig) -> None:
    """Check the settings.

    Raises
    ------
    InputError : a setting is out of range.
    """
    rules = {
        "n": (config.n >= 1, "1 or more"),
        "box": (config.box >= 16, "16 or more"),
        "pixel_size": (config.pixel_size > 0, "a positive number of Angstrom"),
        "resolution": (config.resolution > 0, "a positive number of Angstrom"),
        "shift_sd": (config.shift_sd >= 0, "0 or more Angstrom"),
        "amplitude_contrast": (0 <= config.amplitude_contrast <= 1, "a fraction"),
        "voltage": (config.voltage > 0, "a positive number of kV"),
        "snr_db": (-100 <= config.snr_db <= 300, "-100 to 300"),
        "defocus_spread": (config.defocus_spread >= 0, "0 or more"),
        "seed": (0 <= config.seed < 2**63, "0 or a positive number below 2^63"),
    }
    for name, (valid, expected) in rules.items():
        if not valid:
            raise InputError(f"{option(name)} {getattr(config, name)}: expected {expected}")


def ctf_from_star(path: str, n: int) -> CTFParameters:
    """CTF parameters of the first ``n`` particles of a STAR file, repeated if it has fewer. The images are not needed."""
    parameters = ctf_parameters(read_particle_star(Path(path)))
    return parameters[torch.arange(n) % len(parameters)]


def poses_from_star(path: str, config: SimulationConfig) -> Pose:
    """Poses of the first particles of a STAR file, repeated if it has fewer. Shifts are kept in Angstrom."""
    table = read_particle_star(Path(path))
    pixel_size = pixel_size_of(table)
    given = star_poses(table, pixel_size)
    if given is None:
        raise InputError(f"{path}: no rlnAngleRot, rlnAngleTilt, rlnAnglePsi columns; expected poses")
    return given.rescaled(pixel_size / config.pixel_size)[torch.arange(config.n) % len(given)]


def simulate(
    structure: Path | str,
    out: Path | str,
    config: SimulationConfig,
    poses: str | None = None,
    ctf: str | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
    on_block: Callable[[int], None] = lambda done: None,
) -> None:
    """Write a simulated particle set into the folder ``out``.

    Parameters
    ----------
    structure : file with atoms or a map.
    poses, ctf : STAR files from which poses or CTF parameters are taken, row by row; random if None.
    overwrite : replace an existing particle set.
    say : called with a line of text before and after the simulation.
    on_block : called with the number of images simulated so far.

    Raises
    ------
    InputError : a setting or an input file is invalid, or ``out`` already holds a particle set or is not writable.
    """
    check(config)
    structure, out = Path(structure), Path(out)
    files = [out / name for name in ("particles.star", "particles.mrcs", "truth.star", "volume.mrc")]
    if not overwrite and any(f.exists() for f in files):
        raise InputError(f"{out}: holds {next(f for f in files if f.exists()).name}; expected a new folder (or give --overwrite)")
    for given in (structure, *(Path(name) for name in (poses, ctf) if name)):
        if given.resolve() in {f.resolve() for f in files}:
            raise InputError(f"{given}: would be replaced by the simulated set; expected another output folder")
    specimen = read_specimen(structure, config)
    if specimen.atoms is not None and specimen.atoms.least_box_angstrom > config.box * config.pixel_size:
        least, edge = specimen.atoms.least_box_angstrom, config.box * config.pixel_size
        raise InputError(
            f"--pixel-size {config.pixel_size:g}: {structure} needs a box of {least:.0f} A, and {config.box} px are "
            f"only {edge:.0f} A; expected a larger --pixel-size or --box"
        )
    generator = torch.Generator().manual_seed(config.seed)
    pose, parameters = sample_poses(config, generator), sample_ctf(config, generator)
    if poses is not None:
        pose = poses_from_star(poses, config)
    if ctf is not None:
        parameters = ctf_from_star(ctf, config.n)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be created ({error.strerror}); expected a writable folder") from error

    source = f"{len(specimen.atoms)} atoms" if specimen.atoms is not None else "a map"
    say(f"{structure}: {source}; {config.n} images of {config.box} px at {config.pixel_size:g} A/px, {config.snr_db:g} dB")
    write_volume(out / "volume.mrc", specimen.volume.numpy(), config.pixel_size)
    with StackWriter(out / "particles.mrcs", (config.n, config.box, config.box), config.pixel_size) as stack:
        for block in simulate_images(specimen, pose, parameters, config, generator, on_block):
            stack.write(block.numpy())
    table = particle_table(out / "particles.star", parameters, config)
    write_star(table.path, table)
    write_star(out / "truth.star", dataclasses.replace(with_true_poses(table, pose, config), path=out / "truth.star"))
    say(f"{out / 'particles.star'} written; the true poses are in {out / 'truth.star'}")


def with_true_poses(table: ParticleTable, pose: Pose, config: SimulationConfig) -> ParticleTable:
    """Add poses to a particle table as RELION's angles and origins; an origin is the negative of the shift."""
    angles = rotmat_to_relion_angles(pose.rotation.double()).numpy()
    origin = -pose.shift_px.flip(-1).double().numpy() * config.pixel_size
    return with_poses(table, angles, origin, None, config.pixel_size)


def particle_table(path: Path, parameters: CTFParameters, config: SimulationConfig) -> ParticleTable:
    """RELION 3.1 particle table without poses, with one optics group for each distinct microscope setting."""
    settings = np.stack(
        [
            parameters.voltage_kv.numpy(),
            parameters.spherical_aberration_mm.numpy(),
            parameters.amplitude_contrast.numpy(),
        ],
        axis=1,
    )
    groups, group_of = np.unique(np.round(settings.astype(np.float64), 6), axis=0, return_inverse=True)
    optics = pd.DataFrame(
        {
            "rlnOpticsGroup": [str(i + 1) for i in range(len(groups))],
            "rlnOpticsGroupName": [f"opticsGroup{i + 1}" for i in range(len(groups))],
            "rlnVoltage": [f"{g[0]:.6f}" for g in groups],
            "rlnSphericalAberration": [f"{g[1]:.6f}" for g in groups],
            "rlnAmplitudeContrast": [f"{g[2]:.6f}" for g in groups],
            "rlnImagePixelSize": f"{config.pixel_size:.6f}",
            "rlnImageSize": str(config.box),
            "rlnImageDimensionality": "2",
        }
    )
    particles = pd.DataFrame(
        {
            "rlnImageName": [f"{i + 1:06d}@particles.mrcs" for i in range(config.n)],
            "rlnOpticsGroup": [str(i + 1) for i in group_of.reshape(-1)],
            "rlnDefocusU": [f"{v:.6f}" for v in parameters.defocus_u_angstrom.tolist()],
            "rlnDefocusV": [f"{v:.6f}" for v in parameters.defocus_v_angstrom.tolist()],
            "rlnDefocusAngle": [f"{v:.6f}" for v in parameters.defocus_angle_deg.tolist()],
            "rlnPhaseShift": [f"{v:.6f}" for v in parameters.phase_shift_deg.tolist()],
        }
    )
    return ParticleTable(path, optics, particles)
