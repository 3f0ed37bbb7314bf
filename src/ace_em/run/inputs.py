"""Inputs of a run: particles, half-sets and images."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from ace_em.config import RunConfig
from ace_em.data.coefficients import refuse_small_folder, scratch_bytes
from ace_em.data.particle_stack import ParticleStack
from ace_em.data.particles import Particles
from ace_em.data.preprocess import read_stack
from ace_em.data.select import selected_rows
from ace_em.data.split import half_sets
from ace_em.errors import InputError
from ace_em.io.particle_table import read_particle_table
from ace_em.run.plan import Plan
from ace_em.run.reporter import Reporter

PATHS = ("subset", "exclude", "passthrough", "project", "scratch")
"""Settings with a path, or several separated by commas."""


def open_particles(path: Path, config: RunConfig) -> Particles:
    """Open a particle file and select particles by the settings."""
    if config.project and not Path(config.project).is_dir():
        raise InputError(f"--project {config.project}: no such folder; expected the folder that image paths are relative to")
    passthrough = [Path(p) for p in config.passthrough.split(",") if p]
    table = read_particle_table(path, passthrough)
    rows = selected_rows(table, config.subset, config.exclude, config.max_particles, config.seed)
    if len(rows) < len(table):
        table = table.rows(rows)
    return Particles.of(table, Path(config.project) if config.project else None)


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The settings with absolute paths, so that config.yaml can be used from another folder."""

    def absolute(paths: str) -> str:
        return ",".join(str(Path(path).absolute()) for path in paths.split(",") if path)

    changes: dict[str, Any] = {name: absolute(getattr(config, name)) for name in PATHS}
    return dataclasses.replace(config, **changes)


def chosen_half_sets(particles: Particles, seed: int) -> np.ndarray:
    """Half-sets (N,) from rlnRandomSubset if it has two of similar size, otherwise random ones."""
    given = particles.half_sets()
    if given is not None and set(np.unique(given)) == {1, 2} and np.bincount(given)[1:].min() > len(given) / 4:
        return given
    return half_sets(len(particles), seed)


def fingerprint(particles: Particles) -> dict[str, Any]:
    """Identity of a particle set, independent of file paths."""
    names = hashlib.sha256("\n".join(particles.image_names).encode()).hexdigest()[:16]
    return {"particles": len(particles), "box": particles.box, "pixel size": particles.pixel_size_angstrom, "image names": names}


def read_images(plan: Plan, box: int, config: RunConfig, out: Path, reporter: Reporter) -> ParticleStack:
    """All particles at a working box, in memory or, if they do not fit, in a scratch file.

    ``out`` is the folder of the run, which may not exist yet.
    """
    scratch = None if plan.fits(box) else scratch_folder(config, out)
    with reporter.task(f"reading images at {box} px", len(plan.particles)) as task:
        return read_stack(plan.particles, plan.look, box, scratch=scratch, on_block=task.update)


def scratch_folder(config: RunConfig, out: Path) -> Path:
    """Folder for the scratch file."""
    return Path(config.scratch) if config.scratch else next(p for p in (out, *out.absolute().parents) if p.is_dir())


def refuse_small_disk(plan: Plan, config: RunConfig, out: Path) -> None:
    """Raise InputError before the run if the disk is too small for its largest scratch file; only one exists at a time."""
    boxes = [box for box in (plan.working_box, *plan.boxes) if not plan.fits(box)]
    if boxes:
        refuse_small_folder(scratch_folder(config, out), scratch_bytes(len(plan.particles), max(boxes)))
