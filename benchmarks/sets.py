"""The benchmark sets: structures, options of the simulation, and options of the reconstruction."""

import dataclasses
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ace_em.data.particles import Particles
from ace_em.io.mrc import StackWriter, read_volume, write_volume
from ace_em.io.star import ParticleTable, read_particle_star, write_star
from ace_em.maths.fourier import fourier_resize
from ace_em.physics.pose import rotmat_to_relion_angles

SHIFT_SD_ANGSTROM = 20.0
SPLICEOSOME = {"n": 5000, "box": 128, "pixel_size": 4.25}


@dataclass(frozen=True)
class SimulatedSet:
    """A simulated set: a structure of the data folder, options of the simulation, and options of the reconstruction.

    ``ctf_from`` and ``poses_from`` are .npz files with experimental CTF parameters and poses. ``goal`` is the expected result:
    fraction within 10 degrees, median Rot., excess of FSC 0.5 over the bound, minutes.
    """

    name: str
    structure: str
    simulate: dict[str, float]
    reconstruct: dict[str, str]
    ctf_from: str = ""
    poses_from: str = ""
    goal: str = ""

    @property
    def images(self) -> str:
        """Folder name, shared by sets with the same images."""
        parts = [Path(self.structure).name.split(".")[0], *(f"{k}{v:g}" for k, v in self.simulate.items())]
        return "_".join([*parts, *(Path(f).stem.split("_")[0] for f in (self.ctf_from, self.poses_from) if f)])


SETS = [
    SimulatedSet(
        "5nrl 200 dB, 64 px",
        "structures/5nrl.npz",
        SPLICEOSOME | {"snr_db": 200},
        {"final_box": "64"},
        goal="99 %, 1e-4, +1 %, 8 min",
    ),
    SimulatedSet(
        "5nrl -10 dB, 64 px",
        "structures/5nrl.npz",
        SPLICEOSOME | {"snr_db": -10},
        {"final_box": "64"},
        goal="98 %, 2e-4, +2 %, 10 min",
    ),
    SimulatedSet(
        "5nrl -10 dB, 128 px",
        "structures/5nrl.npz",
        SPLICEOSOME | {"snr_db": -10},
        {"final_box": "128"},
        goal="98 %, 1e-4, +2 %, 20 min",
    ),
    SimulatedSet(
        "6vyb -10 dB, 64 px",
        "structures/6vyb.pdb.gz",
        {"n": 5000, "box": 128, "pixel_size": 3.0, "shift_sd": 10, "snr_db": -10},
        {"final_box": "64"},
        goal="90 %, 5e-4, +5 %, 15 min",
    ),
    SimulatedSet(
        "4v6x, 10028 CTFs, -10 dB, 128 px",
        "structures/4v6x.npz",
        {"n": 5000, "box": 128, "pixel_size": 3.77, "snr_db": -10},
        {"final_box": "128"},
        ctf_from="poses_ctf/empiar10028_ctf.npz",
        goal="98 %, 1e-4, +2 %, 20 min",
    ),
    SimulatedSet(
        "5nrl, 10180 views, -10 dB, 64 px",
        "structures/5nrl.npz",
        SPLICEOSOME | {"snr_db": -10},
        {"final_box": "64"},
        poses_from="poses_ctf/empiar10180_poses_ctf.npz",
        goal="95 %, 5e-4, +5 %, 12 min",
    ),
    SimulatedSet(
        "5nrl -20 dB, no shifts, 128 px",
        "structures/5nrl.npz",
        SPLICEOSOME | {"snr_db": -20, "shift_sd": 0},
        {"final_box": "128"},
        goal="what is reached",
    ),
    SimulatedSet(
        "1aon, C7, -10 dB, 64 px",
        "structures/1aon.pdb.gz",
        {"n": 3000, "box": 128, "pixel_size": 2.5, "shift_sd": 8, "snr_db": -10},
        {"final_box": "64", "symmetry": "C7"},
        goal="the axis found",
    ),
    SimulatedSet(
        "5ni1, C2, -10 dB, 64 px",
        "structures/5ni1.cif",
        {"n": 3000, "box": 96, "pixel_size": 1.5, "shift_sd": 4, "snr_db": -10, "resolution": 5},
        {"final_box": "64", "symmetry": "C2"},
        goal="the axis found",
    ),
]


@dataclass(frozen=True)
class RealSet:
    """Particles of the data folder without known poses."""

    name: str
    particles: str
    reconstruct: dict[str, str] = field(default_factory=dict)
    group_order: int = 1


