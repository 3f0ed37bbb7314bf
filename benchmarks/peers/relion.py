"""RELION 3.1: InitialModel, then gold-standard Refine3D from its map, with the defaults of its own interface.

The options are those that ``relion_pipeliner --addJob InitialModel`` (and ``Refine3D``) of 3.1.3 writes for a job with nothing
filled in but its input, apart from the particle's diameter, resolution limits that stop at Nyquist, and in Refine3D two that
its help asks for when the reference comes from the same data's InitialModel: the map is CTF-corrected (``--ctf_corrected_ref``)
and on the absolute grey scale (no ``--firstiter_cc``). All runs are on CPUs.
"""

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ace_em.data.particles import Particles
from ace_em.errors import InputError
from ace_em.io.mrc import StackWriter
from ace_em.io.star import numeric_column, read_particle_star, with_poses, write_star
from ace_em.physics.noise import background_mask, background_mean_sd
from peers.result import Chain, PeerResult

INITIAL, REFINE = "InitialModel", "Refine3D"
# a leader and one rank for each half: the fewest that gold-standard refinement takes
RANKS = 3
POSE_COLUMNS = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")


@dataclass(frozen=True)
class Schedule:
    """Iterations and images per iteration of InitialModel; the defaults are RELION's. Shorter ones are for trials."""

    first_iterations: int = 50
    between_iterations: int = 200
    last_iterations: int = 50
    first_images: int = 100
    last_images: int = 500
    write_every: int = 10


def missing() -> str:
    """Why RELION cannot be run here; empty when it can."""
    absent = [name for name in ("relion_refine", "relion_refine_mpi", "mpirun") if shutil.which(name) is None]
    return f"{', '.join(absent)} not installed" if absent else ""


def run(
    particles_star: Path,
    work: Path,
    cores: list[int],
    limit_s: float,
    diameter_angstrom: float,
    schedule: Schedule | None = None,
) -> PeerResult | None:
    """Particles to poses within ``limit_s`` seconds; None where RELION is not installed.

    Parameters
    ----------
    particles_star : made by ``ace-em simulate``: white particles, no poses.
    work : folder for everything RELION writes; poses.star is written there.
    diameter_angstrom : of the circular mask on the images, and outside of which they are normalised.
    """
    if missing():
        return None
    version = subprocess.run(["relion_refine", "--version"], capture_output=True, text=True).stdout.split()[2]
    for job in (INITIAL, REFINE):
        (work / job).mkdir(parents=True, exist_ok=True)
    # ranks that wait for each other on the same core must not keep it busy
    environment = {"OMPI_MCA_mpi_yield_when_idle": "1", "CUDA_VISIBLE_DEVICES": ""}
    chain = Chain(work, cores, limit_s, work / "relion.log", environment)
    particles = Particles.open(particles_star)
    wall, cpu = time.monotonic(), time.process_time()
    normalise(particles, work, diameter_angstrom)
    chain.own_work(time.monotonic() - wall, time.process_time() - cpu)

    nyquist_angstrom = 2 * particles.pixel_size_angstrom
    if chain.run(initial_model(diameter_angstrom, nyquist_angstrom, len(cores), schedule or Schedule())):
        chain.run(refine(newest_map(work / INITIAL).relative_to(work), diameter_angstrom, len(cores)))
    poses, state = newest_poses(work, particles)
    finished = not chain.failure
    if not finished:
        state = f"{progress(work / 'relion.log')}; {state}" + ("" if chain.failure == "limit" else f"; {chain.failure}")
    return PeerResult("RELION", version, chain.wall_s, chain.cpu_s, finished, state, poses)


def normalise(particles: Particles, work: Path, diameter_angstrom: float) -> None:
    """Write ``work``/particles.star and .mrcs with mean 0 and deviation 1 outside the particle's circle, row i as image i."""
    box = particles.box
    background = background_mask(box, min(diameter_angstrom / particles.pixel_size_angstrom, box) / 2)
    with StackWriter(work / "particles.mrcs", (len(particles), box, box), particles.pixel_size_angstrom) as stack:
        for start in range(0, len(particles), 1000):
            images = torch.from_numpy(particles.images(slice(start, start + 1000)))
            mean, sd = background_mean_sd(images, background)
            stack.write(((images - mean[:, None, None]) / sd[:, None, None]).numpy())
    rows = particles.table.particles.copy()
    rows["rlnImageName"] = [f"{row + 1:06d}@particles.mrcs" for row in range(len(rows))]
    table = particles.table
    write_star(work / "particles.star", type(table)(table.path, table.optics, rows, table.others, table.particle_block))


