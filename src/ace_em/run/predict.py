"""``ace-em predict``: poses of new particles from the encoder of a run and local refinement."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ace_em.data.particles import Particles
from ace_em.data.pose_columns import posed_table, with_confidence
from ace_em.data.survey import survey
from ace_em.errors import InputError
from ace_em.inference.predictor import Predictor
from ace_em.io.particle_table import write_particle_table
from ace_em.run.eta import clock
from ace_em.run.folder import RunFolder
from ace_em.run.plan import free_threads
from ace_em.run.reporter import Reporter

FEWEST_SURVEYED = 20
"""Fewest images for a measurement of the contrast."""
SURE_CONTRAST = 5.0
"""z-score from which the measured contrast of the new images is used."""


def predict(
    particles: Particles,
    run: Path,
    out: Path,
    overwrite: bool,
    contrast: str,
    threads: int,
    reporter: Reporter,
    needed: Sequence[Path] = (),
) -> None:
    """Write ``out`` (.star or .cs): the particles with poses in the frame of the run's map. ``needed`` files are not replaced.

    Raises
    ------
    InputError
        if the run has no encoder, or the images differ from it in box or pixel size.
    """
    check_output(out, overwrite, run, [particles.table.path, *particles.stack_paths, *needed])
    if threads < 0:
        raise InputError(f"--threads {threads}: expected 0 or more")
    torch.set_num_threads(threads or free_threads())
    predictor = Predictor.load(RunFolder(run).encoder)
    table = particles.table
    same = abs(particles.pixel_size_angstrom / predictor.pixel_size_angstrom - 1) < 1e-3
    if particles.box != predictor.box or not same:
        raise InputError(
            f"{table.path}: images of {particles.box} px at {particles.pixel_size_angstrom:g} A/px, expected "
            f"{predictor.box} px at {predictor.pixel_size_angstrom:g} A/px as in {run}"
        )
    sign, how = contrast_of(particles, predictor, contrast)
    colour = "white" if sign > 0 else "black"
    reporter.say(f"{table.path}: {len(particles)} particles; protein is {colour} ({how})")
    with reporter.heartbeat(), reporter.task("predicting poses", len(particles)) as task:
        found = predictor.predict(particles, sign=sign, on_block=task.update)
    posed = posed_table(particles, predictor.in_map_frame(found.pose), None)
    probability = predictor.probability(found)
    posed = with_confidence(posed, probability.numpy(), found.gap.numpy(), found.spread_deg.numpy())
    write_particle_table(out, posed, particles.box, sign)
    if not predictor.converged:
        reporter.say(f"the run in {run} did not converge: all pose probabilities are written as 0", always=True)
    sure, least = (probability >= predictor.config.confident).float().mean().item(), predictor.config.confident
    rate = len(particles) / max(reporter.elapsed_s, 1e-9)
    reporter.say(f"{sure:.0%} of the poses are at least {100 * least:.4g}% probable; {rate:.0f} particles/s")
    reporter.say(f"{out} written after {clock(reporter.elapsed_s)}")


def check_output(out: Path, overwrite: bool, run: Path, needed: Sequence[Path]) -> None:
    """Raise InputError for an output name with a wrong suffix, that cannot be written, or that is an input."""
    if out.suffix.lower() not in (".star", ".cs"):
        raise InputError(f"{out}: expected a name that ends in .star or .cs")
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out}: no folder {out.parent}")
    if out.exists() and not (overwrite and out.is_file()):
        raise InputError(f"{out}: exists already; expected a new file (or give --overwrite)")
    if out.resolve() in {path.resolve() for path in needed}:
        raise InputError(f"{out}: is the input; expected another name")
    RunFolder(run).refuse_if_overwriting([out])


def contrast_of(particles: Particles, predictor: Predictor, contrast: str) -> tuple[float, str]:
    """+1 for white protein, -1 for black, and the source: user, images, particle file or run."""
    if contrast != "auto":
        return (1.0 if contrast == "white" else -1.0), "as given"
    look = survey(particles) if len(particles) >= FEWEST_SURVEYED else None
    if look is not None and abs(look.contrast_z) >= SURE_CONTRAST:
        return look.sign, f"measured, z = {look.contrast_z:+.0f}"
    if particles.sign_on_disk is not None:
        return particles.sign_on_disk, "from the file"
    return predictor.look.sign, "as in the run"
