"""Columns that ace-em adds to a particle table: poses, half-sets, defocus and the confidence of the poses."""

from dataclasses import replace

import numpy as np

from ace_em.data.particles import Particles
from ace_em.io.particle_table import ParticleTable
from ace_em.io.star import with_defocus_offset, with_poses
from ace_em.physics.image_content import Content
from ace_em.physics.pose import Pose, rotmat_to_relion_angles

PROBABILITY, GAP, SPREAD = "aceConfidence", "aceLikelihoodGap", "aceHypothesisSpread"
PARTICLE, CONTENT = "aceParticleProbability", "aceImageContent"
CONTENTS = ("particle", "noise", "other")
"""Values of the column ``aceImageContent``."""
MOST_GAP = 1000.0
"""Cap of the likelihood gap, also written if no other pose was found."""


def posed_table(
    particles: Particles, pose: Pose, half_set: np.ndarray | None, defocus_offset_angstrom: np.ndarray | None = None
) -> ParticleTable:
    """The input table with new angles, origins and half-sets; ``pose`` in pixels of the images.

    ``defocus_offset_angstrom`` (N,) is added to the defocus columns.
    """
    angles = rotmat_to_relion_angles(pose.rotation.double()).numpy()
    origin = -pose.shift_px.flip(-1).double().numpy() * particles.pixel_size_angstrom
    table = with_poses(particles.table, angles, origin, half_set, particles.pixel_size_angstrom)
    return table if defocus_offset_angstrom is None else with_defocus_offset(table, defocus_offset_angstrom)


def with_confidence(
    table: ParticleTable, probability: np.ndarray, gap: np.ndarray, spread_deg: np.ndarray | None
) -> ParticleTable:
    """Add columns, each (N,): probability of the pose, log-likelihood gap to the best other pose and, if there is an encoder,
    median angle to its hypotheses in degrees."""
    particles = table.particles.copy()
    gap = np.clip(np.nan_to_num(gap, nan=MOST_GAP, posinf=MOST_GAP), -MOST_GAP, MOST_GAP)
    columns = [(PROBABILITY, probability, 6), (GAP, gap, 3), *([] if spread_deg is None else [(SPREAD, spread_deg, 2)])]
    for name, values, digits in columns:
        particles[name] = [f"{value:.{digits}f}" for value in values]
    return replace(table, particles=particles)


def with_content(table: ParticleTable, content: Content) -> ParticleTable:
    """Add columns: probability that an image shows the particle, and what it shows most probably."""
    particles = table.particles.copy()
    particles[PARTICLE] = [f"{value:.6f}" for value in content.particle.tolist()]
    particles[CONTENT] = [CONTENTS[kind] for kind in content.kind.tolist()]
    return replace(table, particles=particles)