def initial_model(diameter_angstrom: float, nyquist_angstrom: float, threads: int, schedule: Schedule) -> list[str]:
    """Command of the InitialModel job.

    The default resolution limits, 35 and 15 A, stop at Nyquist: a limit beyond it adds no data, but RELION samples
    orientations as finely as the limit asks for, at many times the cost.
    """
    gradient = {
        "sgd_ini_iter": schedule.first_iterations,
        "sgd_inbetween_iter": schedule.between_iterations,
        "sgd_fin_iter": schedule.last_iterations,
        "sgd_write_iter": schedule.write_every,
        "sgd_ini_resol": f"{max(35.0, nyquist_angstrom):g}",
        "sgd_fin_resol": f"{max(15.0, nyquist_angstrom):g}",
        "sgd_ini_subset": schedule.first_images,
        "sgd_fin_subset": schedule.last_images,
    }
    options = f"""--o {INITIAL}/run --sgd --denovo_3dref --i particles.star --ctf --K 1 --sym C1 --flatten_solvent --zero_mask
        --dont_combine_weights_via_disc --pool 3 --pad 2 --skip_gridding --particle_diameter {diameter_angstrom:g}
        --oversampling 1 --healpix_order 1 --offset_range 6 --offset_step 4 --j {threads}"""
    return ["relion_refine", *(part for name, value in gradient.items() for part in (f"--{name}", str(value))), *options.split()]


def refine(reference: Path, diameter_angstrom: float, threads: int) -> list[str]:
    """Command of the Refine3D job. Its ranks share the cores: the leader only hands out work."""
    mpi = ["mpirun", "-n", str(RANKS), "--oversubscribe", "--bind-to", "none"]
    if os.geteuid() == 0:
        mpi.append("--allow-run-as-root")
    options = f"""--o {REFINE}/run --auto_refine --split_random_halves --i particles.star --ref {reference}
        --ctf_corrected_ref --ini_high 60 --dont_combine_weights_via_disc --pool 3 --pad 2 --skip_gridding --ctf
        --particle_diameter {diameter_angstrom:g} --flatten_solvent --zero_mask --oversampling 1 --healpix_order 2
        --auto_local_healpix_order 4 --offset_range 5 --offset_step 2 --sym C1 --low_resol_join_halves 40 --norm --scale
        --j {max(1, threads // (RANKS - 1))}"""
    return [*mpi, "relion_refine_mpi", *options.split()]


def newest_map(job: Path) -> Path:
    """Map of the last iteration of InitialModel."""
    return max(job.glob("run_it*_class001.mrc"))


def newest_poses(work: Path, particles: Particles) -> tuple[Path | None, str]:
    """The newest poses on disk as ``work``/poses.star, and which they are; None before the first iteration was written."""
    files = [work / REFINE / "run_data.star"]
    for job in (REFINE, INITIAL):
        files += sorted((work / job).glob("run_it*_data.star"), reverse=True)
    for file in files:
        # iteration 0 holds what went in
        if not file.is_file() or "_it000_" in file.name:
            continue
        try:
            values = poses_of(file, len(particles))
        except InputError:
            continue  # cut off while it was written
        table = with_poses(particles.table, values[:, :3], values[:, 3:], None, particles.pixel_size_angstrom)
        write_star(work / "poses.star", table)
        found = re.search(r"_it(\d+)_", file.name)
        return work / "poses.star", f"poses of {file.parent.name} " + (f"iteration {int(found[1])}" if found else "as converged")
    return None, "no poses yet"


def poses_of(data_star: Path, n: int) -> np.ndarray:
    """(n, 5) RELION's three angles and two origins of a _data.star, in the order of the images in the stack."""
    table = read_particle_star(data_star)
    if len(table) != n:
        raise InputError(f"{data_star}: {len(table)} particles, expected {n}")
    images = [int(name.partition("@")[0]) - 1 for name in table.particles["rlnImageName"]]
    values = np.empty((n, len(POSE_COLUMNS)))
    values[images] = np.stack([numeric_column(table, name) for name in POSE_COLUMNS], axis=-1)
    return values


def progress(log: Path) -> str:
    """The job and iteration that were under way when the log ended."""
    text = log.read_text(errors="replace")
    job = REFINE if f"--o {REFINE}/" in text else INITIAL
    steps = re.findall(r"(?:Expectation|Descent) iteration (\d+)(?: of (\d+))?", text[text.rfind("$ taskset") :])
    if not steps:
        return f"{job} starting"
    iteration, of = steps[-1]
    return f"{job} in iteration {iteration}" + (f" of {of}" if of else "")
