"""Particles on disk to a :class:`ParticleStack`: contrast sign, normalisation, circular mask, Fourier cropping."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ace_em.data.coefficients import InMemory, ScratchFile
from ace_em.data.particle_stack import ParticleStack
from ace_em.data.particles import Particles
from ace_em.data.survey import Survey, noise_groups, normalise
from ace_em.maths.half_plane import HalfPlane
from ace_em.maths.masks import particle_disc

BLOCK = 500


def read_stack(
    particles: Particles,
    look: Survey,
    box: int,
    rows: np.ndarray | None = None,
    scratch: Path | None = None,
    on_block: Callable[[int], None] = lambda done: None,
) -> ParticleStack:
    """Read, normalise, mask and crop images at a working box.

    Parameters
    ----------
    look : survey with one noise spectrum per noise group, or one for all.
    rows : (n,) particles to read; all by default.
    scratch : folder for a scratch file with the coefficients; None keeps them in memory.
    on_block : called with the number of images done.

    Raises
    ------
    InputError
        if an image is unusable or the scratch disk is too small.
    """
    rows = np.arange(len(particles)) if rows is None else rows
    half_plane = HalfPlane.within(box)
    full = HalfPlane(particles.box, half_plane.k, half_plane.radius)
    disc = particle_disc(particles.box)
    store: InMemory | ScratchFile
    if scratch is None:
        store = InMemory(torch.empty(len(rows), len(half_plane), dtype=torch.complex64))
    else:
        store = ScratchFile(scratch, len(rows), len(half_plane))
    for start in range(0, len(rows), BLOCK):
        some = rows[start : start + BLOCK]
        images = normalise(torch.from_numpy(particles.images(some)), look.sign, look.common_sd)
        store.write(start, full.from_image(images * disc))
        on_block(start + len(some))
    index = torch.from_numpy(rows)
    one_noise = len(look.noise.variance) == 1
    return ParticleStack(
        store=store,
        row=torch.arange(len(rows)),
        half_plane=half_plane,
        pixel_size_angstrom=particles.pixel_size_angstrom * particles.box / box,
        ctf=particles.ctf[index],
        noise=look.noise,
        noise_group=torch.zeros(len(rows), dtype=torch.long) if one_noise else noise_groups(particles)[index],
        intensity_scale=torch.ones(len(rows)),
    )
