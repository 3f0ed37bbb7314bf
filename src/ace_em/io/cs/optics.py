"""Optics groups from per-particle values: new ones, or those of a table whose values have changed."""

from dataclasses import replace

import numpy as np
import pandas as pd

from ace_em.io.cs.file import Fields
from ace_em.io.cs.links import EXPOSURE, OPTICS_LINKS, Link, agree, exposure_groups
from ace_em.io.particle_table import ParticleTable, optics_rows

_NUMBER, _NAME = "rlnOpticsGroup", "rlnOpticsGroupName"


def groups_of_fields(fields: Fields) -> tuple[pd.DataFrame, np.ndarray]:
    """The optics table, strings, and the group number of each particle (N,): one group per exposure group and set of values."""
    links = [link for link in OPTICS_LINKS if link.field in fields]
    n = len(fields["uid"])
    exposure = fields[EXPOSURE].astype(np.int64) if EXPOSURE in fields else np.zeros(n, np.int64)
    keys = np.column_stack([exposure, *(link.of_fields(fields) for link in links)])
    combinations, first, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    ids = combinations[:, 0].astype(np.int64)
    # the second and later groups of one exposure group get a number
    seen = [int((ids[:i] == value).sum()) for i, value in enumerate(ids)]
    names = [f"exp_group_{value}" + (f"_{k + 1}" if k else "") for value, k in zip(ids, seen, strict=True)]
    one_each = {name: values[first] for name, values in fields.items()}
    columns = {_NUMBER: [str(i + 1) for i in range(len(ids))], _NAME: names}
    columns |= {link.column: link.text(one_each) for link in links} | {"rlnImageDimensionality": ["2"] * len(ids)}
    return pd.DataFrame(columns, dtype=str), group.reshape(-1) + 1


def with_changed_optics(table: ParticleTable, fields: Fields) -> ParticleTable:
    """The table with the values of ``fields`` where these differ by more than rounding; a changed group splits as it must."""
    changed: dict[Link, np.ndarray] = {}
    for link in OPTICS_LINKS:
        values = link.of_table(table) if link.field in fields else None
        if values is not None:
            rows = ~agree(link.held(values), link.of_fields(fields))
            if rows.any():
                changed[link] = rows
    in_particles = {link: rows for link, rows in changed.items() if table.optics is None or link.column in table.particles}
    table = _with_particle_values(table, fields, in_particles)
    exposure = exposure_groups(table)
    if table.optics is None or exposure is None:
        return table
    moved = exposure != fields[EXPOSURE] if EXPOSURE in fields else np.zeros(len(table), bool)
    in_optics = {link: rows for link, rows in changed.items() if link not in in_particles}
    return _split(table, fields, in_optics, moved) if in_optics or moved.any() else table


def _with_particle_values(table: ParticleTable, fields: Fields, changed: dict[Link, np.ndarray]) -> ParticleTable:
    particles = table.particles.copy()
    for link, rows in changed.items():
        text = np.array(link.text(fields), dtype=object)
        if link.column == "rlnImagePixelSize" and link.column not in particles:
            # RELION 3.0: the pixel size is that of the detector over the magnification
            particles[link.column] = text
            continue
        column = particles[link.column].to_numpy(dtype=object).copy()
        column[rows] = text[rows]
        particles[link.column] = column
    return replace(table, particles=particles)


def _split(table: ParticleTable, fields: Fields, changed: dict[Link, np.ndarray], moved: np.ndarray) -> ParticleTable:
    """Particles whose values changed leave their group for a copy of it with the new values."""
    assert table.optics is not None
    base = optics_rows(table, table.optics)
    keys = [np.where(rows, link.of_fields(fields), -1.0) for link, rows in changed.items()]
    ids = np.where(moved, fields[EXPOSURE].astype(np.int64) if EXPOSURE in fields else -1, -1)
    combinations, first, group = np.unique(np.column_stack([base, ids, *keys]), axis=0, return_index=True, return_inverse=True)
    numbers = table.particles[_NUMBER].to_numpy(dtype=object).copy()
    rows, following = [table.optics], int(table.optics[_NUMBER].astype(float).max()) + 1
    for k, combination in enumerate(combinations):
        if (combination[1:] == -1).all():
            continue
        particle = int(first[k])
        row = table.optics.iloc[[int(combination[0])]].copy()
        one = {name: values[particle : particle + 1] for name, values in fields.items()}
        for link, of in changed.items():
            if of[particle]:
                row[link.column] = link.text(one)
        row[_NUMBER] = str(following)
        if _NAME in row:
            row[_NAME] = f"exp_group_{ids[particle]}" if moved[particle] else f"{row[_NAME].iloc[0]}_{following}"
        numbers[group.reshape(-1) == k] = str(following)
        rows.append(row)
        following += 1
    return replace(table, optics=pd.concat(rows, ignore_index=True), particles=table.particles.assign(**{_NUMBER: numbers}))
