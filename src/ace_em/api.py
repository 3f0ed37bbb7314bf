"""The stages of a run as functions, for notebooks and scripts. They print nothing and set no global seed.

Training, the ab initio search and the refinement are iterators over updates or rounds, so that a caller can inspect or stop
them at any point. Images are a :class:`~ace_em.data.particle_stack.ParticleStack`; poses are :class:`~ace_em.physics.pose.Pose`.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ace_em.config import AceConfig, RefineConfig, RunConfig, SearchConfig
from ace_em.data.particle_stack import ParticleStack
from ace_em.data.particles import Particles
from ace_em.data.pose_columns import posed_table
from ace_em.data.preprocess import read_stack
from ace_em.data.split import half_sets as random_halves
from ace_em.data.survey import Survey
from ace_em.data.survey import survey as look_at
from ace_em.io.mrc import read_volume, write_volume
from ace_em.io.star import write_star
from ace_em.maths.fourier import fourier_resize
from ace_em.maths.masks import ball_radius_px, disc_share, soft_ball
from ace_em.maths.point_group import point_group
from ace_em.physics.image_content import ContentTest
from ace_em.physics.pose import Pose
from ace_em.refinement import abinitio, half_sets
from ace_em.refinement.abinitio import AbInitioSetup, Round
from ace_em.refinement.backprojection import Halves, accumulate, reconstruct_halves
from ace_em.refinement.half_sets import HalfSets, HalfSetState
from ace_em.refinement.search import SearchSpace
from ace_em.report.page import write_report
from ace_em.run.convergence import Verdict
from ace_em.run.pipeline import Request
from ace_em.run.pipeline import reconstruct as run_pipeline
from ace_em.run.reporter import Mode
from ace_em.training.fabric import make_fabric
from ace_em.training.loop import Training


def read_particles(path: Path | str, project: Path | str | None = None) -> Particles:
    """Open the particles of a RELION .star or cryoSPARC .cs file, without reading their images.

    Parameters
    ----------
    project : folder that image paths are relative to; by default the folder of the file and its parents are tried.

    Raises
    ------
    InputError : names the file, the row or column, the value found and the expected value.
    """
    return Particles.open(path, None if project is None else Path(project))


def read_images(particles: Particles, box: int, look: Survey | None = None) -> ParticleStack:
    """Read all images at a working box into memory: normalised, masked and Fourier-cropped. They are whitened on use.

    Parameters
    ----------
    look : result of :func:`ace_em.survey`; None makes a new survey.
    """
    return read_stack(particles, look_at(particles) if look is None else look, box)


def read_map(path: Path | str, box: int | None = None) -> tuple[Tensor, float]:
    """A map (n, n, n), z, y, x order, and its pixel size in Angstrom.

    Parameters
    ----------
    box : edge in pixels that the map is Fourier-cropped or padded to; None: that of the file.
    """
    values, pixel_size = read_volume(Path(path))
    volume = torch.from_numpy(values.copy())
    if box is None:
        return volume, pixel_size
    return fourier_resize(volume, box, 3), pixel_size * len(volume) / box


def write_map(path: Path | str, volume: Tensor, pixel_size_angstrom: float) -> None:
    """Write a map (n, n, n) as .mrc."""
    write_volume(Path(path), volume.detach().cpu().numpy(), pixel_size_angstrom)


def write_poses(path: Path | str, particles: Particles, pose: Pose) -> None:
    """Write the particles' table with other poses, as RELION .star.

    Parameters
    ----------
    pose : (N,), shifts in pixels of the images on disk: ``pose.rescaled(particles.box / stack.box)`` of a stack's.
    """
    write_star(path, posed_table(particles, pose, None))


def diameter_px(stack: ParticleStack, diameter_angstrom: float) -> float:
    """Convert a diameter to pixels of the working box."""
    return diameter_angstrom / stack.pixel_size_angstrom


def train_autoencoder(
    stack: ParticleStack,
    diameter_angstrom: float,
    config: AceConfig = AceConfig(),
    seed: int = 0,
    device: str = "cpu",
) -> Training:
    """Stage 1. Iterating over the result trains the autoencoder, which is its attribute ``.model``.

    Parameters
    ----------
    diameter_angstrom : of the particle.
    device : 'cpu', 'cuda' or 'mps'.
    """
    return Training(stack, diameter_px(stack, diameter_angstrom), config, make_fabric(device, RunConfig()), seed)


def ab_initio(
    stack: ParticleStack,
    volume: Tensor,
    pose: Pose,
    diameter_angstrom: float,
    config: SearchConfig = SearchConfig(),
    seed: int = 0,
    device: str = "cpu",
) -> Iterator[Round]:
    """Ab initio search (stage 2): yield the state after each round of pose search on a random subset of the images.

    Parameters
    ----------
    volume : (box, box, box) map to start from, such as ``training.model.decoder.volume()``.
    pose : (N,) poses to start from, such as those of :func:`ace_em.encode`.
    """
    diameter = diameter_px(stack, diameter_angstrom)
    space = SearchSpace(stack.box, diameter, config, torch.eye(3)[None], disc_share(stack.box))
    mask = soft_ball(stack.box, ball_radius_px(stack.box, diameter))
    setup = AbInitioSetup(stack, mask, space, config, torch.device(device))
    generator = torch.Generator().manual_seed(seed)
    return abinitio.ab_initio(setup, volume.detach().cpu(), pose, torch.arange(len(stack)), generator)


def refine_half_sets(
    stack: ParticleStack,
    volume: Tensor,
    pose: Pose,
    diameter_angstrom: float,
    search: SearchConfig = SearchConfig(),
    refine: RefineConfig = RefineConfig(),
    symmetry: str = "C1",
    seed: int = 0,
    device: str = "cpu",
) -> Iterator[HalfSetState]:
    """Stages 2 and 3 in two independent half-sets: yield the state after each round of search, then of local refinement.

    Parameters
    ----------
    volume : (box, box, box) initial map of both halves, low-passed at ``search.shared_band``.
    pose : (N,); only the shifts are used.
    symmetry : point group; the map must be oriented by RELION's convention for its axes.
    """
    diameter, group = diameter_px(stack, diameter_angstrom), point_group(symmetry).float()
    space = SearchSpace(stack.box, diameter, search, group, disc_share(stack.box))
    mask = soft_ball(stack.box, ball_radius_px(stack.box, diameter))
    halves = torch.from_numpy(random_halves(len(stack), seed))
    band = space.band(search.last_band)
    test = ContentTest(len(space.grid(band, torch.Generator())), space.independent)
    sets = HalfSets(stack, halves, mask, group, torch.device(device), test, band, refine.flatten_solvent)
    history = [half_sets.shared_start(stack, volume.detach().cpu(), pose, space.band(search.shared_band))]
    yield from half_sets.search_half_sets(sets, history, space, torch.Generator().manual_seed(seed))
    yield from half_sets.refine_half_sets(sets, history[-1:], refine)


def backproject(stack: ParticleStack, pose: Pose, seed: int = 0) -> Halves:
    """Half-maps, combined map and FSC from known poses (N,), shifts in pixels of the working box."""
    halves = torch.from_numpy(random_halves(len(stack), seed))
    one, two = (accumulate(stack, pose, torch.nonzero(halves == number)[:, 0]) for number in (1, 2))
    return reconstruct_halves(one, two, soft_ball(stack.box, stack.box / 2 - 2))


def reconstruct(
    particles: Path | str,
    out: Path | str,
    config: RunConfig = RunConfig(),
    overwrite: bool = False,
    resume: bool = False,
    quiet: bool = True,
) -> Verdict:
    """A complete run, as ``ace-em reconstruct``: writes the folder ``out`` and returns the verdict on convergence.

    Raises
    ------
    InputError : if the input or a setting is wrong; nothing is written then.
    """
    mode: Mode = "quiet" if quiet else "text"
    return run_pipeline(Request(Path(particles), Path(out), overwrite, resume, mode, "", write_report), config)
