"""cryoDRGN 4.3.1 ``abinit`` (DRGN-AI), homogeneous, defaults otherwise, on CPUs, in an environment of its own.

Sign of the contrast: cryoDRGN's CTF is the negative of RELION's, and by default it multiplies the images by -1, which for images
that are white by RELION's convention is the same thing. So the default is right for our images and ``--uninvert-data`` is not:
its own ``backproject_voxel`` from the true poses of a simulated set gives an FSC with the true map of +0.99 without that flag
and -0.99 with it.

Poses: with cryoDRGN's rotation ``r`` and translation ``t`` (x, y), our ``R = r^T`` and RELION's origin is ``+t``. That is what
its ``parse_pose_star`` makes of RELION's angles and origins, with ``t`` a fraction of the box. The pose.*.pkl that ``abinit``
writes hold ``t`` in pixels, unlike the rest of cryoDRGN (its ``write_star`` would be wrong by a factor of the box).
"""

import os
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from ace_em.data.particles import Particles
from ace_em.io.star import with_poses, write_star
from ace_em.physics.pose import rotmat_to_relion_angles
from peers.result import Chain, PeerResult

VERSION = "4.3.1"
ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / "benchmarks" / "data" / "cryodrgn"
EPOCHS = 30
L_END = 32


def missing(environment: Path = ENVIRONMENT) -> str:
    """Why cryoDRGN cannot be run; empty when it can. Installs it into ``environment`` when it is not there yet.

    torch is the version of constraints.txt; ``TORCH_ARGS`` in the environment are further arguments of its installation, as for
    ``make setup``: without the index of a CPU build, PyPI's build for Linux brings the CUDA libraries, which are not used.
    """
    program = environment / "bin" / "cryodrgn"
    if program.is_file():
        return ""
    pin = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    for command in (
        [sys.executable, "-m", "venv", str(environment)],
        [*pip, *shlex.split(os.environ.get("TORCH_ARGS", "")), pin],
        [*pip, pin, f"cryodrgn=={VERSION}"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{shlex.join(command)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}"
    return "" if program.is_file() else f"{program} is not there after the installation"


def run(
    particles_star: Path,
    work: Path,
    cores: list[int],
    limit_s: float,
    diameter_angstrom: float,
    environment: Path = ENVIRONMENT,
    extra: tuple[str, ...] = (),
) -> PeerResult | None:
    """Particles to poses within ``limit_s`` seconds; None where cryoDRGN cannot be installed (the reason: :func:`missing`).

    Parameters
    ----------
    particles_star : made by ``ace-em simulate``: white particles, no poses.
    work : folder for everything cryoDRGN writes; poses.star is written there.
    diameter_angstrom : not used: cryoDRGN's window is a share of the box.
    extra : further options of ``cryodrgn abinit``, for trials.
    """
    if missing(environment):
        return None
    work.mkdir(parents=True, exist_ok=True)
    particles = Particles.open(particles_star)
    star = str(particles_star.absolute())
    program = str((environment / "bin" / "cryodrgn").absolute())
    chain = Chain(work, cores, limit_s, work / "cryodrgn.log", {"CUDA_VISIBLE_DEVICES": ""})
    chain.run([program, "parse_ctf_star", star, "-o", "ctf.pkl"])
    # the analysis after the last epoch draws figures, and is no part of the reconstruction
    options = ["--ctf", "ctf.pkl", "--zdim", "0", "-n", str(EPOCHS), "--no-analysis", "-o", "abinit"]
    if particles.box // 2 < L_END:
        # the default would search beyond Nyquist
        options += ["--l-end", str(particles.box // 2)]
    chain.run([program, "abinit", star, "--datadir", str(particles_star.absolute().parent), *options, *extra])
    poses, state = newest_poses(work, particles)
    finished = not chain.failure
    if not finished:
        state = f"{progress(work / 'cryodrgn.log')}; {state}" + ("" if chain.failure == "limit" else f"; {chain.failure}")
    return PeerResult("cryoDRGN abinit", VERSION, chain.wall_s, chain.cpu_s, finished, state, poses)


def newest_poses(work: Path, particles: Particles) -> tuple[Path | None, str]:
    """The newest poses on disk as ``work``/poses.star, and which they are; None before the first epoch of search was written."""
    files = {int(file.name.split(".")[1]): file for file in (work / "abinit").glob("pose.*.pkl")}
    # epoch 0 is pretraining on random poses
    for epoch in sorted((epoch for epoch in files if epoch > 0), reverse=True):
        try:
            rotation, translation = read_poses(files[epoch])
        except (EOFError, pickle.UnpicklingError):
            continue  # cut off while it was written
        write_poses(work / "poses.star", particles, rotation, translation)
        return work / "poses.star", f"poses of epoch {epoch}"
    return None, "no poses yet"


def read_poses(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (N, 3, 3) and translations (N, 2) of a pose.*.pkl; only for files that our own run has just written."""
    with open(path, "rb") as file:
        rotation, translation = pickle.load(file)
    return rotation, translation


def write_poses(path: Path, particles: Particles, rotation: np.ndarray, translation_px: np.ndarray) -> None:
    """STAR file of cryoDRGN's rotations (N, 3, 3) and translations (N, 2), x, y in pixels."""
    ours = torch.from_numpy(np.ascontiguousarray(rotation.transpose(0, 2, 1))).double()
    pixel_size = particles.pixel_size_angstrom
    table = with_poses(particles.table, rotmat_to_relion_angles(ours).numpy(), translation_px * pixel_size, None, pixel_size)
    write_star(path, table)


def progress(log: Path) -> str:
    """The last epoch that the log says is finished."""
    epochs = re.findall(r"=====> (\w+) Epoch: (\d+) finished", log.read_text(errors="replace"))
    return f"after epoch {epochs[-1][1]} ({epochs[-1][0]}) of {EPOCHS}" if epochs else "before the end of pretraining"
