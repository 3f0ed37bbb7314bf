"""cryoSPARC's fields into RELION's columns: a new table, or an earlier table with what has changed since."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from ace_em.io.cs.file import Fields
from ace_em.io.cs.images import images_of_table, names_of_fields, texts
from ace_em.io.cs.links import (
    ANGLES,
    FIELD_NAMES,
    HALF_SET,
    INDEX,
    PARTICLE_LINKS,
    PATH,
    POSE,
    agree,
    angles_deg,
    origins_of_fields,
    origins_of_table,
    rotations_agree,
    rotations_of_fields,
    rotations_of_table,
)
from ace_em.io.cs.locations import location_columns
from ace_em.io.cs.optics import groups_of_fields, with_changed_optics
from ace_em.io.cs.star_blocks import UID
from ace_em.io.particle_table import ParticleTable
from ace_em.io.pixel_size import pixel_sizes

_ORIGINS_ANGSTROM = ("rlnOriginXAngst", "rlnOriginYAngst")
_ORIGINS_PX = ("rlnOriginX", "rlnOriginY")


def new_table(path: Path, fields: Fields) -> ParticleTable:
    """The particles of a .cs file in the form of a RELION 3.1 file."""
    optics, group = groups_of_fields(fields)
    columns: dict[str, list[str]] = {"rlnImageName": names_of_fields(fields), "rlnOpticsGroup": group.astype(str).tolist()}
    columns |= location_columns(fields)
    for link in PARTICLE_LINKS:
        # one half for all is no half-set
        if link.field in fields and (link is not HALF_SET or len(np.unique(fields[link.field])) > 1):
            columns[link.column] = link.text(fields)
    if POSE in fields:
        columns |= _pose_columns(rotations_of_fields(fields), origins_of_fields(fields), _ORIGINS_ANGSTROM)
    columns[UID] = fields["uid"].astype(str).tolist()
    return ParticleTable(path, optics, pd.DataFrame(columns, dtype=str), cryosparc=fields, field_names=FIELD_NAMES)


def _pose_columns(rotations: np.ndarray, origins: np.ndarray, origin_names: tuple[str, str]) -> dict[str, list[str]]:
    values = np.concatenate([angles_deg(rotations), origins], axis=1)
    # adding zero turns a rounded -0 into 0
    rounded = (np.round(values, 6) + 0.0).T.tolist()
    names = (*ANGLES, *origin_names)
    return {name: [f"{value:.6f}" for value in column] for name, column in zip(names, rounded, strict=True)}


def with_changed_fields(table: ParticleTable, fields: Fields) -> ParticleTable:
    """The table, which ``fields`` were once made from, with their values where these differ by more than rounding."""
    particles = table.particles.copy()
    paths, indices = images_of_table(table)
    _write(particles, "rlnImageName", (paths != texts(fields[PATH])) | (indices != fields[INDEX]), names_of_fields(fields))
    for link in PARTICLE_LINKS:
        values = link.of_table(table) if link.field in fields else None
        one_half = link is HALF_SET and link.column not in particles and len(np.unique(fields.get(link.field, 0))) == 1
        if values is None or one_half:
            continue
        _write(particles, link.column, ~agree(link.held(values), link.of_fields(fields)), link.text(fields))
    if POSE in fields:
        _write_poses(particles, table, fields)
    return with_changed_optics(replace(table, particles=particles), fields)


def _write_poses(particles: pd.DataFrame, table: ParticleTable, fields: Fields) -> None:
    rotations, origins = rotations_of_fields(fields), origins_of_fields(fields)
    px = table.optics is None or not set(_ORIGINS_ANGSTROM) & set(particles) and bool(set(_ORIGINS_PX) & set(particles))
    said = origins / pixel_sizes(table)[:, None] if px else origins
    text = _pose_columns(rotations, said, _ORIGINS_PX if px else _ORIGINS_ANGSTROM)
    before = rotations_of_table(table)
    turned = np.ones(len(table), bool) if before is None else ~rotations_agree(before, rotations)
    moved = ~agree(origins_of_table(table), origins)
    for name, values in text.items():
        _write(particles, name, turned if name in ANGLES else moved, values)


def _write(particles: pd.DataFrame, name: str, rows: np.ndarray, text: list[str]) -> None:
    """Write text at the rows (N,) marked; a column that is not there comes whole, where a row is marked at all."""
    if not rows.any():
        return
    if name not in particles:
        particles[name] = text
        return
    column = particles[name].to_numpy(dtype=object).copy()
    column[rows] = np.array(text, dtype=object)[rows]
    particles[name] = column