REAL = [
    RealSet("betagal, C1", "particles/betagal_empiar10204/particles_clean.star", group_order=4),
    RealSet("betagal, D2", "particles/betagal_empiar10204/particles_clean.star", {"symmetry": "D2"}, group_order=4),
    RealSet(
        "apoferritin, O", "particles/apoferritin_empiar10146/particles.star", {"symmetry": "O", "diameter": "130"}, group_order=24
    ),
]


def ctf_star(npz: Path, n: int, seed: int, out: Path) -> Path:
    """STAR file with the CTFs of ``n`` random rows of a table: box, A/px, U, V (A), angle (degrees), kV, Cs (mm), w,
    phase shift (degrees)."""
    with np.load(npz) as arrays:
        rows = next(arrays[name] for name in arrays.files if arrays[name].ndim == 2 and arrays[name].shape[1] == 9)
    chosen = rows[np.random.default_rng(seed).permutation(len(rows))[:n]]
    names = ["rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"]
    columns = {name: [f"{v:.4f}" for v in chosen[:, 2 + i]] for i, name in enumerate([*names, "rlnPhaseShift"])}
    return _star(columns, n, out)


def pose_star(npz: Path, n: int, seed: int, out: Path, pixel_size: float) -> Path:
    """STAR file with ``n`` random views of cryoDRGN's array ``rot``, the transpose of our rotation, and shifts of 20 A.

    The array ``trans`` is not used, as its mean is a tenth of the box along both axes, which is not typical of particles.
    """
    with np.load(npz) as arrays:
        rot = arrays["rot"]
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(rot))[:n]
    angles = rotmat_to_relion_angles(torch.from_numpy(rot[chosen].astype(np.float64)).mT).numpy()
    origin = random.normal(0, SHIFT_SD_ANGSTROM, (n, 2))
    columns = {f"rlnAngle{name}": [f"{v:.5f}" for v in angles[:, i]] for i, name in enumerate(("Rot", "Tilt", "Psi"))}
    columns |= {f"rlnOrigin{axis}Angst": [f"{v:.4f}" for v in origin[:, i]] for i, axis in enumerate("XY")}
    columns |= {"rlnVoltage": ["300"] * n, "rlnSphericalAberration": ["2.7"] * n, "rlnAmplitudeContrast": ["0.1"] * n}
    return _star(columns | {"rlnImagePixelSize": [f"{pixel_size}"] * n}, n, out)


def _star(columns: dict[str, list[str]], n: int, out: Path) -> Path:
    table = {"rlnImageName": [f"{i + 1:06d}@none.mrcs" for i in range(n)], **columns}
    write_star(out, ParticleTable(out, None, pd.DataFrame(table)))
    return out


def simulate_options(item: SimulatedSet, data: Path, folder: Path, seed: int) -> list[str]:
    """Arguments of ``ace-em simulate`` for a set; STAR files of experimental CTFs and poses are written to its folder."""
    options = [part for key, value in item.simulate.items() for part in (f"--{key}", f"{value:g}")]
    n = int(item.simulate["n"])
    if item.ctf_from:
        options += ["--ctf", str(ctf_star(data / item.ctf_from, n, seed, folder / "ctf.star"))]
    if item.poses_from:
        star = pose_star(data / item.poses_from, n, seed, folder / "poses.star", item.simulate["pixel_size"])
        options += ["--poses", str(star)]
    return [str(data / item.structure), "-o", str(folder), *options, "--seed", str(seed), "--overwrite"]


def cropped(folder: Path, box: int) -> Path:
    """A copy of a simulated set, FOLDER_box, with images and map Fourier-cropped to ``box`` px and the same poses and CTFs."""
    out = fresh(folder.with_name(f"{folder.name}_{box}px"))
    particles = Particles.open(folder / "particles.star")
    pixel_size = particles.pixel_size_angstrom * particles.box / box
    with StackWriter(out / "particles.mrcs", (len(particles), box, box), pixel_size) as stack:
        for rows in np.array_split(np.arange(len(particles)), max(1, len(particles) // 500)):
            stack.write(fourier_resize(torch.from_numpy(particles.images(rows)), box, 2).numpy())
    for name in ("particles.star", "truth.star"):
        table = read_particle_star(folder / name)
        assert table.optics is not None
        table.optics["rlnImagePixelSize"], table.optics["rlnImageSize"] = f"{pixel_size:.6f}", str(box)
        write_star(out / name, dataclasses.replace(table, path=out / name))
    volume, _ = read_volume(folder / "volume.mrc")
    write_volume(out / "volume.mrc", fourier_resize(torch.from_numpy(volume), box, 3).numpy(), pixel_size)
    return out


def fresh(folder: Path) -> Path:
    """Create an empty folder, replacing an existing one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
